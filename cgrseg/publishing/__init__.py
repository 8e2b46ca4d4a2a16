"""Publish trained weights: a checked folder with a model card, and its upload to the hub."""

from __future__ import annotations

from cgrseg.publishing.publish import Published, publish

__all__ = ["Published", "publish"]
