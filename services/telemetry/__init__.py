"""Telemetry: batches from devices into the column store, and the analytics over them.

Owns the tables `ingest_plans`, `ingest_owners` and `rollup_days` (SQL), and the column store's tables `samples`, `failures`, `activity`,
`rolled_samples` and `rolled_installs` (`schema/`).
Topics in: telemetry.received (its own). Topics out: telemetry.received (before the device is answered), telemetry.rejected.
"""
