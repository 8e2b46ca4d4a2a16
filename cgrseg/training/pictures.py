"""A few predictions as pictures, to watch a training by eye.

Each shows one image of the evaluation split: as it is, with its label, and with what the
network predicts, in the colours of the dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cgrseg.datasets.spec import DatasetSpec
from cgrseg.inference.decode import Segmentation
from cgrseg.visual.overlay import overlay

Picture = NDArray[np.uint8]
_HEIGHT = 256  # pixels of one panel: readable, and small enough to be logged often
_OPACITY = 0.6


class PictureTaker:
    """Takes pictures of the first images of an evaluation.

    Args:
        count: how many.
        spec: gives the colours.

    Attributes:
        pictures: by the image's file name without its ending; RGB uint8 (256, W, 3).
    """

    def __init__(self, count: int, spec: DatasetSpec) -> None:
        self.count = count
        self.spec = spec
        self.pictures: dict[str, Picture] = {}

    def __call__(self, item: Mapping[str, Any], found: Segmentation) -> None:
        """Take one item of the split and what was found in it, while there is room."""
        if len(self.pictures) < self.count:
            self.pictures[str(item["stem"])] = side_by_side(
                item["image"], item["label"], found.labels, self.spec
            )


def side_by_side(
    image: NDArray[np.uint8],
    label: NDArray[np.integer],
    predicted: NDArray[np.integer],
    spec: DatasetSpec,
) -> Picture:
    """An image, its label over it, and the prediction over it, from left to right.

    Args:
        image: RGB uint8 (H, W, 3).
        label: class ids (H, W); ignored pixels show the image.
        predicted: class ids (H, W).
        spec: gives the colours.

    Returns:
        RGB uint8 (256, W', 3).
    """
    height, width = image.shape[:2]
    size = (max(1, round(width * _HEIGHT / height)), _HEIGHT)
    method = cv2.INTER_AREA if height > _HEIGHT else cv2.INTER_LINEAR
    small = np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)
    panels = [small]
    for ids in (label, predicted):
        resized = cv2.resize(ids.astype(np.int16), size, interpolation=cv2.INTER_NEAREST)
        panels.append(overlay(small, np.asarray(resized), spec.palette, _OPACITY))
    return np.concatenate(panels, axis=1)
