"""Label maps of whole folders and painted videos, written to files.

A folder's work can be shared out over processes and machines; a restart goes on where it stopped;
every file is written whole or not at all; an image that cannot be read is reported and the rest is
done.  :mod:`cgrseg.inference.records` decides which results are kept.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cgrseg.addresses import Address
from cgrseg.data.label_files import label_note
from cgrseg.errors import CGRSegError, DataError, option
from cgrseg.files import UnusableNameError
from cgrseg.inference.background import BackgroundWriter, map_in_threads, read_ahead
from cgrseg.inference.confidence import save_confidence
from cgrseg.inference.decode import Confidence
from cgrseg.inference.image_sources import FoundImage, find_images
from cgrseg.inference.prediction import Prediction, Speed
from cgrseg.inference.predictor import Predictor
from cgrseg.inference.records import PARTS, FolderRecord, Maker, scores_in
from cgrseg.inference.video import VideoReader, VideoWriter
from cgrseg.locks import locking
from cgrseg.progress import Progress

if TYPE_CHECKING:
    from cgrseg.inference.annotation_files import AnnotationSettings, SavedAnnotations

_WRITERS = 4  # threads that encode and write results
_READERS = 8  # threads that compare existing results with their images


@dataclass(repr=False)
class FolderReport:
    """Outcome of the images of this process.

    Attributes:
        done: images that were predicted now.
        kept: images whose results were there already.
        failed: files that could not be used, each with its error.
        speed: speed of the network; reading and writing run at the same time.
        saved: outcome of the annotation files; None: none were asked for, or there are several
            processes.
    """

    done: list[Path | Address] = field(default_factory=list)
    kept: list[Path | Address] = field(default_factory=list)
    failed: list[tuple[Path | Address, CGRSegError]] = field(default_factory=list)
    speed: Speed = field(default_factory=Speed)
    saved: SavedAnnotations | None = None

    def __repr__(self) -> str:
        return (
            f"FolderReport({len(self.done)} done, {len(self.kept)} kept, {len(self.failed)} failed)"
        )

    @property
    def count(self) -> int:
        """Number of images that are dealt with."""
        return len(self.done) + len(self.kept) + len(self.failed)


@dataclass(frozen=True)
class FolderOutput:
    """Which files a folder of results gets, and how they look; worker processes get it too.

    Attributes:
        folder: folder of the results.
        overlays: also write the images with their labels laid over them.
        legend: add class names and shares at the side of the overlays.
        opacity: opacity of the labels in the overlays, 0..1.
        confidence: also write `confidence/<name>.png` (:mod:`cgrseg.inference.confidence`).
        scores: keep the scores of regions in the label files, for annotation files.
    """

    folder: Path
    overlays: bool = True
    legend: bool = True
    opacity: float = 0.5
    confidence: bool = False
    scores: bool = False

    @property
    def parts(self) -> list[Path]:
        """Subfolders of the results, which are no inputs."""
        return [self.folder / part for part in PARTS]

    def labels(self, image: FoundImage) -> Path:
        """Label file of an image."""
        return self.folder / "labels" / f"{image.name}.png"

    def _others(self, image: FoundImage) -> tuple[Path, Path]:
        """Overlay and confidences of an image."""
        folder, name = self.folder, image.name
        return folder / "overlays" / f"{name}.jpg", folder / "confidence" / f"{name}.png"

    def record(self, maker: Maker, checkpoint: str | Path | None, overwrite: bool) -> FolderRecord:
        """The record of the folder; arguments and errors are those of :class:`FolderRecord`."""
        look = {"opacity": self.opacity, "legend": self.legend} if self.overlays else None
        return FolderRecord(maker, checkpoint, self.folder, look, overwrite)

    def kept(
        self, images: Sequence[FoundImage], record: FolderRecord, overwrite: bool
    ) -> Iterator[bool]:
        """Whether the results of each image are there and are kept.

        Raises:
            DataError: the map of another image in another place.
        """

        def keeps(image: FoundImage) -> bool:
            overlay, sure = self._others(image)
            labels = self.labels(image)
            # os.path, since Path.is_file raises for names that are too long.
            finished = os.path.isfile(labels) and (os.path.isfile(overlay) or not self.overlays)
            finished = finished and (os.path.isfile(sure) or not self.confidence)
            return finished and record.keeps(labels, image.path, scored=self.scores)

        if overwrite:
            return itertools.repeat(False, len(images))
        return map_in_threads(keeps, images, _READERS)

    def label(
        self,
        predictor: Predictor,
        images: Sequence[FoundImage],
        record: FolderRecord,
        *,
        batch_size: int = 1,
        confidence: Confidence = False,
    ) -> Iterator[tuple[FoundImage, Prediction | CGRSegError]]:
        """Label images and write their files.

        Args:
            predictor: labels the images.
            images: files with the names of their results.
            record: record of the folder.
            batch_size: maximum number of images of equal size per batch.
            confidence: confidences of the predictions, where the network gives them.

        Yields:
            Each image in its order, when its files are written, or with its error.

        Raises:
            EnvironmentProblem: results cannot be written.
        """
        # Exports that give label maps have no confidence, so regions have no scores.
        given = (self.scores or confidence) if predictor.backend.output == "logits" else False
        predictions = predictor.stream(
            (image.path for image in images),
            confidence=self.confidence or given,
            batch_size=batch_size,
            on_error="yield",
            side_by_side=len(images) > batch_size,
        )
        most = 2 * _WRITERS
        waiting: deque[
            tuple[FoundImage, Prediction | CGRSegError, Future[UnusableNameError | None] | None]
        ] = deque()
        with BackgroundWriter(_WRITERS, waiting=most) as writing:
            for image, (_, found) in zip(images, predictions, strict=True):
                written = None
                if isinstance(found, Prediction):
                    written = writing.add(self._write, image, found, record)
                waiting.append((image, found, written))
                while waiting and (
                    len(waiting) > most or waiting[0][2] is None or waiting[0][2].done()
                ):
                    first, result, job = waiting.popleft()
                    yield first, (job and job.result()) or result
            for image, found, written in waiting:
                yield image, (written and written.result()) or found

    def _write(
        self, image: FoundImage, found: Prediction, record: FolderRecord
    ) -> UnusableNameError | None:
        overlay, sure = self._others(image)
        try:
            # The labels come last: their presence means that this image is finished.
            if self.overlays:
                found.save_overlay(overlay, self.opacity, legend=self.legend)
            if self.confidence and found.confidence is not None:
                save_confidence(sure, found.confidence)
            scores = ""
            if self.scores:
                from cgrseg.inference.annotation_files import scores_of

                scores = scores_of(found)
            found.save_labels(self.labels(image), note=record.note(found, image.path, scores))
        except UnusableNameError as error:
            return error
        return None


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
    annotations: AnnotationSettings | None = None,
    progress: Progress | None = None,
    confidence: bool = False,
    leave_out: Iterable[Path] = (),
) -> FolderReport:
    """Write label maps (and overlays) of many images.

    Results are `out/labels/<name>.png` (ids as indices, in the colors of the classes) and
    `out/overlays/<name>.jpg`; `out/prediction.json` states what made them.

    Args:
        predictor: labels the images.
        inputs: files, folders and glob patterns, or addresses of these.
        out: folder of the results.
        overlays: also write the images with their labels laid over them.
        legend: add class names and shares at the side of the overlays.
        opacity: opacity of the labels in the overlays, 0..1.
        overwrite: predict images again whose results are there.
        batch_size: maximum number of images of equal size per batch.
        rank: this process takes every `world_size`-th image, from the rank-th on.
        world_size: number of processes; they need not know of each other.
        checkpoint: source of the network, recorded in `prediction.json`.
        annotations: also write annotation files to `out/<format>/`.  Of several processes, none
            writes them; the same call in one process does, and keeps the label maps.
        progress: called with the finished images and all images of this process.
        confidence: also write `out/confidence/<name>.png` (:mod:`cgrseg.inference.confidence`).
        leave_out: folders whose files are no inputs; those of the results never are.

    Raises:
        DataError: no images, or a video among them; or `out` holds results of other
            weights, of another precision, of other settings or of other images, and
            `overwrite` is not set.
        EnvironmentProblem: results cannot be written.
    """
    folder = Path(out)
    output = FolderOutput(folder, overlays, legend, opacity, confidence, annotations is not None)
    channels = predictor.test.image_channels
    images = find_images(inputs, leave_out=[*output.parts, *leave_out], channels=channels)
    images = images[rank::world_size]
    maker = Maker.of(predictor, checkpoint)
    record = output.record(maker, checkpoint, overwrite)
    report = FolderReport()
    todo: list[FoundImage] = []
    for image, kept in zip(images, output.kept(images, record, overwrite), strict=True):
        if kept:
            report.kept.append(image.path)
        else:
            todo.append(image)
    predictor.backend.expect(len(todo))
    for image, found in output.label(predictor, todo, record, batch_size=batch_size):
        if isinstance(found, Prediction):
            report.done.append(image.path)
            report.speed.add(found.timing)
        else:
            report.failed.append((image.path, found))
        if progress is not None:
            progress(report.count, len(images))
    if annotations is not None and world_size == 1:
        add_annotations(output, images, report, maker, annotations, overwrite)
    # With several processes, none knows when the others are done.
    done = world_size == 1 and not report.failed
    record.finish(predictor.backend.choice, overwritten=done)
    return report


def add_annotations(
    output: FolderOutput,
    images: Iterable[FoundImage],
    report: FolderReport,
    maker: Maker,
    annotations: AnnotationSettings,
    overwrite: bool,
) -> None:
    """Write the annotation files of the usable images of a report, and add to the report."""
    from cgrseg.inference.annotation_files import save_annotations

    usable = {*report.done, *report.kept}
    labeled = [(image, output.labels(image)) for image in images if image.path in usable]
    report.saved = save_annotations(
        output.folder,
        ((image, labels, scores_in(label_note(labels))) for image, labels in labeled),
        maker.made["classes"],
        maker.palette,
        annotations,
        overwrite=overwrite,
    )
    report.failed += report.saved.failed


@dataclass(frozen=True)
class VideoReport:
    """Outcome of a video.

    Attributes:
        source: the video.
        target: the painted video.
        frames: number of frames that were painted and written.
        speed: speed of the network.
        problem: error of a video that is cut off after these frames; else None.
        note: remark about frames that the video states and lacks; else empty.
    """

    source: Path
    target: Path
    frames: int
    speed: Speed
    problem: DataError | None = None
    note: str = ""


def refuse_taken(
    target: Path, sources: Iterable[Path], itself: str, overwrite: bool = False
) -> None:
    """Refuse a target that exists; a file of the source is never replaced.

    Args:
        target: file to be written.
        sources: files that it is made from, which may be missing.
        itself: what the target is when it is one of them.
        overwrite: another file may be replaced.

    Raises:
        DataError: the target is there.
    """
    same = target.exists() and any(one.exists() and target.samefile(one) for one in sources)
    if same or (target.exists() and not overwrite):
        raise DataError(
            target,
            found=itself if same else "a file of that name",
            expected="a name that is free",
            remedy="choose another name"
            + ("" if same else f", or replace it with {option('--overwrite')}"),
        )


@locking(lambda given: Path(given["out"]).parent)
def predict_video(
    predictor: Predictor,
    source: str | Path,
    out: str | Path,
    *,
    opacity: float = 0.5,
    overwrite: bool = False,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> VideoReport:
    """Paint the labels over every frame of a video.

    Frames are read, labeled and written at the same time.  The rate is the video's average rate;
    sound is not copied.  If only the first part of a video can be read, its frames are written and
    the report says so; any other problem leaves the target as it was.

    Args:
        predictor: labels the frames.
        source: the video.
        out: target, whose suffix chooses the format (see :mod:`cgrseg.inference.video`).
        opacity: opacity of the labels, 0..1.
        overwrite: replace an existing file.
        batch_size: maximum number of frames per batch.
        progress: called with the finished frames and all frames that the video states.

    Raises:
        DataError: a video without readable frames, an existing target, or a frame for which the
            network gives NaN or infinite values.
        EnvironmentProblem: the target cannot be written.
    """
    source, out = Path(source), Path(out)
    refuse_taken(out, [source], "the video itself", overwrite)
    painted = 0
    speed = Speed()
    with (
        VideoReader(source) as video,
        contextlib.closing(read_ahead(video, 4 * batch_size)) as frames,
        VideoWriter(out, video.rate) as writer,
        BackgroundWriter(threads=1, waiting=4 * batch_size) as encoding,
    ):
        predictor.backend.expect(video.length)
        for _, found in predictor.stream(frames, batch_size=batch_size, side_by_side=True):
            if not isinstance(found, Prediction):
                raise found
            encoding.add(lambda one: writer.add(one.overlay(opacity)), found)
            speed.add(found.timing)
            painted += 1
            if progress is not None:
                progress(painted, max(painted, video.length))
    note = "" if video.cut_off else video.shortfall
    return VideoReport(source, out, painted, speed, video.problem(), note)
