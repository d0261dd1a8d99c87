"""From the detector's grid to boxes. Grid, boxes, classes, labels and anchors all come with the result: nothing is hard-coded.

The arithmetic is that of YOLOv2 (Redmon & Farhadi, YOLO9000, CVPR 2017, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from latebind import Inference

SCORE = 0.5
OVERLAP = 0.3


@dataclass(frozen=True, slots=True)
class Box:
    """A thing that was found. Centre and size are shares of the picture's side."""

    label: str
    score: float
    x: float
    y: float
    width: float
    height: float


def decode(result: Inference) -> list[Box]:
    """The boxes in one result, the surest first."""
    info = result.info
    cells, boxes, classes = (info.params[name] for name in ("S", "B", "C"))
    labels = info.load_hyper_param_file("labels").decode().split()
    anchors = np.array(info.load_hyper_param_file("anchors").decode().split(), np.float32).reshape(boxes, 2)

    (grid,) = (output[0].reshape(cells, cells, boxes, 5 + classes) for output in result.values())
    rows, columns = np.mgrid[:cells, :cells]
    x = (columns[..., None] + _sigmoid(grid[..., 0])) / cells
    y = (rows[..., None] + _sigmoid(grid[..., 1])) / cells
    width, height = np.moveaxis(anchors * np.exp(grid[..., 2:4]) / cells, -1, 0)
    scores = _sigmoid(grid[..., 4])[..., None] * _softmax(grid[..., 5:])
    best = scores.argmax(-1)
    score = scores.max(-1)

    found = [
        Box(labels[best[at]], float(score[at]), float(x[at]), float(y[at]), float(width[at]), float(height[at]))
        for at in zip(*np.nonzero(score > SCORE), strict=True)
    ]
    kept: list[Box] = []
    for box in sorted(found, key=lambda one: -one.score):
        if all(_overlap(box, other) < OVERLAP for other in kept):
            kept.append(box)
    return kept


def _overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    wide = min(one.x + one.width / 2, other.x + other.width / 2) - max(one.x - one.width / 2, other.x - other.width / 2)
    high = min(one.y + one.height / 2, other.y + other.height / 2) - max(one.y - one.height / 2, other.y - other.height / 2)
    shared = max(wide, 0.0) * max(high, 0.0)
    return shared / (one.width * one.height + other.width * other.height - shared)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-values))


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
