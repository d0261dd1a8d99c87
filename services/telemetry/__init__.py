"""Telemetry: batches from devices into the column store, and the analytics over them.

Owns the table `ingest_plans` (SQL) and the column store's tables `samples`, `failures` and `activity` (`schema/`).
Topics in: telemetry.received (its own). Topics out: telemetry.received (before the device is answered), telemetry.rejected.
"""
