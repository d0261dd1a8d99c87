"""The one table registry that the rooms' `tables.py` share. `tables.py` beside it imports them all."""

from __future__ import annotations

from kit.db.system import new_metadata

metadata = new_metadata()
