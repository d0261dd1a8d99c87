"""The app: looks through a camera, runs whatever detector is bound to it, and shows boxes. It knows an account and a collection.

`python -m examples.tiny_yolo.client SERVER ACCOUNT COLLECTION ENROLMENT_KEY`. Leave it running, push another version, move the alias: the
boxes go on, with another grid, other labels and other anchors.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import reactivex as rx
from reactivex import Observable
from reactivex import operators as ops

import latebind
from examples.tiny_yolo.decode import Box, decode
from examples.tiny_yolo.scene import LABELS, Thing, frame


def camera(frames_per_s: float = 5.0) -> Observable[np.ndarray]:
    """Frames without end: something in the middle, another thing every second, in turn near and far away."""

    def look() -> Iterator[np.ndarray]:
        number = 0
        while True:
            number += 1
            second = int(number / frames_per_s)
            size = 3 / 13 if second % 2 else 3 / 19
            yield frame([Thing(LABELS[second % len(LABELS)], 0.5, 0.5, size, size)])
            time.sleep(1 / frames_per_s)

    return rx.from_iterable(look())


def words(result: latebind.Inference) -> str:
    """A result in a line."""
    info = result.info
    boxes: list[Box] = decode(result)
    seen = ", ".join(f"{box.label} ({box.score:.0%}) at {box.x:.2f}, {box.y:.2f}" for box in boxes) or "nothing"
    return f"v{info.version} {info.params['S']}x{info.params['S']}/{info.params['B']}/{info.params['C']}  {seen}"


def main() -> None:
    """Look until somebody presses Ctrl-C."""
    server, account, collection, enrolment_key = sys.argv[1:]
    config = latebind.ModelConfig(account, collection)
    with latebind.Manager(server=server, enrolment_key=enrolment_key, cache_dir=Path("build/tiny_yolo/device")) as manager:
        handle = manager.create_handle(config).run()
        print(f"runs {handle.info.model_id} on {handle.info.engine} {handle.info.engine_version}")
        try:
            camera().pipe(handle.run_inference(), ops.map(words), ops.distinct_until_changed(), ops.do_action(print)).run()
        except KeyboardInterrupt:
            print("bye")


if __name__ == "__main__":
    main()
