"""Writes a version of the detector: `python -m examples.tiny_yolo.make_model 13x13/5/20 DIRECTORY`.

The directory then holds model.onnx, labels.txt, anchors.txt and a latebind.yaml that `latebind push` reads.
The weights are made, not trained: each box looks for things of its anchor's size, each class for its colour in the palette.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from examples import onnx_writer as onnx
from examples.tiny_yolo.scene import CONTRAST, GROUND, LABELS, palette

MODEL_ID = "tiny-yolo-v2"
ANCHORS = ((1, 1), (3, 3), (1, 3), (3, 1), (5, 5), (5, 3), (3, 5), (5, 1))
CELL_PIXELS = 8
_REACH = 7  # the widest anchor and one cell around it
_GAIN = 60.0
_SURE = 0.9  # of the response to a thing that fills its box exactly


def build_detector(cells: int, boxes: int, classes: int) -> bytes:
    """The ONNX file for S `cells`, B `boxes` per cell and C `classes`.

    Input `image` float32 [1, height, width, 3] of any size; output `grid` float32 [1, S, S, B*(5+C)]: per box tx, ty, tw, th,
    objectness and one value per class, all before the sigmoid, as TinyYOLOv2 gives them (Redmon & Farhadi, YOLO9000, CVPR 2017).
    """
    side = cells * CELL_PIXELS
    weights = {
        "sizes": np.array([1, 3, side, side], np.int64),
        "ground": np.array(GROUND, np.float32),
        "filters": _filters(boxes, classes),
        "gain": np.array(_GAIN / CONTRAST, np.float32),
        "threshold": np.array(_GAIN * _SURE, np.float32),
        "split": np.array([1, boxes, classes, cells, cells], np.int64),
        "middle": np.zeros((1, boxes, 4, cells, cells), np.float32),
        "joined": np.array([1, boxes * (5 + classes), cells, cells], np.int64),
    }
    nodes = [
        onnx.node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        onnx.node("Resize", ["planes", "", "", "sizes"], ["resized"], mode="linear"),
        onnx.node("AveragePool", ["resized"], ["cells"], kernel_shape=[CELL_PIXELS] * 2, strides=[CELL_PIXELS] * 2),
        onnx.node("Sub", ["cells", "ground"], ["colours"]),
        onnx.node("Conv", ["colours", "filters"], ["found"], kernel_shape=[_REACH] * 2, pads=[_REACH // 2] * 4),
        onnx.node("Mul", ["found", "gain"], ["amplified"]),
        onnx.node("Reshape", ["amplified", "split"], ["classes"]),
        onnx.node("ReduceMax", ["classes"], ["strongest"], axes=[2], keepdims=1),
        onnx.node("Sub", ["strongest", "threshold"], ["objectness"]),
        onnx.node("Concat", ["middle", "objectness", "classes"], ["stacked"], axis=2),
        onnx.node("Reshape", ["stacked", "joined"], ["planar"]),
        onnx.node("Transpose", ["planar"], ["grid"], perm=[0, 2, 3, 1]),
    ]
    inputs = [onnx.value("image", [1, "height", "width", 3])]
    outputs = [onnx.value("grid", [1, cells, cells, boxes * (5 + classes)])]
    return onnx.model(nodes, inputs, outputs, [onnx.tensor(name, array) for name, array in weights.items()])


def _filters(boxes: int, classes: int) -> np.ndarray:
    """[B*C, 3, 7, 7]: the mean colour inside the anchor's window, less that of the cells around it, along the class's colour."""
    filters = np.zeros((boxes, classes, 3, _REACH, _REACH), np.float32)
    distance = np.abs(np.arange(_REACH) - _REACH // 2)
    for box, (width, height) in enumerate(ANCHORS[:boxes]):
        inside = (distance[:, None] <= height // 2) & (distance[None, :] <= width // 2)
        around = (distance[:, None] <= height // 2 + 1) & (distance[None, :] <= width // 2 + 1) & ~inside
        window = inside / inside.sum() - around / around.sum()
        filters[box] = palette()[:classes, :, None, None] * window
    return filters.reshape(boxes * classes, 3, _REACH, _REACH)


def write_version(directory: Path, cells: int, boxes: int, classes: int) -> Path:
    """Write model, files and the declaration; the path of latebind.yaml."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(build_detector(cells, boxes, classes))
    (directory / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS[:classes]))
    (directory / "anchors.txt").write_text("".join(f"{width} {height}\n" for width, height in ANCHORS[:boxes]))
    declaration = directory / "latebind.yaml"
    declaration.write_text(f"""\
model: {MODEL_ID}
notes: {cells}x{cells} cells, {boxes} boxes, {classes} classes
variants:
  - files: [model.onnx]
files: [labels.txt, anchors.txt]
params:
  S: {{type: int, value: {cells}}}
  B: {{type: int, value: {boxes}}}
  C: {{type: int, value: {classes}}}
  labels: {{type: file, value: labels.txt}}
  anchors: {{type: file, value: anchors.txt}}
inputs:
  - {{name: image, dtype: float32, shape: [1, height, width, 3]}}
outputs:
  - {{name: grid, dtype: float32, shape: [1, {cells}, {cells}, {boxes * (5 + classes)}]}}
""")
    return declaration


def main() -> None:
    grid, directory = sys.argv[1:]
    cells, boxes, classes = grid.split("/")
    print(write_version(Path(directory), int(cells.split("x")[0]), int(boxes), int(classes)))


if __name__ == "__main__":
    main()
