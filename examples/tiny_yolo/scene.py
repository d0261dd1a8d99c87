"""What the camera sees: coloured things on grey ground, and the palette that detector and camera agree on.

The world knows labels and colours. It knows no model: frames have the camera's own size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LABELS = (
    "person", "bicycle", "car", "motorbike", "bus", "train", "truck", "boat", "bird", "cat",
    "dog", "horse", "sheep", "cow", "bottle", "chair", "sofa", "table", "plant", "screen",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "suitcase", "kite", "skateboard", "cup", "fork",
    "knife", "spoon", "bowl", "banana", "apple", "orange", "pizza", "cake", "book", "clock",
)  # fmt: skip

GROUND = 0.5
CONTRAST = 0.45
CAMERA_SIZE = 416


def palette() -> np.ndarray:
    """One direction in RGB space per label, [40, 3], each of length 1 and well apart from the others (a Fibonacci sphere, shuffled)."""
    place = np.arange(len(LABELS)) + 0.5
    height = 1.0 - 2.0 * place / len(LABELS)
    turn = np.pi * (1.0 + 5.0**0.5) * place
    ring = np.sqrt(1.0 - height**2)
    points = np.stack([ring * np.cos(turn), ring * np.sin(turn), height], axis=1)
    return points[np.random.default_rng(7).permutation(len(LABELS))].astype(np.float32)


@dataclass(frozen=True, slots=True)
class Thing:
    """Something in front of the camera. Centre and size are shares of the picture's side."""

    label: str
    x: float
    y: float
    width: float
    height: float


def frame(things: list[Thing], size: int = CAMERA_SIZE) -> np.ndarray:
    """A picture of the things: float32 [1, size, size, 3], values from 0 to 1."""
    picture = np.full((1, size, size, 3), GROUND, np.float32)
    colours = palette()
    for thing in things:
        left, right = (round((thing.x + side * thing.width / 2) * size) for side in (-1, 1))
        top, bottom = (round((thing.y + side * thing.height / 2) * size) for side in (-1, 1))
        picture[0, max(top, 0) : bottom, max(left, 0) : right] = GROUND + CONTRAST * colours[LABELS.index(thing.label)]
    return picture
