"""Latebind Edge SDK."""
