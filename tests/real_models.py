"""The real models for tests: the same wheels as the examples', from the same cache."""

from __future__ import annotations

from examples.real_models import BasicPitch, Magika, basic_pitch, magika

__all__ = ["BasicPitch", "Magika", "basic_pitch", "magika"]
