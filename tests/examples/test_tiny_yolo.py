"""The seed case: another grid, other classes and anchors under the same running client."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import reactivex as rx
from reactivex import operators as ops
from reactivex.subject import Subject

import latebind
from examples.tiny_yolo.client import words
from examples.tiny_yolo.decode import Box, decode
from examples.tiny_yolo.make_model import ANCHORS, build_detector, write_version
from examples.tiny_yolo.scene import LABELS, Thing, frame
from latebind.cli.main import main
from latebind.device.options import DeviceOptions
from tests.e2e.world import eventually
from tests.server import ServerProcess


def run_directly(cells: int, boxes: int, classes: int, picture: np.ndarray) -> list[Box]:
    """The detector without Latebind."""

    class Info:
        def __init__(self) -> None:
            self.params = {"S": cells, "B": boxes, "C": classes}

        def load_hyper_param_file(self, name: str) -> bytes:
            lines = LABELS[:classes] if name == "labels" else [f"{width} {height}" for width, height in ANCHORS[:boxes]]
            return "\n".join(lines).encode()

    class Result(dict[str, Any]):
        info = Info()

    session = onnxruntime.InferenceSession(build_detector(cells, boxes, classes))
    return decode(Result(grid=session.run(None, {"image": picture})[0]))  # type: ignore[arg-type]


@pytest.mark.parametrize(("cells", "boxes", "classes"), [(13, 5, 20), (19, 8, 40), (7, 2, 3)])
def test_the_detector_finds_what_is_there(cells: int, boxes: int, classes: int) -> None:
    middle = (cells // 2 + 0.5) / cells
    for label in (0, classes // 2, classes - 1):
        for width, height in ANCHORS[: min(boxes, 4)]:
            thing = Thing(LABELS[label], middle, middle, width / cells, height / cells)
            (box,) = run_directly(cells, boxes, classes, frame([thing], size=8 * cells))
            assert box.label == thing.label
            assert abs(box.x - middle) < 1e-3
            assert abs(box.y - middle) < 1e-3
            assert (box.width, box.height) == pytest.approx((thing.width, thing.height), rel=1e-3)
    assert run_directly(cells, boxes, classes, frame([])) == []


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with ServerProcess(tmp_path / "data") as server:
        yield server


def test_the_same_client_goes_on_from_13x13_5_20_to_19x19_8_40(
    server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATEBIND_CONFIG", str(tmp_path / "config.toml"))
    key = server.new_account("acme")
    assert main(["login", server.url, "--api-key", key]) == 0
    first = write_version(tmp_path / "v1", 13, 5, 20)
    assert main(["push", str(first.parent), "--alias", "stable"]) == 0
    with latebind.Client(server.url, key) as client:
        collection = client.collections.create("cameras")["id"]
        client.collections.put_draft(collection, {"rules": [], "default": {"model": "tiny-yolo-v2", "alias": "stable"}})
        client.collections.publish(collection)
        enrolment_key = client.enrolment_keys.create(quota=1)["key"]

    config = latebind.ModelConfig("acme", collection)
    camera: Subject[np.ndarray] = Subject()
    seen: list[latebind.Inference] = []
    spoken: list[str] = []
    arrived = threading.Semaphore(0)
    thing = Thing("dog", 0.5, 0.5, 3 / 13, 3 / 13)

    def note(result: latebind.Inference) -> None:
        seen.append(result)
        spoken.append(words(result))
        arrived.release()

    with latebind.Manager(
        server=server.url, enrolment_key=enrolment_key, cache_dir=tmp_path / "device", options=DeviceOptions(threads=1), background=False
    ) as manager:
        handle = manager.create_handle(config).pipe(ops.timeout(60.0)).run()
        errors: list[Exception] = []
        camera.pipe(handle.run_inference(), ops.do_action(note)).subscribe(on_error=errors.append)

        def look(pictures: int) -> None:
            rx.from_iterable([frame([thing])] * pictures).subscribe(camera.on_next)
            for _ in range(pictures):
                assert arrived.acquire(timeout=30), errors

        look(5)
        assert {(result.info.version, result["grid"].shape) for result in seen} == {(1, (1, 13, 13, 125))}
        assert {box.label for box in decode(seen[-1])} == {"dog"}

        second = write_version(tmp_path / "v2", 19, 8, 40)
        assert main(["push", str(second), "--alias", "stable"]) == 0
        look(5)
        eventually(lambda: manager.check_for_updates(config).result == "switched")
        thing = Thing("pizza", 0.5, 0.5, 3 / 19, 3 / 19)
        look(5)
        assert errors == []

    assert [result.info.version for result in seen] == [1] * 10 + [2] * 5
    assert seen[-1]["grid"].shape == (1, 19, 19, 360)
    assert [box.label for box in decode(seen[-1])] == ["pizza"]
    assert spoken[0].startswith("v1 13x13/5/20  dog")
    assert spoken[-1].startswith("v2 19x19/8/40  pizza")
    capsys.readouterr()
