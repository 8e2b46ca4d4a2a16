"""Label maps of whole folders, at any scale.

The work is shared out over processes and machines; a restart goes on where it stopped;
every file is written whole or not at all; an image that cannot be read is reported and
the rest is done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgrseg.errors import CGRSegError, DataError, explain
from cgrseg.files import write_json
from cgrseg.inference.overlap import Behind
from cgrseg.inference.prediction import Prediction, Speed
from cgrseg.inference.predictor import Predictor
from cgrseg.inference.sources import FoundImage, find_images

RECORD = "prediction.json"
PARTS = ("labels", "overlays")
"""Folders of results below the one that is asked for."""
_WRITERS = 4  # threads that encode and write results


@dataclass
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
    progress: Callable[[int, int], None] | None = None,
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
        checkpoint: named in `prediction.json`, and compared on a restart.
        progress: called with images finished and images in all, of this process.

    Raises:
        DataError: no images, or `out` holds results of another checkpoint or of other
            settings and `overwrite` is not set.
        EnvironmentProblem: results cannot be written.
    """
    folder = Path(out)
    mine = find_images(inputs, leave_out=[folder / part for part in PARTS])[rank::world_size]
    _record(predictor, folder, checkpoint, overwrite)
    report = FolderReport()

    def targets(image: FoundImage) -> tuple[Path, Path]:
        return folder / "labels" / f"{image.name}.png", folder / "overlays" / f"{image.name}.jpg"

    todo: list[FoundImage] = []
    for image in mine:
        labels, picture = targets(image)
        finished = labels.is_file() and (picture.is_file() or not overlays)
        if finished and not overwrite:
            report.kept.append(image.path)
        else:
            todo.append(image)
    predictions = predictor.stream(
        (image.path for image in todo), batch_size=batch_size, on_error="yield"
    )

    def write(image: FoundImage, found: Prediction) -> None:
        labels, picture = targets(image)
        # The labels come last: their presence says that this image is finished.
        if overlays:
            found.save_overlay(picture, opacity, legend=legend)
        found.save_labels(labels)

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
    return report


def _record(
    predictor: Predictor, folder: Path, checkpoint: str | Path | None, overwrite: bool
) -> None:
    """Note what makes the results; refuse to mix them with others."""
    now: dict[str, Any] = {
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "classes": list(predictor.classes),
        "test": predictor.test.model_dump(mode="json"),
    }
    path = folder / RECORD
    # Looked for before the record: every process writes the record before its first label.
    strangers = [p for part in PARTS for p in sorted((folder / part).rglob("*")) if p.is_file()]
    if strangers and not path.is_file() and not overwrite:
        raise DataError(
            explain(
                folder,
                found=f"files that are not known to be results ({strangers[0]})",
                expected=f"an empty folder, or one with results and their {RECORD}",
                remedy="choose another folder; --overwrite replaces files of the same names",
            )
        )
    if path.is_file() and not overwrite:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if before != now:
            raise DataError(
                explain(
                    folder,
                    found="results of another checkpoint or of other settings "
                    f"(see {RECORD} in it)",
                    expected="an empty folder, or one with results of the same kind to go on with",
                    remedy="choose another folder, or overwrite these results (--overwrite)",
                )
            )
        return
    write_json(path, now)
