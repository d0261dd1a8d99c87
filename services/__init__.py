"""Latebind's four services and the composition root."""
