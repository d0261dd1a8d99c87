"""Alembic runs this; the connection comes from `kit.db.migrate`."""

from __future__ import annotations

from kit.db.migrate import run_migrations
from services.telemetry.tables import metadata

run_migrations(metadata)
