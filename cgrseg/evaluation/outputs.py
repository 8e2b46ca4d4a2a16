"""Files that an evaluation writes: scores, label maps, overlays, submissions."""

from __future__ import annotations

import abc
import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.addresses import local_folder
from cgrseg.data.channels import as_picture
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import write_label_png
from cgrseg.data.pairs import Pair
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import ConfigError, DataError, EnvironmentProblem, option
from cgrseg.evaluation.result import EvaluationResult
from cgrseg.inference.decode import Segmentation
from cgrseg.locks import output_lock
from cgrseg.visual.overlay import overlay, with_legend

_LOG = logging.getLogger("cgrseg.evaluation")


class Writer(abc.ABC):
    """Writes one file per predicted image into a folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @abc.abstractmethod
    def __call__(self, item: Mapping[str, Any], found: Segmentation) -> None:
        """Write the file of one image."""


class LabelWriter(Writer):
    """Writes `<stem>.png` with class ids as indices, in the dataset's colors."""

    def __init__(self, folder: Path | str, spec: DatasetSpec) -> None:
        super().__init__(folder)
        self._palette = spec.palette

    def __call__(self, item: Mapping[str, Any], found: Segmentation) -> None:
        """Write the label map of one image."""
        path = self.folder / f"{item['stem']}.png"
        write_label_png(path, found.labels.astype(np.uint8), self._palette)


class OverlayWriter(Writer):
    """Writes `<stem>.jpg`: the image with its prediction laid over it, and a legend."""

    def __init__(self, folder: Path | str, spec: DatasetSpec, opacity: float = 0.5) -> None:
        if not 0 < opacity <= 1:
            raise ConfigError(
                "opacity",
                found=str(opacity),
                expected="a share above 0 and up to 1",
                remedy="use 0.5 to see image and labels equally",
            )
        super().__init__(folder)
        self._spec = spec
        self._opacity = opacity

    def __call__(self, item: Mapping[str, Any], found: Segmentation) -> None:
        """Write the overlay of one image."""
        palette = np.array(self._spec.palette, dtype=np.uint8)
        labels = found.labels.astype(np.uint8)
        image = as_picture(item["image"], item["channels"])
        painted = overlay(image, labels, palette, self._opacity)
        painted = with_legend(painted, labels, self._spec.classes, palette)
        write_image(self.folder / f"{item['stem']}.jpg", painted)


class SubmissionWriter(Writer):
    """Writes label files as the server of a benchmark expects them.

    ADE20K: `<name>.png` with ids 1..150.  Cityscapes: `<name>.png` with the label ids of the
    benchmark.  Other datasets: ids as in their own label files.  Names are those of the images,
    without folders.

    Args:
        folder: output folder.
        spec: the dataset.
        stems: stems of all images to come.

    Raises:
        DataError: two images of the same name in different folders.
        ConfigError: see :func:`submission_ids`.
    """

    def __init__(self, folder: Path | str, spec: DatasetSpec, stems: Sequence[str] = ()) -> None:
        super().__init__(folder)
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
        self._palette = np.zeros((256, 3), dtype=np.uint8)
        self._palette[self._ids] = np.array(spec.palette, dtype=np.uint8)

    def __call__(self, item: Mapping[str, Any], found: Segmentation) -> None:
        """Write the label file of one image."""
        name = Path(item["stem"]).name
        write_label_png(self.folder / f"{name}.png", self._ids[found.labels], self._palette)


@dataclass(frozen=True)
class Outputs:
    """Where an evaluation writes.

    Attributes:
        results: folder of `evaluation.json`; None: not written.
        copy: further file for the scores (`.json`) or the counts (`.npz`); None: none.
        writers: writers of one file per image.
    """

    results: Path | None
    copy: Path | None
    writers: list[Writer]

    @classmethod
    def plan(
        cls,
        spec: DatasetSpec,
        stems: Sequence[str],
        results: Path,
        *,
        out: str | Path | None,
        show_dir: str | Path | None,
        opacity: float,
        format_only: bool,
    ) -> Outputs:
        """Outputs by the arguments of :func:`cgrseg.evaluate`.

        Raises:
            ConfigError: an opacity that cannot be used, or merged classes in a submission.
            DataError: a submission with two images of one name.
        """
        is_file = Path(out or "").suffix.lower() in (".json", ".npz")
        writers: list[Writer] = []
        if format_only:
            folder = results / "submission" if out is None else out
            writers.append(SubmissionWriter(folder, spec, stems))
        elif out is not None and not is_file:
            writers.append(LabelWriter(out, spec))
        if show_dir is not None:
            writers.append(OverlayWriter(show_dir, spec, opacity))
        copy = Path(out) if out is not None and is_file else None
        return cls(None if format_only else results, copy, writers)

    def refuse_unusable(self, pairs: Sequence[Pair], root: Path | str) -> None:
        """Stop before work whose results could not be written, or would land in the dataset.

        Raises:
            ConfigError: see :func:`refuse_own_data`.
            EnvironmentProblem: a folder that is read-only.
        """
        for writer in self.writers:
            refuse_own_data(writer.folder, pairs, root)
        if self.results is None:
            return
        parents = (self.results, *self.results.absolute().parents)
        nearest = next(folder for folder in parents if folder.exists())
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise EnvironmentProblem(
                self.results,
                found=f"results cannot be written there ({nearest} is read-only for this user)",
                expected="a folder for evaluation.json",
                remedy="name another folder: work_dir=FOLDER (in Python work_dir=...)",
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the locks of all folders."""
        with contextlib.ExitStack() as locks:
            if self.results is not None:
                locks.enter_context(output_lock(self.results))
            if self.copy is not None:
                locks.enter_context(output_lock(self.copy.parent))
            for writer in self.writers:
                locks.enter_context(output_lock(writer.folder, below=True))
            yield

    def write(self, result: EvaluationResult, name: str) -> None:
        """Write the result; earlier results are kept, and named in a warning."""
        if self.results is None:
            return
        kept = result.write(self.results, name).earlier
        if self.copy is not None:
            kept += result.write_copy(self.copy)
        for path in kept:
            _LOG.warning("an earlier result is kept as %s", path)


def refuse_kind(out: str | Path | None, format_only: bool) -> None:
    """Refuse kinds of `out` that are not written.

    Raises:
        ConfigError: a pickle, or a file for a submission.
    """
    suffix = Path(out or "").suffix.lower()
    if suffix in (".pkl", ".pickle"):
        raise ConfigError(
            "out",
            found=f"{out}: pickles are not written, since opening one runs what is in it",
            expected="a folder for label PNGs, or a .json or .npz file",
            remedy="name a folder, or end the file in .npz",
        )
    if format_only and suffix in (".json", ".npz"):
        raise ConfigError(
            "out",
            found=f"{out} together with format_only",
            expected="a folder for the files of the submission",
            remedy="name a folder",
        )


def refuse_own_data(folder: Path | str, pairs: Sequence[Pair], root: Path | str) -> None:
    """Refuse a folder for results among the images and labels of a dataset.

    Args:
        folder: folder for results.
        pairs: pairs of one split; files of the other splits must stay as they are too.
        root: dataset root, whose folders with images or labels are protected.

    Raises:
        ConfigError: the folder is the root, or lies in such a folder.
    """
    base = local_folder(root).absolute()
    kept = set()
    for pair in pairs:
        for file in (pair.image, pair.label):
            if file is not None and base in file.absolute().parents:
                kept.add(base / file.absolute().relative_to(base).parts[0])
    target = Path(folder).absolute()
    real = Path(os.path.realpath(target))  # Path.resolve fails on circular symlinks
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
    """Id in the files of a submission for each training id (K,).

    Raises:
        ConfigError: several stored ids became one class (merged classes), so that there is no
            inverse.
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
