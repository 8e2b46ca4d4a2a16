"""Added augmentations, off by default: one function and one table entry each.

An entry gives an augmentation its settings `augment.<name>` (:mod:`cgrseg.config.schema`) and its
place in the pipeline.  The settings are read without OpenCV, so functions import it when they run.

    H, W size of a crop   C channels   N number of crops
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Levels: TypeAlias = NDArray[Any]
    """(H, W, C) in gray levels: uint8 RGB, or float32 of other channels, which may leave 0..255."""

    LabelMaps: TypeAlias = Sequence[NDArray[np.int64]]
    """N label maps (H, W) of training ids, that of the sample first."""

_MIXED_AREA = 0.5
_COPIED_SHARE = 0.02
_CENTRAL = (0.25, 0.75)


@dataclass(frozen=True)
class ImageOperation:
    """A change of the pixels that leaves the labels alone, made after the color distortion.

    Attributes:
        compute: function of gray levels, the drawn amount and a random generator.
        description: what happens, for the setting of its probability.
        amount: name of the amount; the setting `augment.<name>_<amount>` is its range.
        default: default range, from which the amount is drawn uniformly.
        limits: lowest and highest accepted amount.
        amount_description: description of the range.
    """

    compute: Callable[[Levels, float, np.random.Generator], Levels]
    description: str
    amount: str
    default: tuple[float, float]
    limits: tuple[float, float]
    amount_description: str


def blur(levels: Levels, sigma: float, rng: np.random.Generator) -> Levels:
    """Gaussian blur of each channel with a standard deviation of `sigma` pixels."""
    import cv2

    return cv2.GaussianBlur(levels, (0, 0), sigma).reshape(levels.shape)


def add_noise(levels: Levels, std: float, rng: np.random.Generator) -> Levels:
    """Add independent Gaussian noise of `std` gray levels; uint8 is rounded and clipped."""
    import numpy as np

    noisy = rng.standard_normal(levels.shape, dtype=np.float32)
    noisy *= np.float32(std)
    noisy += levels
    if levels.dtype == np.uint8:
        return np.clip(np.rint(noisy, out=noisy), 0, 255, out=noisy).astype(np.uint8)
    return noisy


def compress_as_jpeg(levels: Levels, quality: float, rng: np.random.Generator) -> Levels:
    """Encode as JPEG of a quality from 1 to 100, and decode.

    RGB is compressed as a color image.  Each of other channels is compressed as a gray image,
    clipped to 0..255; what the compression changed is added to the unclipped values.
    """
    import cv2
    import numpy as np

    def coded(pixels: Levels) -> Levels:
        file = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])[1]
        return np.asarray(cv2.imdecode(file, cv2.IMREAD_UNCHANGED), np.uint8)

    if levels.dtype == np.uint8:
        return cv2.cvtColor(coded(cv2.cvtColor(levels, cv2.COLOR_RGB2BGR)), cv2.COLOR_BGR2RGB)
    before = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    after = np.dstack([coded(np.ascontiguousarray(plane)) for plane in np.moveaxis(before, 2, 0)])
    return levels + (after.astype(np.float32) - before)


OPERATIONS: dict[str, ImageOperation] = {
    "blur": ImageOperation(
        blur,
        "a Gaussian blur",
        "sigma",
        (0.5, 2.0),
        (0.1, 50),
        "Range of the standard deviation of the blur in pixels of the crop, drawn uniformly.",
    ),
    "noise": ImageOperation(
        add_noise,
        "Gaussian noise, independent in each pixel and channel",
        "std",
        (2.0, 10.0),
        (0, 255),
        "Range of the standard deviation of the noise in gray levels, drawn uniformly.",
    ),
    "jpeg": ImageOperation(
        compress_as_jpeg,
        "JPEG compression",
        "quality",
        (40, 95),
        (1, 100),
        "Range of the JPEG quality, drawn uniformly.",
    ),
}


@dataclass(frozen=True)
class Mix:
    """A sample made of several crops of the training set, each from the same pipeline.

    Attributes:
        compute: function of the label maps of N crops, the ignore index and a random generator, to
            the number of the crop, 0..N-1, that each pixel comes from, (H, W).  Pixel and label
            are taken from that crop together, at the same place.
        crops: N.
        description: what happens, for the setting of its probability.
    """

    compute: Callable[[LabelMaps, int, np.random.Generator], NDArray[np.uint8]]
    crops: int
    description: str


def mosaic(labels: LabelMaps, ignore_index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Four crops around a point, which lies in the middle half of height and width.

    Ignored pixels and padding of a crop come along, and stay ignored.
    """
    import numpy as np

    height, width = labels[0].shape
    row, column = (round(side * rng.uniform(*_CENTRAL)) for side in (height, width))
    origin = np.zeros((height, width), np.uint8)
    origin[:row, column:] = 1
    origin[row:, :column] = 2
    origin[row:, column:] = 3
    return origin


def cutmix(labels: LabelMaps, ignore_index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A rectangle of half the area comes from the second crop (French et al. 2020).

    Its height is a share of the crop's between a half and all, uniform in the logarithm; its place
    is uniform.  Ignored pixels and padding inside it come along, and stay ignored.
    """
    import numpy as np

    height, width = labels[0].shape
    tall = _MIXED_AREA ** rng.random()
    rows, columns = round(height * tall), round(width * _MIXED_AREA / tall)
    top, left = (int(rng.integers(n + 1)) for n in (height - rows, width - columns))
    origin = np.zeros((height, width), np.uint8)
    origin[top : top + rows, left : left + columns] = 1
    return origin


def classmix(labels: LabelMaps, ignore_index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """All pixels of half of the classes of the second crop, rounded up (Olsson et al. 2021).

    Ignored pixels of the second crop are never pasted.
    """
    import numpy as np

    present = np.flatnonzero(_shares(labels[1], ignore_index))
    pasted = np.zeros(256, np.uint8)
    pasted[rng.choice(present, (len(present) + 1) // 2, replace=False)] = 1
    return pasted[labels[1]]


def copy_paste(labels: LabelMaps, ignore_index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Rare classes of the second crop (after Ghiasi et al. 2021, who paste objects).

    Each class is pasted with probability min(1, 0.02 / s), where s is its share of the pixels of
    the crop.  So a class on less than 2 % is pasted always, one on 40 % once in 20 times, and all
    classes add the same number of pixels on average.  No count of the whole dataset is needed, and
    the first crop keeps most of its pixels.  Ignored pixels are never pasted.
    """
    import numpy as np

    shares = _shares(labels[1], ignore_index)
    pasted = (shares > 0) & (rng.random(256) * shares < _COPIED_SHARE)
    return pasted.astype(np.uint8)[labels[1]]


def _shares(labels: NDArray[np.int64], ignore_index: int) -> NDArray[np.float64]:
    """Share of the pixels per id 0..255; that of the ignore index is 0."""
    import numpy as np

    counts = np.bincount(labels.ravel(), minlength=256)
    counts[ignore_index] = 0
    return counts / labels.size


MIXES: dict[str, Mix] = {
    "mosaic": Mix(mosaic, 4, "a mosaic of crops of four images around a random point"),
    "cutmix": Mix(cutmix, 2, "pasting a rectangle of half the area from a crop of a second image"),
    "classmix": Mix(
        classmix, 2, "pasting the pixels of half of the classes in a crop of a second image"
    ),
    "copy_paste": Mix(
        copy_paste,
        2,
        "pasting rare classes from a crop of a second image: each class with a probability of "
        "0.02 divided by its share of the crop, at most 1",
    ),
}
"""In the order in which they are applied; each draws its own further images."""
