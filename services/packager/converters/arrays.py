"""Files of arrays (.npz) without pickles, between children of one job, and as golden files. Needs numpy only."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_npz(path: Path, arrays: Mapping[str, Any], *, packed: bool = True) -> None:
    """Write arrays under any names, the same bytes for the same arrays; `packed` takes time and saves space.

    Raises `ValueError` for arrays of objects.
    """
    with zipfile.ZipFile(path, "x") as archive:
        for name, array in arrays.items():
            # An entry made by hand carries no time of day.
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array) if array.ndim else array, allow_pickle=False)


def read_npz(path: Path) -> dict[str, Any]:
    """Read arrays. Raises `ValueError`, `OSError` or `zipfile.BadZipFile` for anything but plain arrays."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
