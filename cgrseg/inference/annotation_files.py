"""Annotation files of a folder of label maps, for labeling tools.

They are made from the label files, which also hold the scores of their regions: a repeated command
writes them anew without predicting again.  `saved.json` in the folder has a digest of each written
file.  A file with another digest was changed since (somebody corrected it in LabelMe), or came from
elsewhere: it is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from cgrseg.addresses import Address
from cgrseg.data.convert.annotation_writer import AnnotatedImage, AnnotationWriter, RegionShape
from cgrseg.data.convert.formats import writers
from cgrseg.data.convert.tracing import EXACT_TOLERANCE, region_scores, trace_regions
from cgrseg.data.label_files import read_label
from cgrseg.errors import CGRSegError, ConfigError, DataError, option
from cgrseg.files import atomic_write, write_json
from cgrseg.inference.image_sources import FoundImage
from cgrseg.inference.prediction import Prediction
from cgrseg.inference.records import read_record
from cgrseg.input_files import open_input
from cgrseg.provenance import content_digest

RECORD = "saved.json"


@dataclass(frozen=True)
class AnnotationSettings:
    """Which annotation files are written, and how.

    Attributes:
        formats: names of formats, as in `cgrseg data convert`.
        shape: regions as polygons or masks.
        tolerance: largest distance in pixels of a dropped point of a polygon.  Up to 0.35, the
            polygons give the label map back exactly.

    Raises:
        ConfigError: an unknown format, a shape that a format lacks, or a tolerance out of range.
    """

    formats: Sequence[str] = ()
    shape: RegionShape = "polygon"
    tolerance: float = EXACT_TOLERANCE

    def __post_init__(self) -> None:
        known = writers() if self.formats else {}
        spelled = {name.replace("-", ""): name for name in known}
        names = [spelled.get(name.replace("-", "").lower(), name) for name in self.formats]
        object.__setattr__(self, "formats", tuple(dict.fromkeys(names)))
        for name in self.formats:
            if name not in known:
                raise ConfigError(
                    option("--save"),
                    found=repr(name),
                    expected=f"one of {', '.join(known)}",
                    remedy="correct the name",
                )
            if self.shape not in known[name].shapes:
                raise ConfigError(
                    option("--save-shape"),
                    found=f"{self.shape!r} for {name}",
                    expected=" or ".join(known[name].shapes),
                    remedy="choose another shape, or do this format alone: label maps are kept",
                )
        if not 0 <= self.tolerance <= 100:
            raise ConfigError(
                option("--save-tolerance"),
                found=str(self.tolerance),
                expected="0 to 100 pixels",
                remedy=f"leave it out for {EXACT_TOLERANCE}, which changes no pixel",
            )


@dataclass
class SavedAnnotations:
    """Outcome of :func:`save_annotations`.

    Attributes:
        images: number of images in the files.
        regions: number of regions.
        places: folder of each format.
        advice: how to import the files of each format.
        kept: files that were changed since they were written, and stay as they are.
        failed: images that could not be written, each with its error.
    """

    images: int = 0
    regions: int = 0
    places: dict[str, Path] = field(default_factory=dict)
    advice: dict[str, str] = field(default_factory=dict)
    kept: list[Path] = field(default_factory=list)
    failed: list[tuple[Path | Address, CGRSegError]] = field(default_factory=list)


def scores_of(found: Prediction) -> str:
    """Mean confidence of each region in thousandths, as text; `-`: unknown."""
    if found.confidence is None:
        return "-"
    scores = region_scores(found.labels, found.confidence, len(found.classes))
    return ",".join(map(str, np.rint(scores * 1000).astype(int).tolist()))


def save_annotations(
    folder: Path,
    images: Iterable[tuple[FoundImage, Path, str | None]],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    settings: AnnotationSettings,
    *,
    overwrite: bool = False,
) -> SavedAnnotations:
    """Write the annotation files of label maps.

    Args:
        folder: `folder/<format>/` gets the files.
        images: each image with its label file and the text of :func:`scores_of`.
        classes: names in id order.
        palette: RGB 0..255 per class.
        settings: formats, shape and tolerance.
        overwrite: replace files that were changed since they were written.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    report = SavedAnnotations()
    with _Record(folder, overwrite, report.kept) as record, contextlib.ExitStack() as open_files:
        per_image: list[tuple[Path, AnnotationWriter]] = []
        joint: list[tuple[Path, AnnotationWriter, Callable[[str], None]]] = []
        for name in settings.formats:
            writer = writers()[name](classes, palette, settings.shape)
            place = folder / name
            for companion, text in writer.companions().items():
                record.write(place / companion, text)
            if "{}" in writer.file:
                per_image.append((place, writer))
            else:
                write = open_files.enter_context(record.joint(place / writer.file))
                write(writer.begin())
                joint.append((place, writer, write))
            report.places[name] = place
            report.advice[name] = writer.advice
        for image, label_file, scores in images:
            try:
                annotated = _annotated(image, label_file, scores, len(classes), settings.tolerance)
                for place, writer in per_image:
                    target = place / writer.file.format(image.name)
                    record.write(target, writer.add(annotated, target.parent))
            except DataError as error:  # an unreadable label file, or a name that is too long
                report.failed.append((image.path, error))
                continue
            for place, writer, write in joint:
                write(writer.add(annotated, place))
            report.images += 1
            report.regions += len(annotated.regions)
        for _, writer, write in joint:
            write(writer.end())
    return report


def _annotated(
    image: FoundImage, label_file: Path, scores: str | None, num_classes: int, tolerance: float
) -> AnnotatedImage:
    labels = read_label(label_file)
    height, width = labels.shape
    known = None if scores in (None, "-") else [int(each) / 1000 for each in scores.split(",")]
    regions = trace_regions(labels, num_classes, tolerance, known)
    name = PurePosixPath(image.name).parent / image.path.name
    return AnnotatedImage(image.path, name.as_posix(), height, width, regions)


class _Record:
    """Digests of the written files, kept in `saved.json`; writes files that may be replaced."""

    def __init__(self, folder: Path, overwrite: bool, kept: list[Path]) -> None:
        self._folder = folder
        self._overwrite = overwrite
        self._kept = kept
        self._digests = read_record(folder / RECORD)

    def __enter__(self) -> _Record:
        return self

    def __exit__(self, *_: object) -> None:
        write_json(self._folder / RECORD, self._digests)

    def write(self, path: Path, text: str) -> None:
        """Write a file, unless it was changed."""
        data = text.encode("utf-8", "backslashreplace")
        new = content_digest(data)
        present = _digest(path)
        if present not in (None, new) and not self._may_replace(path, present):
            self._kept.append(path)
            return
        if present != new:
            with atomic_write(path) as stream:
                stream.write(data)
        self._digests[self._key(path)] = new

    @contextlib.contextmanager
    def joint(self, path: Path) -> Iterator[Callable[[str], None]]:
        """A function that writes pieces of a file, or nothing if the file was changed."""
        present = _digest(path)
        if present is not None and not self._may_replace(path, present):
            self._kept.append(path)
            yield lambda text: None
            return
        digest = hashlib.blake2b(digest_size=16)  # as content_digest
        with atomic_write(path) as stream:

            def write(text: str) -> None:
                data = text.encode("utf-8", "backslashreplace")
                digest.update(data)
                stream.write(data)

            yield write
        self._digests[self._key(path)] = digest.hexdigest()

    def _may_replace(self, path: Path, present: str | None) -> bool:
        return self._overwrite or self._digests.get(self._key(path)) == present

    def _key(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


def _digest(path: Path) -> str | None:
    """Digest of a file; None: there is none."""
    if not os.path.lexists(path):
        return None
    with open_input(path) as stream:
        digest = hashlib.blake2b(digest_size=16)
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
