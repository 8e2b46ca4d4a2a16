"""Predictor: a network with all that it needs to label images.

>>> predictor = Predictor.from_pretrained("best.pth")
>>> prediction = predictor("street.jpg")
>>> prediction.save_overlay("street_labels.png")
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import numpy as np

from cgrseg.addresses import Address
from cgrseg.class_names import (
    check_class_names,
    counted,
    usable_names,
    usable_palette,
)
from cgrseg.config.fields import LARGEST_BATCH
from cgrseg.config.schema import TestConfig
from cgrseg.config.settings import stored_test_settings
from cgrseg.cpus import usable_cpus
from cgrseg.data.channels import as_picture, read_pixels_with_digest
from cgrseg.data.geometry import Image
from cgrseg.data.guess import names_and_colors
from cgrseg.data.image_files import read_content
from cgrseg.devices import fewer_threads, use_threads
from cgrseg.errors import CGRSegError, ConfigError, DataError
from cgrseg.formats import is_exported
from cgrseg.inference.backends import Backend
from cgrseg.inference.background import Budget, map_in_threads
from cgrseg.inference.decode import Confidence, Segmentation
from cgrseg.inference.exported_backend import open_exported
from cgrseg.inference.image_sources import (
    as_image,
    expand,
    kind_of,
    name_of,
    read_addresses_ahead,
    with_frames,
)
from cgrseg.inference.prediction import Color, Prediction, Timing
from cgrseg.inference.segmenting import (
    PIXELS_AT_ONCE,
    PlannedImage,
    grouped,
    is_plain,
    plan,
    refuse_other_channels,
    segment_batch,
    segment_group,
    share_threads,
)
from cgrseg.inference.video import Frame
from cgrseg.precision import AnyPrecision

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger("cgrseg.inference")


class Predictor:
    """A network with all that it needs to label images.

    Args:
        backend: runs the network.
        test: test settings: scale, mode, ratios, flip.
        classes: names in id order; None: guessed from their number, else numbered.
        palette: RGB 0..255 per class; None: guessed in the same way, else generated.

    Raises:
        ConfigError: names or colors that do not match the network's outputs, or names that
            are empty or repeated.
    """

    def __init__(
        self,
        backend: Backend,
        test: TestConfig | None = None,
        classes: Sequence[str] | None = None,
        palette: Sequence[Color] | None = None,
    ) -> None:
        self.backend = backend
        self.test = test if test is not None else TestConfig()
        count = backend.num_classes
        classes, palette = names_and_colors(count, classes, palette)
        for what, given in (("classes", len(classes)), ("palette", len(palette))):
            if given != count:
                raise ConfigError(
                    what,
                    found=f"{given} entries",
                    expected=f"{count}, one for each output of the network",
                    remedy="give the list that the network was trained with",
                )
        refuse_other_channels(backend, self.test)
        self.classes = check_class_names(classes, "classes", error=ConfigError)
        self.palette = tuple(palette)
        self._seen_sizes: set[tuple[int, int]] = set()

    def __repr__(self) -> str:
        long, short = self.test.scale
        return (
            f"Predictor({self.backend!r}, {counted(self.classes)}, {self.test.mode} images, "
            f"scale {long}x{short})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen_sizes": set()}  # nothing is warm where it arrives

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: str | None = None,
        precision: AnyPrecision = "fp32",
        *,
        test: TestConfig | None = None,
        channels_last: bool = False,
        compile: bool | Literal["auto"] = False,
        threads: int | None = None,
        trust_code: bool = False,
    ) -> Predictor:
        """Open a checkpoint or an exported file with its classes, palette and test settings.

        Args:
            path_or_hub_id: a `.pth` file, a folder of `save_pretrained`, a hub id, a name
                of :data:`cgrseg.published.PUBLISHED`, or a file of `cgrseg export` (`.onnx`,
                `.xml` of OpenVINO, `.pt2`).
            device: device of the network; None: a GPU if there is one, else the CPU.
            precision: "fp32", "bf16", "fp16" or "auto": bf16 where the device computes it in
                hardware, else fp32.
            test: test settings in place of the stored ones.
            channels_last: channels-last memory layout of the features.
            compile: predict several times faster after a compilation of about a minute per
                image size, which is cached on disk (see docs/speed.md).  It begins with the fourth
                image of a size; `predictor.backend.prepare(height, width)` does it beforehand.
                "auto": on a CPU, the fastest form that is ready without a compilation; its labels
                equal those of the network as published on more than 99.99 % of the pixels.
            threads: number of CPU threads of the whole process; None: all cores that it
                may use.
            trust_code: run the machine code of a compiled package (`cgrseg export --format
                aoti`).  It can do whatever you can, so it runs only when asked for; no other
                file holds code.

        Raises:
            ConfigError: a setting that an exported file does not have, or a compiled package
                without `trust_code`.
            WeightsError: a checkpoint that cannot be used.
            EnvironmentProblem: a missing device.
        """
        source = path_or_hub_id
        exported = is_exported(source)
        for name, given in (
            ("compile", compile and compile != "auto"),
            ("channels_last", channels_last),
        ):
            if exported and given:
                raise ConfigError(
                    name,
                    found=f"given for {source}, an exported file, which is optimized and laid out "
                    "already",
                    expected=f"{name} for checkpoints only",
                    remedy="leave it out, or predict with the checkpoint itself",
                )
        use_threads(threads)
        backend: Backend
        if exported:
            backend = open_exported(source, device, precision, trust_code=trust_code)
            about = backend.description
            stored = about.test
            classes = usable_names(about.classes, about.num_classes, source)
            palette = usable_palette(about.palette, about.num_classes, source)
        else:
            from cgrseg.inference.ready_backend import make_backend
            from cgrseg.models import load_model

            model = load_model(source)
            stored, classes, palette = model.preprocessing, model.classes, model.palette
            backend = make_backend(
                model, device, precision, compile=compile, channels_last=channels_last
            )
        use_threads(threads)  # again: PyTorch may have been loaded since
        test = stored_test_settings(stored, source) if test is None else test
        return cls(backend, test, classes, palette)

    def __call__(self, source: Any, *, confidence: bool = False, batch_size: int = 1) -> Any:
        """Label an image, or several.

        Args:
            source: a path or an address, bytes, an open file, a uint8 RGB array (H, W, 3), a tensor
                or a Pillow image gives one :class:`Prediction` (details:
                :func:`~cgrseg.inference.image_sources.as_image`); a list of these, a folder, a
                glob pattern or a video gives a list.  For more images than fit into memory use
                :meth:`stream`.
            confidence: also give each pixel's probability.
            batch_size: maximum number of images of equal size per batch.

        Raises:
            DataError: an image that cannot be used; the message names it.
        """
        found = [
            prediction
            for _, prediction in self.stream(
                expand(source, self.test.image_channels),
                confidence=confidence,
                batch_size=batch_size,
                on_error="raise",
            )
        ]
        return found[0] if kind_of(source) in ("file", "content", "object") else found

    def stream(
        self,
        sources: Iterable[Any] | Path | IO[bytes],
        *,
        confidence: Confidence = False,
        batch_size: int = 1,
        on_error: Literal["raise", "yield"] = "raise",
        side_by_side: bool = False,
    ) -> Iterator[tuple[Any, Prediction | CGRSegError]]:
        """Label images one after another while the next ones are read.

        Args:
            sources: images as in a call of the predictor, and videos, which are replaced by their
                frames; may be endless.  Or one path, folder, pattern, video, bytes or open file.
            confidence: also give each pixel's probability; "coarse": at an eighth of the size.
            batch_size: maximum number of images of equal size per batch.
            on_error: "yield" gives the error in the place of a prediction and goes on.
            side_by_side: on a CPU, label several images at the same time, each on its part of
                the threads: more images per second, and no waiting at every layer.  Until the
                iterator ends or is closed, PyTorch and OpenCV have fewer threads.

        Yields:
            The source and its prediction (or error), in order; the source of a video's frame
            is the :class:`~cgrseg.inference.video.Frame`.
        """
        if not 1 <= batch_size <= LARGEST_BATCH:
            raise ConfigError(
                "batch_size",
                found=repr(batch_size),
                expected=f"1 to {LARGEST_BATCH}",
                remedy="correct it, or leave it out for its default",
            )
        several = kind_of(sources) in ("list", "object")
        images = (
            cast(Iterable[Any], sources) if several else expand(sources, self.test.image_channels)
        )
        # On a CPU the network keeps all cores busy; a GPU is faster than one reader.
        readers = 1 if self.backend.on_cpu else min(8, usable_cpus())
        # Several batches are read at a time, so that images of equal size meet.
        together = batch_size if batch_size == 1 else 4 * batch_size
        framed = with_frames(images, together)
        pending = read_addresses_ahead(framed)
        with (
            contextlib.closing(framed),
            contextlib.closing(pending),
            ThreadPoolExecutor(max_workers=readers, thread_name_prefix="read-ahead") as pool,
        ):

            def read_next() -> list[tuple[Any, Future[_ReadImage]]]:
                return [
                    (source, pool.submit(self._read, source, ahead))
                    for source, ahead in itertools.islice(pending, together)
                ]

            def batches() -> Iterator[list[tuple[Any, _ReadImage | CGRSegError]]]:
                ahead = read_next()
                while ahead:
                    batch, ahead = ahead, read_next()
                    read: list[tuple[Any, _ReadImage | CGRSegError]] = []
                    for source, future in batch:
                        try:
                            read.append((source, future.result()))
                        except CGRSegError as error:
                            if on_error == "raise":
                                raise
                            read.append((source, error))
                    yield read

            labeled = self._labeled(batches(), confidence, batch_size, side_by_side)
            with contextlib.closing(labeled):
                for source, found in labeled:
                    if on_error == "raise" and isinstance(found, CGRSegError):
                        raise found
                    yield source, found

    def _labeled(
        self,
        batches: Iterator[list[tuple[Any, _ReadImage | CGRSegError]]],
        confidence: Confidence,
        batch_size: int,
        side_by_side: bool,
    ) -> Generator[tuple[Any, Prediction | CGRSegError], None, None]:
        """Label batches of read images in order: one after another, or side by side."""
        for first in batches:
            planned = [one.planned for _, one in first if isinstance(one, _ReadImage)]
            plan_of_work = (
                share_threads(self.backend, [one for one in planned if one is not None])
                if side_by_side
                else None
            )
            if plan_of_work is None:
                yield from self._label(first, confidence, batch_size)
                continue
            workers, threads = plan_of_work
            room = Budget(PIXELS_AT_ONCE)

            def label(
                read: list[tuple[Any, _ReadImage | CGRSegError]],
                workers: int = workers,
                room: Budget = room,
            ) -> list[tuple[Any, Prediction | CGRSegError]]:
                return list(self._label(read, confidence, batch_size, workers, room))

            with fewer_threads(threads):
                # Alone: what is done once per size is not done by several threads.
                yield from self._label(first, confidence, batch_size)
                with contextlib.closing(map_in_threads(label, batches, workers)) as labeled:
                    for found in labeled:
                        yield from found

    def warm_up(self, height: int, width: int, *, batch_size: int = 1) -> float:
        """Do what is done once per image size, so that no image waits for it.

        A compiled network is compiled for the size or loaded; one dummy image is predicted.

        Args:
            height: height of the images in pixels.
            width: width of the images in pixels.
            batch_size: number of images per batch.

        Returns:
            Duration in seconds.
        """
        start = time.perf_counter()
        image = np.zeros((height, width, self.backend.in_channels), dtype=np.uint8)
        images = [image] * batch_size
        if self.backend.compiled:
            asked = _Asked(self.backend)
            segment_batch(asked, images, self.test, batch_size=batch_size)
            on_cpu = self.backend.on_cpu  # which runs a batch image by image
            for images_at_once, rows, columns in asked.shapes:
                self.backend.prepare(rows, columns, 1 if on_cpu else images_at_once)
        segment_batch(self.backend, images, self.test, batch_size=batch_size)
        self._seen_sizes.add(plan(self.backend, images[0], self.test).size)
        return time.perf_counter() - start

    def _read(self, source: Any, ahead: CGRSegError | Future[bytes] | None = None) -> _ReadImage:
        """Read an image and make it the network's input, in a thread beside the network."""
        start = time.perf_counter()
        if isinstance(ahead, CGRSegError):
            raise ahead
        digest = sha256 = None
        if isinstance(source, (str, Path, Address)):
            content = read_content(source, "an image") if ahead is None else ahead.result()
            place = Address.of(source) or source
            image, digest = read_pixels_with_digest(place, self.test, content)
            sha256 = hashlib.sha256(content).hexdigest()
        else:
            image = as_image(source, self.test)
        # In other modes, settings that the backend cannot do end the stream: see _label.
        plain = is_plain(self.test)
        planned = plan(self.backend, image, self.test, with_input=True) if plain else None
        return _ReadImage(image, planned, time.perf_counter() - start, digest, sha256)

    def _label(
        self,
        read: list[tuple[Any, _ReadImage | CGRSegError]],
        confidence: Confidence,
        batch_size: int,
        workers: int = 1,
        room: Budget | None = None,
    ) -> Iterator[tuple[Any, Prediction | CGRSegError]]:
        planned = {
            number: one.planned or plan(self.backend, one.image, self.test)
            for number, (_, one) in enumerate(read)
            if isinstance(one, _ReadImage)
        }
        labeled: dict[int, tuple[Segmentation | DataError, float, bool]] = {}
        for group in grouped(self.backend, planned, batch_size):
            pixels = sum(one.pixels for one in group.values())
            with room.hold(pixels) if room is not None else contextlib.nullcontext():
                labeled.update(self._label_group(group, confidence, workers))
        for number, (source, one) in enumerate(read):
            if isinstance(one, CGRSegError):
                yield source, one
                continue
            result, seconds, warm = labeled.pop(number)
            if isinstance(result, DataError):
                yield source, DataError(f"{name_of(source)}: {result}")
                continue
            frame = source.number if isinstance(source, Frame) else None
            file = source if frame is None else source.source
            path = Path(file) if isinstance(file, (str, Path)) else None
            yield (
                source,
                Prediction(
                    labels=result.labels,
                    classes=self.classes,
                    palette=self.palette,
                    image=as_picture(one.image, self.test.image_channels),
                    confidence=result.confidence,
                    source=Address.of(file) or path,
                    timing=Timing(one.seconds, seconds, warm),
                    frame=frame,
                    digest=one.digest,
                    sha256=one.sha256,
                ),
            )

    def _label_group(
        self, group: Mapping[int, PlannedImage], confidence: Confidence, workers: int = 1
    ) -> dict[int, tuple[Segmentation | DataError, float, bool]]:
        """Label images of equal network inputs together.

        Returns:
            Result, an equal share of the seconds (of several workers too), and whether the size
            was warm, by number.
        """
        start, prepared = time.perf_counter(), self.backend.seconds_preparing
        found: Sequence[Segmentation | DataError]
        try:
            found = segment_group(self.backend, list(group.values()), confidence=confidence)
        except DataError as error:
            if len(group) > 1:  # one of them is to blame; each runs alone to find it
                alone = [
                    self._label_group({n: one}, confidence, workers) for n, one in group.items()
                ]
                return {n: result for part in alone for n, result in part.items()}
            found = [error]
        share = (time.perf_counter() - start) / len(group) / workers
        size = next(iter(group.values())).size
        warm = size in self._seen_sizes and self.backend.seconds_preparing == prepared
        self._seen_sizes.add(size)
        return {n: (result, share, warm) for n, result in zip(group, found, strict=True)}


@dataclass(frozen=True)
class _ReadImage:
    image: Image
    planned: PlannedImage | None
    seconds: float
    digest: str | None
    sha256: str | None


class _Asked(Backend):
    """A backend that records the shapes of its inputs and computes nothing."""

    def __init__(self, backend: Backend) -> None:
        self.device, self.num_classes = backend.device, backend.num_classes
        self.in_channels = backend.in_channels
        self.shapes: dict[tuple[int, int, int], None] = {}

    def logits(self, batch: Tensor) -> Tensor:
        import torch

        images, _, height, width = batch.shape
        self.shapes[(images, height, width)] = None
        return torch.zeros(images, self.num_classes, height // 8, width // 8, device=self.device)
