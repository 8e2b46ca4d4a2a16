"""From images to label maps in a few lines.

>>> predictor = Predictor.from_pretrained("best.pth")
>>> prediction = predictor("street.jpg")
>>> prediction.save_overlay("street_labels.png")
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from cgrseg.class_names import (
    check_class_names,
    counted,
    numbered_names,
    usable_names,
    usable_palette,
)
from cgrseg.config.schema import LARGEST_BATCH, TestConfig
from cgrseg.data.guess import guess_by_class_count
from cgrseg.data.image_files import read_image_with_digest
from cgrseg.devices import use_threads
from cgrseg.errors import CGRSegError, ConfigError, DataError, explain
from cgrseg.inference.backends import Backend
from cgrseg.inference.compiled_backend import make_backend
from cgrseg.inference.decode import Segmentation
from cgrseg.inference.exported import is_exported
from cgrseg.inference.exported_backend import ExportedBackend, open_exported
from cgrseg.inference.frames import Frame, is_video
from cgrseg.inference.opened import Opened, Unreadable, name_of, origin_of, with_frames
from cgrseg.inference.prediction import Colour, Prediction, Timing
from cgrseg.inference.segmenting import (
    PlannedImage,
    grouped,
    is_plain,
    plan,
    segment_batch,
    segment_group,
)
from cgrseg.inference.sources import as_image, find_images
from cgrseg.inference.stored import stored_test_settings
from cgrseg.models import load_model
from cgrseg.precision import AnyPrecision
from cgrseg.visual.palette import make_palette


class Predictor:
    """A network together with all that it needs to label images.

    Args:
        backend: runs the network.
        test: how images become input: scale, mode, ratios, flip.
        classes: names in id order; None: told by their number, or plain numbers.
        palette: RGB 0..255 per class; None: told likewise, or made.

    Raises:
        ConfigError: names or colours that do not match the network's outputs, or names that
            are empty or repeated.
    """

    def __init__(
        self,
        backend: Backend,
        test: TestConfig | None = None,
        classes: Sequence[str] | None = None,
        palette: Sequence[Colour] | None = None,
    ) -> None:
        self.backend = backend
        self.test = test if test is not None else TestConfig()
        count = backend.num_classes
        spec = guess_by_class_count(count) if classes is None else None
        if classes is None:
            classes = spec.classes if spec is not None else numbered_names(count)
        if palette is None and spec is not None:
            palette = spec.palette
        if palette is None:
            palette = [(int(r), int(g), int(b)) for r, g, b in make_palette(count)]
        for what, given in (("classes", len(classes)), ("palette", len(palette))):
            if given != count:
                raise ConfigError(
                    what,
                    found=f"{given} entries",
                    expected=f"{count}, one for each output of the network",
                    remedy="give the list that the network was trained with",
                )
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
        compile: bool = False,
        threads: int | None = None,
        trust_code: bool = False,
    ) -> Predictor:
        """Load a checkpoint; variant, classes, colours and test settings come from it.

        Args:
            path_or_hub_id: a `.pth` file, a folder of `save_pretrained`, a hub id, or a file
                of `cgrseg export` (`.onnx`, `.xml` of OpenVINO, `.pt2`).
            device: where to run; None: a GPU where there is one, else the CPU.
            precision: "fp32", "bf16", "fp16" or "auto": bf16 where the device computes it in
                hardware, else fp32.
            test: other settings than the checkpoint's.
            channels_last: memory layout of features.
            compile: predict several times faster after a compilation of about a minute per
                image size, which is kept for the next time (see docs/speed.md).  It begins
                with the fourth image of a size; `predictor.backend.prepare(height, width)`
                does it beforehand.
            threads: of the CPU, in the whole process; None: all cores.
            trust_code: run the machine code of a compiled package (`cgrseg export --format
                aoti`).  It can do whatever you can, so it is run only when asked for; no other
                file holds code.

        Raises:
            ConfigError: a setting that an exported file does not have, or a compiled package
                without `trust_code`.
            WeightsError: a checkpoint that cannot be used.
            EnvironmentProblem: no such device.
        """
        if is_exported(path_or_hub_id):
            for name, given in (("compile", compile), ("channels_last", channels_last)):
                if given:
                    raise ConfigError(_not_for_exported(name, path_or_hub_id))
            use_threads(threads)
            return cls._over_exported(
                open_exported(path_or_hub_id, device, precision, trust_code=trust_code),
                test,
                path_or_hub_id,
            )
        use_threads(threads)
        model = load_model(path_or_hub_id)
        backend = make_backend(
            model, device, precision, compile=compile, channels_last=channels_last
        )
        if test is None:
            test = stored_test_settings(model.preprocessing, path_or_hub_id)
        return cls(backend, test, model.classes, model.palette)

    @classmethod
    def _over_exported(
        cls, backend: ExportedBackend, test: TestConfig | None, source: str | Path
    ) -> Predictor:
        about = backend.description
        if test is None:
            test = stored_test_settings(about.test, source)
        names = usable_names(about.classes, about.num_classes, source)
        return cls(backend, test, names, usable_palette(about.palette, about.num_classes, source))

    def __call__(self, source: Any, *, confidence: bool = False, batch_size: int = 1) -> Any:
        """Label an image, or several.

        Args:
            source: a path, bytes, an open file, a uint8 RGB array (H, W, 3), a tensor or a
                Pillow image gives one :class:`Prediction` (:func:`as_image
                <cgrseg.inference.sources.as_image>` has the details); a list of these, a
                folder, a glob pattern or a video a list.  For more images than fit into memory
                use :meth:`stream`.
            confidence: also give each pixel's probability.
            batch_size: number of images of equal size per batch.

        Raises:
            DataError: an image that cannot be used; the message names it.
        """
        images = source if isinstance(source, (list, tuple)) else _behind(source)
        several = images is source or is_video(source) or _is_path_of_several(source)
        found = [
            prediction
            for _, prediction in self.stream(
                images, confidence=confidence, batch_size=batch_size, on_error="raise"
            )
        ]
        return found if several else found[0]

    def stream(
        self,
        sources: Iterable[Any] | Path | IO[bytes],
        *,
        confidence: bool = False,
        batch_size: int = 1,
        on_error: Literal["raise", "yield"] = "raise",
    ) -> Iterator[tuple[Any, Prediction | CGRSegError]]:
        """Label images one after another, reading the next ones meanwhile.

        Args:
            sources: what a call of the predictor takes for a single image, and videos, whose frames
                take their place; may be endless.  A single image, a folder or a pattern too.
            confidence: also give each pixel's probability.
            batch_size: number of images of equal size per batch.
            on_error: "yield" gives the error in the place of a prediction and goes on.

        Yields:
            The source and its prediction (or error), in order; the source of a video's frame
            is the :class:`~cgrseg.inference.frames.Frame`.
        """
        if not 1 <= batch_size <= LARGEST_BATCH:
            raise ConfigError(
                "batch_size",
                found=repr(batch_size),
                expected=f"1 to {LARGEST_BATCH}",
                remedy="correct it, or leave it out for its default",
            )
        single = isinstance(sources, (str, Path, bytes, bytearray, memoryview))
        single = single or callable(getattr(sources, "read", None))
        images: Iterable[Any] = _behind(sources) if single else cast(Iterable[Any], sources)
        # On a CPU the network keeps all cores busy; a GPU is faster than one reader.
        readers = 1 if self.backend.device.type == "cpu" else min(8, os.cpu_count() or 1)
        # Several batches are read at a time, so that images of equal size meet.
        together = batch_size if batch_size == 1 else 4 * batch_size
        pending = with_frames(images, together)
        with (
            contextlib.closing(pending),
            ThreadPoolExecutor(max_workers=readers, thread_name_prefix="read-ahead") as pool,
        ):
            ahead = self._submit(pool, pending, together)
            while ahead:
                batch, ahead = ahead, self._submit(pool, pending, together)
                opened: list[tuple[Any, Opened | CGRSegError]] = []
                for source, future in batch:
                    try:
                        opened.append((source, future.result()))
                    except CGRSegError as error:
                        if on_error == "raise":
                            raise
                        opened.append((origin_of(source), error))
                for source, found in self._label(opened, confidence, batch_size):
                    if on_error == "raise" and isinstance(found, CGRSegError):
                        raise found
                    yield source, found

    def warm_up(self, height: int, width: int, *, batch_size: int = 1) -> float:
        """Do beforehand what is done once for photos of a size, so that none of them waits.

        A compiled network is compiled for it, or loaded; one dummy image is predicted.

        Args:
            height: of the photos in pixels; the network's input follows from the settings.
            width: likewise.
            batch_size: images that will go through the network together.

        Returns:
            Seconds that it took.
        """
        start = time.perf_counter()
        images = [np.zeros((height, width, 3), dtype=np.uint8)] * batch_size
        if self.backend.compiled:
            asked = _Asked(self.backend)
            segment_batch(asked, images, self.test, batch_size=batch_size)
            on_cpu = self.backend.device.type == "cpu"  # which runs a batch image by image
            for images_at_once, rows, columns in asked.shapes:
                self.backend.prepare(rows, columns, 1 if on_cpu else images_at_once)
        segment_batch(self.backend, images, self.test, batch_size=batch_size)
        self._seen_sizes.add(plan(self.backend, images[0], self.test).size)
        return time.perf_counter() - start

    def _submit(
        self, pool: ThreadPoolExecutor, pending: Iterator[Any], count: int
    ) -> list[tuple[Any, Future[Opened]]]:
        return [(one, pool.submit(self._open, one)) for one in itertools.islice(pending, count)]

    def _open(self, source: Any) -> Opened:
        """Read an image and make it the network's input, in a thread beside the network."""
        start = time.perf_counter()
        if isinstance(source, Unreadable):
            raise source.error
        digest = None
        if isinstance(source, (str, Path)):
            image, digest = read_image_with_digest(source, bits=self.test.image_bits)
        else:
            image = as_image(source, bits=self.test.image_bits)
        # In other modes, settings that the backend cannot do end the stream: see _label.
        plain = is_plain(self.test)
        planned = plan(self.backend, image, self.test, with_input=True) if plain else None
        return Opened(image, planned, time.perf_counter() - start, digest)

    def _label(
        self, opened: list[tuple[Any, Opened | CGRSegError]], confidence: bool, batch_size: int
    ) -> Iterator[tuple[Any, Prediction | CGRSegError]]:
        planned = {
            number: one.planned or plan(self.backend, one.image, self.test)
            for number, (_, one) in enumerate(opened)
            if isinstance(one, Opened)
        }
        labelled: dict[int, tuple[Segmentation | DataError, float, bool]] = {}
        for group in grouped(self.backend, planned, batch_size):
            labelled.update(self._label_group(group, confidence))
        for number, (source, one) in enumerate(opened):
            if isinstance(one, CGRSegError):
                yield source, one
                continue
            result, seconds, warm = labelled.pop(number)
            if isinstance(result, DataError):
                yield source, DataError(f"{name_of(source)}: {result}")
                continue
            origin = origin_of(source)
            yield (
                source,
                Prediction(
                    labels=result.labels,
                    classes=self.classes,
                    palette=self.palette,
                    image=one.image,
                    confidence=result.confidence,
                    source=Path(origin) if isinstance(origin, (str, Path)) else None,
                    timing=Timing(one.seconds, seconds, warm),
                    frame=source.number if isinstance(source, Frame) else None,
                    digest=one.digest,
                ),
            )

    def _label_group(
        self, group: Mapping[int, PlannedImage], confidence: bool
    ) -> dict[int, tuple[Segmentation | DataError, float, bool]]:
        """Label images of equal network inputs together.

        Returns:
            Result, an equal share of the seconds, and whether the size was warm, by number.
        """
        start, prepared = time.perf_counter(), self.backend.seconds_preparing
        found: Sequence[Segmentation | DataError]
        try:
            found = segment_group(self.backend, list(group.values()), confidence=confidence)
        except DataError as error:
            if len(group) > 1:  # one of them is to blame; each runs alone to find it
                alone = [self._label_group({n: one}, confidence) for n, one in group.items()]
                return {n: result for part in alone for n, result in part.items()}
            found = [error]
        share = (time.perf_counter() - start) / len(group)
        size = next(iter(group.values())).size
        warm = size in self._seen_sizes and self.backend.seconds_preparing == prepared
        self._seen_sizes.add(size)
        return {n: (result, share, warm) for n, result in zip(group, found, strict=True)}


def _is_path_of_several(source: Any) -> bool:
    """Whether a source is a folder or a pattern rather than one file."""
    return isinstance(source, (str, Path)) and not Path(source).is_file()


def _behind(source: Any) -> list[Any]:
    """The images behind one source: those of a folder or pattern, or itself."""
    if _is_path_of_several(source):
        return [image.path for image in find_images(source)]
    return [source]


class _Asked(Backend):
    """A backend that notes which shapes it is asked for, and computes nothing."""

    def __init__(self, backend: Backend) -> None:
        self.device, self.num_classes = backend.device, backend.num_classes
        self.shapes: dict[tuple[int, int, int], None] = {}

    def logits(self, batch: Tensor) -> Tensor:
        images, _, height, width = batch.shape
        self.shapes[(images, height, width)] = None
        return torch.zeros(images, self.num_classes, height // 8, width // 8, device=self.device)


def _not_for_exported(name: str, path: str | Path) -> str:
    return explain(
        name,
        found=f"given for {path}, an exported file, which is optimised and laid out already",
        expected=f"{name} for checkpoints only",
        remedy="leave it out, or predict with the checkpoint itself",
    )
