"""Result for one image: label map, classes, palette, and pictures of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cgrseg.addresses import Address
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import write_label_png
from cgrseg.errors import DataError
from cgrseg.visual.overlay import class_shares, colorize, overlay, with_legend

_LOG = logging.getLogger("cgrseg.inference")

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Timing:
    """Time of one image.

    Attributes:
        read: seconds to read and resize the image, in a thread beside the network.
        predict: seconds of network and decoding; in a batch, this image's share.
        warm: False if `predict` includes work that is done once per size of the network's input:
            for the first batch of a size, and for images that waited for a compilation.
    """

    read: float
    predict: float
    warm: bool


@dataclass
class Speed:
    """Time of many images; work that is done once per image size counts separately.

    Attributes:
        once: seconds of the images that were not warm.
        images: number of warm images.
        seconds: seconds of the warm images.
    """

    once: float = 0.0
    images: int = 0
    seconds: float = 0.0

    def add(self, timing: Timing | None) -> None:
        """Count an image; None is ignored."""
        if timing is None:
            return
        if timing.warm:
            self.images += 1
            self.seconds += timing.predict
        else:
            self.once += timing.predict

    def __str__(self) -> str:
        text = f"{self.once:.1f} s for the first image of each size"
        if self.images:
            text += f", then {self.images / max(self.seconds, 1e-9):.1f} images/s"
        return text


@dataclass(frozen=True, repr=False)
class Prediction:
    """Label map of one image.

    Attributes:
        labels: class ids (H, W) at the image's own size.
        classes: names in id order.
        palette: RGB 0..255 per class.
        image: the image, uint8 RGB (H, W, 3).
        confidence: probability 0..1 of the class of each pixel (H, W); None unless asked for.
        source: file of the image or video, or its address; None for images in memory.
        timing: time of the image.
        frame: number of the frame in a video, counted from 0; None for an image.
        digest: digest of the file's bytes as they were decoded (:mod:`cgrseg.provenance`); None
            for images in memory and frames.
        sha256: SHA-256 of these bytes in hexadecimal, for tables that others read; None likewise.
    """

    labels: NDArray[np.integer]
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    image: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    source: Path | Address | None = None
    timing: Timing | None = None
    frame: int | None = None
    digest: str | None = None
    sha256: str | None = None

    def __repr__(self) -> str:
        """Source, size and the largest classes."""
        height, width = self.labels.shape
        where = "" if self.source is None else f"{self.source}, "
        where += "" if self.frame is None else f"frame {self.frame}, "
        most = list(self.shares.items())[:3]
        shown = ", ".join(f"{name} {100 * share:.0f} %" for name, share in most)
        return f"Prediction({where}{height}x{width} pixels: {shown})"

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels (0..1) of each class that occurs, largest first."""
        found = class_shares(self.labels, len(self.classes))
        order = np.argsort(-found, kind="stable")
        return {self.classes[k]: float(found[k]) for k in order if found[k] > 0}

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Mask (H, W) of one class.

        Raises:
            KeyError: no class of that name.
        """
        if name not in self.classes:
            raise KeyError(f"no class {name!r}; there are {', '.join(self.classes)}")
        return np.asarray(self.labels == self.classes.index(name))

    def colored(self) -> NDArray[np.uint8]:
        """The label map in the colors of its classes, uint8 RGB (H, W, 3)."""
        return colorize(self.labels, self.palette)

    def coloured(self) -> NDArray[np.uint8]:
        """Old name of :meth:`colored`."""
        _LOG.warning("the method 'coloured' is now called 'colored'")
        return self.colored()

    def overlay(self, opacity: float = 0.5, *, legend: bool = False) -> NDArray[np.uint8]:
        """The image with the labels laid over it.

        Args:
            opacity: opacity of the labels, 0..1.
            legend: add class names and shares at the side.

        Returns:
            uint8 RGB (H, W, 3); wider (and, for small images, higher) with a legend.
        """
        picture = overlay(self.image, self.labels, self.palette, opacity)
        return self.with_legend(picture) if legend else picture

    def with_legend(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A picture of this prediction with class names and shares at its side."""
        return with_legend(picture, self.labels, self.classes, self.palette)

    def save_labels(self, path: Path | str, *, note: str | None = None) -> None:
        """Write an indexed PNG: class ids as indices, in the colors of the classes.

        Args:
            path: target, written whole or not at all.
            note: text stored in the file.

        Raises:
            DataError: more classes than an indexed PNG can hold.
            EnvironmentProblem: it cannot be written.
        """
        if len(self.classes) > 256:
            raise DataError(
                path,
                found=f"labels of {len(self.classes)} classes",
                expected="ids from 0 to 255, which is what an indexed PNG holds",
                remedy="use `labels` from Python and write it as 16-bit or as .npy",
            )
        write_label_png(path, self.labels.astype(np.uint8), self.palette, note=note)

    def save_overlay(self, path: Path | str, opacity: float = 0.5, *, legend: bool = True) -> None:
        """Write the overlay in the format of the path's suffix."""
        write_image(path, self.overlay(opacity, legend=legend))
