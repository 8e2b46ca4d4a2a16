"""Read the image and the label of a pair, and check that they belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cgrseg.config.schema import TestConfig
from cgrseg.data.channels import Pixels, read_pixels
from cgrseg.data.geometry import Size
from cgrseg.data.image_files import Reduction
from cgrseg.data.label_files import read_label
from cgrseg.data.pairs import Pair
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import DataError


def load_label(spec: DatasetSpec, pair: Pair) -> NDArray[np.uint8]:
    """Training ids (H, W) of a pair.

    Raises:
        DataError: no label, unreadable, or ids that the dataset does not have.
    """
    label = label_path(spec, pair)
    return spec.rule_for(label).apply(read_label(label), source=label)


def load_image(
    pair: Pair,
    labels: NDArray[np.uint8],
    test: TestConfig | None = None,
    reduce: Reduction = 1,
) -> Pixels:
    """Image of a pair, checked to have the size of its label.

    Args:
        pair: image and label.
        labels: (H, W), label map of the pair.
        test: how images are read, see :func:`cgrseg.data.channels.read_pixels`; None: as 8-bit
            RGB.
        reduce: decode a JPEG at this fraction of its sides.

    Returns:
        (H, W, C), or both sides divided by `reduce` and rounded up.

    Raises:
        DataError: unreadable, or another size than the label.
    """
    image = read_pixels(pair.image, test or TestConfig(), reduce=reduce)
    expected: Size = (-(-labels.shape[0] // reduce), -(-labels.shape[1] // reduce))
    if image.shape[:2] != expected:
        swapped = image.shape[:2] == expected[::-1]
        raise DataError(
            pair.image,
            found=f"the image is {image.shape[1] * reduce}x{image.shape[0] * reduce} pixels, "
            f"its label {pair.label} {labels.shape[1]}x{labels.shape[0]} (width x height)",
            expected="the same size for both",
            remedy="the image was turned by its EXIF orientation after it was labeled: turn "
            "the label too, or remove the orientation tag"
            if swapped
            else "check that they belong together, and resize labels by nearest neighbor only",
        )
    return image


def label_path(spec: DatasetSpec, pair: Pair) -> Path:
    """Label file of a pair.

    Raises:
        DataError: the split has no labels.
    """
    if pair.label is None:
        raise DataError(
            pair.image,
            found="this split has no labels",
            expected=f"a split of {spec.title} that is published with labels",
            remedy="choose another split (data.train_split, data.eval_split), or use "
            "`cgrseg predict` on these images",
        )
    return pair.label
