"""SEC-B4 in small: valid models, every 61st of the corpus of `onnx`, are packages or refusals with a reason. `make corpus` takes all."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.packager.corpus import OUTSIDE, check, package_all, show, write_corpus

#: The first is the smallest of the image networks.
FIRST, STRIDE = 6, 61


def test_valid_models_are_packaged_or_refused_for_a_reason(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    models = write_corpus(tmp_path / "corpus")
    assert len(models) >= 2000
    ended = asyncio.run(package_all(tmp_path / "corpus", models[FIRST::STRIDE], tmp_path / "data"))
    show(ended)
    check(ended)
    accepted = [one for one in ended if one.code is None]
    inside = [one for one in ended if one.code not in OUTSIDE]
    assert len(inside) >= 25 and len(accepted) >= 0.95 * len(inside)
    assert {"light", "node", "pytorch-converted"} <= {one.name.partition("/")[0] for one in accepted}
    assert any(one.given for one in accepted)
    assert sum(one.equal is True for one in accepted) >= 0.9 * len(accepted)
