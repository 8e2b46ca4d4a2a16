"""Label maps of whole folders, at any scale.

The work is shared out over processes and machines; a restart goes on where it stopped;
every file is written whole or not at all; an image that cannot be read is reported and
the rest is done.

What made the maps (weights, precision, settings) stands in `prediction.json`, and a digest
of it in every label file, with one of the image's bytes as they were decoded
(:mod:`cgrseg.provenance`): a restart never takes the map of another network or of another image
for its own.  While `overwriting` stands in `prediction.json`, an `overwrite` was stopped half
way, and every map without the right note is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgrseg.data.image_files import image_digest
from cgrseg.data.label_files import label_note
from cgrseg.errors import CGRSegError, DataError, option
from cgrseg.files import UnusableNameError, write_json
from cgrseg.inference.frames import is_video
from cgrseg.inference.overlap import Behind
from cgrseg.inference.prediction import Prediction, Speed
from cgrseg.inference.predictor import Predictor
from cgrseg.inference.sources import FoundImage, find_images
from cgrseg.input_files import open_input, read_input_text
from cgrseg.locks import locking
from cgrseg.progress import Progress
from cgrseg.provenance import path_digest, settings_digest

RECORD = "prediction.json"
PARTS = ("labels", "overlays")
"""Folders of results below the one that is asked for."""
_WRITERS = 4  # threads that encode and write results


@dataclass(repr=False)
class FolderReport:
    """What became of the images of this process.

    Attributes:
        done: images that were predicted now.
        kept: images whose results were there already.
        failed: files that could not be used, with the reason.
        speed: of the network; reading and writing go on beside it.
    """

    done: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, CGRSegError]] = field(default_factory=list)
    speed: Speed = field(default_factory=Speed)

    def __repr__(self) -> str:
        return (
            f"FolderReport({len(self.done)} done, {len(self.kept)} kept, {len(self.failed)} failed)"
        )


@locking(
    lambda given: given["out"],
    below=True,
    share=lambda given: f"share of {given['world_size']}" if given["world_size"] > 1 else "",
)
def predict_folder(
    predictor: Predictor,
    inputs: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    overlays: bool = True,
    legend: bool = True,
    opacity: float = 0.5,
    overwrite: bool = False,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> FolderReport:
    """Write label maps (and overlays) of many images.

    Results are `out/labels/<name>.png` (ids as indices, in the classes' colours) and
    `out/overlays/<name>.jpg`; `out/prediction.json` says what made them.

    Args:
        predictor: labels the images.
        inputs: files, folders and glob patterns.
        out: folder of the results.
        overlays: also write pictures of the labels over the photos.
        legend: with names and shares at their side.
        opacity: of the labels in the overlays, 0..1.
        overwrite: predict images again whose results are there.
        batch_size: images of equal size that go through the network together.
        rank: this process takes every `world_size`-th image, from the rank-th on.
        world_size: number of processes; they need not know of each other.
        checkpoint: where the network comes from, named in `prediction.json`.
        progress: called with images finished and images in all, of this process.

    Raises:
        DataError: no images, or a video among them; or `out` holds results of other
            weights, of another precision, of other settings or of other photos, and
            `overwrite` is not set.
        EnvironmentProblem: results cannot be written.
    """
    folder = Path(out)
    images = find_images(inputs, leave_out=[folder / part for part in PARTS])
    _refuse_videos(images)
    mine = images[rank::world_size]
    painted = {"opacity": opacity, "legend": legend} if overlays else None
    now, maps, overwriting = _record(predictor, folder, checkpoint, painted, overwrite)
    look = "-" if painted is None else settings_digest(painted)
    report = FolderReport()

    def targets(image: FoundImage) -> tuple[Path, Path]:
        return folder / "labels" / f"{image.name}.png", folder / "overlays" / f"{image.name}.jpg"

    todo: list[FoundImage] = []
    for image in mine:
        labels, picture = targets(image)
        # os.path, since Path.is_file raises for names that are too long.
        finished = os.path.isfile(labels) and (os.path.isfile(picture) or not overlays)
        if finished and not overwrite and _is_of(labels, maps, look, image.path, overwriting):
            report.kept.append(image.path)
        else:
            todo.append(image)
    unwritten: list[tuple[Path, CGRSegError]] = []
    predictions = predictor.stream(
        (image.path for image in todo), batch_size=batch_size, on_error="yield"
    )

    def write(image: FoundImage, found: Prediction) -> None:
        try:
            write_both(image, found)
        except UnusableNameError as error:
            unwritten.append((image.path, error))

    def write_both(image: FoundImage, found: Prediction) -> None:
        labels, picture = targets(image)
        # The labels come last: their presence says that this image is finished.
        if overlays:
            found.save_overlay(picture, opacity, legend=legend)
        found.save_labels(labels, note=f"{maps} {look} {found.digest} {path_digest(image.path)}")

    with Behind(threads=min(_WRITERS, os.cpu_count() or 1), waiting=2 * _WRITERS) as writing:
        for image, (_, found) in zip(todo, predictions, strict=True):
            if isinstance(found, Prediction):
                writing.add(write, image, found)
                report.done.append(image.path)
                report.speed.add(found.timing)
            else:
                report.failed.append((image.path, found))
            if progress is not None:
                progress(len(report.done) + len(report.kept) + len(report.failed), len(mine))
    for path, error in unwritten:
        report.done.remove(path)
        report.failed.append((path, error))
    # Of several processes none knows when the others are through.
    if overwriting and world_size == 1 and not report.failed:
        write_json(folder / RECORD, now)
    return report


def _refuse_videos(images: Iterable[FoundImage]) -> None:
    for image in images:
        if is_video(image.path):
            raise DataError(
                image.path,
                found="a video",
                expected="photos, each with a label map of its own",
                remedy="use cgrseg.inference.predict_video, or `cgrseg predict` with videos only",
            )


def made_by(predictor: Predictor, checkpoint: str | Path | None) -> dict[str, Any]:
    """What decides the label maps of a predictor, in plain types: the record of its results."""
    return {
        "weights": _weights(predictor, checkpoint),
        "precision": predictor.backend.precision,
        "compile": predictor.backend.compiled,
        "classes": list(predictor.classes),
        "test": predictor.test.model_dump(mode="json"),
    }


def _record(
    predictor: Predictor,
    folder: Path,
    checkpoint: str | Path | None,
    painted: dict[str, Any] | None,
    overwrite: bool,
) -> tuple[dict[str, Any], str, bool]:
    """Note what makes the results; refuse to mix them with others.

    Returns:
        What stands in the record once all is done, the digest of what makes the maps, and
        whether an overwriting is under way.
    """
    maker = made_by(predictor, checkpoint)
    # As it was before there was this field, so that older results are still known.
    digest = settings_digest(
        {key: value for key, value in maker.items() if key != "compile" or value}
    )
    name = None if checkpoint is None else str(checkpoint)
    now = {"checkpoint": name, **maker, "overlays": painted}
    path = folder / RECORD
    # Looked for before the record: every process writes the record before its first label.
    strangers = [p for part in PARTS for p in sorted((folder / part).rglob("*")) if p.is_file()]
    if strangers and not path.is_file() and not overwrite:
        raise DataError(
            folder,
            found=f"files that are not known to be results ({strangers[0]})",
            expected=f"an empty folder, or one with results and their {RECORD}",
            remedy=f"choose another folder; {option('--overwrite')} replaces files of the "
            "same names",
        )
    overwriting = overwrite and bool(strangers)
    if path.is_file() and not overwrite:
        before = {"compile": False, **_read(path)}
        overwriting = bool(before.get("overwriting"))
        others = [key for key, value in maker.items() if before.get(key) != value]
        # Pictures can be added to maps; two looks of them are not mixed.
        if painted is not None and before.get("overlays") not in (None, painted):
            others.append("overlays")
        if others:
            raise DataError(
                folder,
                found=f"results of other {', '.join(others)} (see {RECORD} in it)",
                expected="an empty folder, or one with results of the same kind to go on with",
                remedy="choose another folder, or replace these results with "
                f"{option('--overwrite')}",
            )
        if painted is None or before.get("overlays") == painted:
            return now | {"overlays": before.get("overlays")}, digest, overwriting
    write_json(path, now | {"overwriting": True} if overwriting else now)
    return now, digest, overwriting


def _is_of(labels: Path, maps: str, look: str, image: Path, overwriting: bool) -> bool:
    """Whether a label file is what this network makes of this image as it is now.

    A file without a note counts as ours, since somebody may have retouched it, unless an
    overwriting is under way.  An image that was replaced is predicted again.

    Raises:
        DataError: it is the map of an image in another place, which has other content.
    """
    note = label_note(labels)
    if note is None:
        return not overwriting
    # Notes of earlier versions do not tell the image, or not where it lay.
    made_by, pictures, digest, place = [*note.split(" "), "", "", ""][:4]
    now = image_digest(image)
    if now is None:
        return False  # its reader says what is wrong with it
    if digest == now:
        return made_by == maps and look in ("-", pictures)
    if not digest or overwriting or place == path_digest(image):
        return False
    raise DataError(
        labels,
        found=f"the map of another image than {image}, under the same name",
        expected="results of the same images to go on with",
        remedy=f"choose another folder, or replace these results with {option('--overwrite')}",
    )


def _weights(predictor: Predictor, checkpoint: str | Path | None) -> str | None:
    """Digest of the network, or of the file that it comes from; else that file's name."""
    known = predictor.backend.digest()
    if known is not None or checkpoint is None:
        return known
    files = sorted(p for p in [Path(checkpoint), *Path(checkpoint).rglob("*")] if p.is_file())
    if not files:
        return str(checkpoint)
    digest = hashlib.sha256()
    for file in files:
        with open_input(file) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_input_text(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
