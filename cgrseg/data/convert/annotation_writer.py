"""Interface of writers of annotation files: predictions in the form that a labeling tool imports.

A writer stands beside the reader of the same format, in :mod:`cgrseg.data.convert.formats`, and is
the attribute `writer` of the format's class.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from cgrseg.addresses import Address

if TYPE_CHECKING:
    from cgrseg.data.convert.tracing import TracedRegion

RegionShape = Literal["polygon", "mask"]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its regions.

    Attributes:
        path: the image file, or its address.
        name: path of the image with its suffix, relative to the folder of the images.
        height: pixels.
        width: pixels.
        regions: connected regions of its label map.
    """

    path: Path | Address
    name: str
    height: int
    width: int
    regions: Sequence[TracedRegion]

    @property
    def score(self) -> float | None:
        """Mean confidence of the pixels of all regions, 0..1; None: unknown."""
        pixels = sum(region.pixels for region in self.regions)
        known = [
            region.score * region.pixels for region in self.regions if region.score is not None
        ]
        return sum(known) / pixels if known and len(known) == len(self.regions) else None


@dataclass
class AnnotationWriter(abc.ABC):
    """Text of annotation files, image after image.

    Attributes:
        classes: names in id order.
        palette: RGB 0..255 per class.
        shape: regions as polygons, or as masks (run lengths, or an embedded PNG).
        file: name of the only file; where it holds `{}`, each image has a file, and `{}`
            stands for its name without suffix.
        shapes: shapes that the format has.
        advice: how a tool imports the file, in a sentence.
    """

    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    shape: RegionShape = "polygon"

    file: ClassVar[str]
    shapes: ClassVar[tuple[RegionShape, ...]] = ("polygon", "mask")
    advice: ClassVar[str]

    def begin(self) -> str:
        """Text before the first image."""
        return ""

    @abc.abstractmethod
    def add(self, image: AnnotatedImage, folder: Path) -> str:
        """Text of an image.

        Args:
            image: the image.
            folder: folder of the file.
        """

    def end(self) -> str:
        """Text after the last image."""
        return ""

    def companions(self) -> Mapping[str, str]:
        """Files beside it, such as the setup of the tool: their text by name."""
        return {}


def html_color(color: tuple[int, int, int]) -> str:
    """A color as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def score_entry(score: float | None) -> dict[str, float]:
    """The entry `score`, to three digits; empty where it is unknown."""
    return {} if score is None else {"score": round(score, 3)}
