"""Files that an evaluation leaves besides its scores: labels, overlays, submissions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import write_label_png
from cgrseg.data.pairs import Pair
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import ConfigError, DataError, option
from cgrseg.inference.decode import Segmentation
from cgrseg.visual.overlay import overlay, with_legend


class LabelWriter:
    """Writes `<stem>.png` with class ids as indices, shown in the dataset's colors."""

    def __init__(self, folder: Path | str, spec: DatasetSpec) -> None:
        self.folder = Path(folder)
        self._palette = spec.palette

    def __call__(self, item: Mapping[str, Any], found: Segmentation) -> None:
        """Write one image's labels."""
        path = self.folder / f"{item['stem']}.png"
        write_label_png(path, found.labels.astype(np.uint8), self._palette)


class OverlayWriter:
    """Writes `<stem>.jpg`: the image with its prediction laid over it, and a legend."""

    def __init__(self, folder: Path | str, spec: DatasetSpec, opacity: float = 0.5) -> None:
        if not 0 < opacity <= 1:
            raise ConfigError(
                "opacity",
                found=str(opacity),
                expected="a share above 0 and up to 1",
                remedy="use 0.5 to see image and labels equally",
            )
        self.folder = Path(folder)
        self._spec = spec
        self._opacity = opacity

    def __call__(self, item: Mapping[str, Any], found: Segmentation) -> None:
        """Write one image's overlay."""
        palette = np.array(self._spec.palette, dtype=np.uint8)
        labels = found.labels.astype(np.uint8)
        picture = overlay(item["image"], labels, palette, self._opacity)
        picture = with_legend(picture, labels, self._spec.classes, palette)
        write_image(self.folder / f"{item['stem']}.jpg", picture)


class SubmissionWriter:
    """Writes label files as a benchmark's server expects them.

    ADE20K: `<name>.png` with ids 1..150.  Cityscapes: `<name>.png` with the label ids of
    the benchmark.  Other datasets: ids as in their own label files.  Names are those of
    the images, without folders.

    Args:
        folder: folder of the files.
        spec: the dataset.
        stems: stems of all images to come.

    Raises:
        DataError: two images of the same name in different folders.
        ConfigError: see :func:`submission_ids`.
    """

    def __init__(self, folder: Path | str, spec: DatasetSpec, stems: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        seen: dict[str, str] = {}
        for stem in stems:
            other = seen.setdefault(Path(stem).name, stem)
            if other != stem:
                raise DataError(
                    self.folder,
                    found=f"{other} and {stem}, whose label files would have the same name",
                    expected="a name of its own for each image, as servers expect files "
                    "without folders",
                    remedy="rename one of them, or write plain label maps, "
                    f"which keep folders: {option('--out')} without {option('--format-only')}",
                )
        self._ids = submission_ids(spec)
        colors = np.zeros((256, 3), dtype=np.uint8)
        colors[self._ids] = np.array(spec.palette, dtype=np.uint8)
        self._palette = colors

    def __call__(self, item: Mapping[str, Any], found: Segmentation) -> None:
        """Write one image's labels."""
        name = Path(item["stem"]).name
        write_label_png(self.folder / f"{name}.png", self._ids[found.labels], self._palette)


def refuse_own_data(folder: Path | str, pairs: Sequence[Pair], root: Path | str) -> None:
    """Refuse a folder for results among the images and labels of a dataset.

    Args:
        folder: folder for results.
        pairs: pairs of one split; their folders hold the files of other splits too.
        root: dataset root.

    Raises:
        ConfigError: the folder is the root, or lies in such a folder.
    """
    base = Path(root).absolute()
    kept = set()
    for pair in pairs:
        for file in (pair.image, pair.label):
            if file is not None and base in file.absolute().parents:
                kept.add(base / file.absolute().relative_to(base).parts[0])
    target = Path(folder).absolute()
    real = Path(os.path.realpath(target))  # Path.resolve fails where symlinks lead back
    above = {target, *target.parents, real, *real.parents}
    own = {base, base.resolve()} & {target, real}
    own |= (kept | {place.resolve() for place in kept}) & above
    if own:
        raise ConfigError(
            folder,
            found=f"a folder of the dataset itself ({min(own)})",
            expected="a folder of its own for results",
            remedy="choose another folder",
        )


def submission_ids(spec: DatasetSpec) -> NDArray[np.uint8]:
    """The id that files of a dataset hold for each training id (K,).

    Raises:
        ConfigError: several stored ids became one class (merged classes).
    """
    if spec.submission_ids is not None and len(spec.submission_ids) == spec.num_classes:
        return np.array(spec.submission_ids, dtype=np.uint8)
    rule = spec.label_rule
    stored: list[int] = []
    for training_id in range(spec.num_classes):
        raw = [k for k in sorted(rule.allowed) if rule.lookup[k] == training_id]
        if len(raw) != 1:
            raise ConfigError(
                "format_only",
                found=f"class {spec.classes[training_id]!r} stands for the stored ids {raw}",
                expected="one stored id per class",
                remedy=f"write plain label files with {option('--out')}, without "
                f"{option('--format-only')}; or leave data.merge out",
            )
        stored.append(raw[0])
    return np.array(stored, dtype=np.uint8)
