"""Every table belongs to accounts, and is then fenced on PostgreSQL (tests/cluster/test_account_fence.py), or says why it does not."""

from __future__ import annotations

import importlib

import pytest

#: Tables without an account, and why that is right.
WITHOUT_ACCOUNT = {
    "alembic_version": "the schema's revision",
    "catalogue_entries": "the operator's shelf, for all accounts to read",
    "catalogue_sources": "the operator's shelf, for all accounts to read",
    "idempotency_keys": "keyed by caller, which holds the account; read by exact key only",
    "ingest_owners": "partitions of the log, no rows of accounts",
    "ingest_plans": "ranges of the log, no rows of accounts",
    "leases": "names of workers",
    "operator_keys": "the operator's own",
    "outbox": "read by the relay only, before any account can ask",
    "rollup_days": "which days of the column store are rolled up, for all accounts at once",
    "seen_events": "ids of events",
    "upload_parts": "found through `uploads`, by an id of 128 random bits",
    "used_nonces": "random numbers",
}


@pytest.mark.parametrize("service", ["registry", "packager", "deployer", "telemetry"])
def test_every_table_has_an_account_or_a_reason(service: str) -> None:
    metadata = importlib.import_module(f"services.{service}.tables").metadata
    without = {table.name for table in metadata.sorted_tables if "account" not in table.columns}
    assert without <= set(WITHOUT_ACCOUNT)
