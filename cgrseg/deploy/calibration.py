"""Photos that a quantisation watches the float network on, read when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from cgrseg.config import Config
from cgrseg.config.schema import TestConfig
from cgrseg.data.image_files import read_image
from cgrseg.data.pairs import find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.errors import ConfigError
from cgrseg.inference.exported import Description, Size
from cgrseg.inference.exported_backend import ExportedBackend
from cgrseg.inference.image_sources import find_images
from cgrseg.inference.segmenting import fit_to_sizes
from cgrseg.inference.views import NetworkInput, network_size


def calibration_photos(
    calibrate: Sequence[str] | None, config: Config | None, lacking: str, most: int
) -> list[Path]:
    """Photos to calibrate with, evenly spread over what there is.

    Args:
        calibrate: images, folders and patterns; None: the training split of the dataset.
        config: of the checkpoint's run; None: it has none.
        lacking: why not, in words.
        most: photos.

    Raises:
        ConfigError: neither of them.
        DataError: nothing there.
    """
    if calibrate:
        found = [image.path for image in find_images(calibrate)]
    elif config is not None:
        spec = resolve_spec(config.data)
        pairs = find_pairs(spec, config.data.root, config.data.train_split)
        found = [pair.image for pair in pairs]
    else:
        raise ConfigError(
            "--calibrate",
            found=f"not given, and {lacking}",
            expected="images like those that the file is for",
            remedy="for example --calibrate images/",
        )
    return evenly(found, most)


def evenly(photos: Sequence[Path], most: int) -> list[Path]:
    """At most so many of them, evenly spread."""
    places = np.linspace(0, len(photos) - 1, min(most, len(photos))).round().astype(int)
    return [photos[place] for place in np.unique(places)]


def commonest_size(photos: Sequence[Path], test: TestConfig) -> Size:
    """The input that most photos become.

    Raises:
        DataError: a photo that cannot be read.
    """
    sizes = Counter(network_size(read_image(photo, bits=test.image_bits), test) for photo in photos)
    return sizes.most_common(1)[0][0]


class CalibrationInputs(Sequence[NDArray[np.generic]]):
    """What the file gets for each photo, whatever kind of input it takes.

    Quantisers go through them one by one, some more than once; only one is in memory.

    Args:
        photos: files.
        test: settings for one plain look at the whole photo.
        description: of the file, which takes one size.
        size: that size.
    """

    def __init__(
        self, photos: Sequence[Path], test: TestConfig, description: Description, size: Size
    ) -> None:
        self._photos = photos
        self._test = test
        self._description = description
        self._size = size

    def __len__(self) -> int:
        """Number of photos."""
        return len(self._photos)

    @overload
    def __getitem__(self, place: int) -> NDArray[np.generic]: ...

    @overload
    def __getitem__(self, place: slice) -> CalibrationInputs: ...

    def __getitem__(self, place: int | slice) -> NDArray[np.generic] | CalibrationInputs:
        """The input of one photo, a whole batch as the file takes it.

        Raises:
            DataError: the photo cannot be read.
        """
        if isinstance(place, slice):
            return CalibrationInputs(self._photos[place], self._test, self._description, self._size)
        picture = read_image(self._photos[place], bits=self._test.image_bits)
        batch = NetworkInput.of(picture, fit_to_sizes(self._test, picture, [self._size])).tensor
        taken: list[NDArray[np.generic]] = []

        def keep(array: NDArray[np.generic]) -> NDArray[np.generic]:
            taken.append(array)
            return np.zeros((len(array), 1, self._size[0] // 8, self._size[1] // 8), np.float32)

        ExportedBackend(self._description, keep, "calibration").logits(batch)
        return taken[0]
