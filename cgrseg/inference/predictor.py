"""From images to label maps in a few lines.

>>> predictor = Predictor.from_pretrained("best.pth")
>>> prediction = predictor("street.jpg")
>>> prediction.save_overlay("street_labels.png")
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from torch import nn

from cgrseg.config.schema import TestConfig
from cgrseg.data.catalogue import DatasetSpec, get_spec
from cgrseg.errors import CGRSegError, ConfigError, WeightsError, explain
from cgrseg.inference.backends import Backend, Precision, TorchBackend, resolve_device
from cgrseg.inference.modes import segment_batch
from cgrseg.inference.prediction import Colour, Prediction
from cgrseg.inference.sources import as_image, find_images
from cgrseg.models import load_model
from cgrseg.visual.palette import make_palette

_LOG = logging.getLogger("cgrseg.inference")

# Published checkpoints do not always carry their class names; their count tells them.
_BY_COUNT = {150: "ade20k", 171: "coco_stuff10k", 59: "pascal_context59"}


class Predictor:
    """A network together with all that it needs to label images.

    Args:
        backend: runs the network.
        test: how images become input: scale, mode, ratios, flip.
        classes: names in id order; None: told by their number, or plain numbers.
        palette: RGB 0..255 per class; None: told likewise, or made.

    Raises:
        ConfigError: names or colours that do not match the network's outputs.
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
        spec = _spec_of(count) if classes is None else None
        if classes is None:
            classes = spec.classes if spec is not None else [f"class {k}" for k in range(count)]
        if palette is None and spec is not None:
            palette = spec.palette
        if palette is None:
            palette = [(int(r), int(g), int(b)) for r, g, b in make_palette(count)]
        for what, given in (("classes", len(classes)), ("palette", len(palette))):
            if given != count:
                raise ConfigError(
                    explain(
                        what,
                        found=f"{given} entries",
                        expected=f"{count}, one for each output of the network",
                        remedy="give the list that the network was trained with",
                    )
                )
        self.classes = tuple(classes)
        self.palette = tuple(palette)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: str | None = None,
        precision: Precision = "fp32",
        *,
        test: TestConfig | None = None,
        channels_last: bool = False,
        compile: bool = False,
    ) -> Predictor:
        """Load a checkpoint; variant, classes, colours and test settings come from it.

        Args:
            path_or_hub_id: a `.pth` file, a folder of `save_pretrained`, or a hub id.
            device: where to run; None: a GPU where there is one, else the CPU.
            precision: "fp32", "bf16" or "fp16".
            test: other settings than the checkpoint's.
            channels_last: memory layout of features.
            compile: predict several times faster after a compilation of about a minute per
                image size, which is kept for the next time (see docs/speed.md).  It begins
                with the fourth image of a size; `predictor.backend.prepare(height, width)`
                does it beforehand.

        Raises:
            WeightsError: a checkpoint that cannot be used.
            EnvironmentProblem: no such device.
        """
        model = load_model(path_or_hub_id)
        backend: Backend
        if compile:
            from cgrseg.inference.fast import CompiledBackend

            backend = CompiledBackend(model, resolve_device(device), precision)
        else:
            backend = TorchBackend(model, resolve_device(device), precision, channels_last)
        if test is None:
            test = _test_settings(model, path_or_hub_id)
        return cls(backend, test, model.classes, model.palette)

    def __call__(self, source: Any, *, confidence: bool = False, batch_size: int = 1) -> Any:
        """Label an image, or several.

        Args:
            source: a path, a uint8 RGB array (H, W, 3) or a Pillow image gives one
                :class:`Prediction`; a list of these, a folder or a glob pattern a list.
                For more images than fit into memory use :meth:`stream`.
            confidence: also give each pixel's probability.
            batch_size: images of equal size that go through the network together.

        Raises:
            DataError: an image that cannot be used; the message names it.
        """
        several = isinstance(source, (list, tuple))
        if isinstance(source, (str, Path)) and not Path(source).is_file():
            source, several = [image.path for image in find_images(source)], True
        images = source if several else [source]
        found = [
            prediction
            for _, prediction in self.stream(
                images, confidence=confidence, batch_size=batch_size, on_error="raise"
            )
        ]
        return found if several else found[0]

    def stream(
        self,
        sources: Iterable[Any],
        *,
        confidence: bool = False,
        batch_size: int = 1,
        on_error: Literal["raise", "yield"] = "raise",
    ) -> Iterator[tuple[Any, Prediction | CGRSegError]]:
        """Label images one after another, reading the next ones meanwhile.

        Args:
            sources: what :meth:`__call__` takes for a single image; may be endless.
            confidence: also give each pixel's probability.
            batch_size: images of equal size that go through the network together.
            on_error: "yield" gives the error in the place of a prediction and goes on.

        Yields:
            The source and its prediction (or error), in order.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool:
            pending = iter(sources)
            # Several batches are read at a time, so that images of equal size meet.
            together = batch_size if batch_size == 1 else 4 * batch_size
            ahead = self._submit(pool, pending, together)
            while ahead:
                batch, ahead = ahead, self._submit(pool, pending, together)
                opened: list[Any] = []
                for source, future in batch:
                    try:
                        opened.append((source, future.result()))
                    except CGRSegError as error:
                        if on_error == "raise":
                            raise
                        opened.append((source, error))
                yield from self._label(opened, confidence, batch_size)

    @staticmethod
    def _submit(
        pool: ThreadPoolExecutor, pending: Iterator[Any], count: int
    ) -> list[tuple[Any, Future[Any]]]:
        return [(one, pool.submit(as_image, one)) for one in itertools.islice(pending, count)]

    def _label(
        self, opened: list[tuple[Any, Any]], confidence: bool, batch_size: int
    ) -> Iterator[tuple[Any, Prediction | CGRSegError]]:
        images = [image for _, image in opened if isinstance(image, np.ndarray)]
        results = iter(
            segment_batch(
                self.backend, images, self.test, confidence=confidence, batch_size=batch_size
            )
        )
        for source, image in opened:
            if not isinstance(image, np.ndarray):
                yield source, image
                continue
            found = next(results)
            yield (
                source,
                Prediction(
                    labels=found.labels,
                    classes=self.classes,
                    palette=self.palette,
                    image=image,
                    confidence=found.confidence,
                    source=Path(source) if isinstance(source, (str, Path)) else None,
                ),
            )


def _spec_of(count: int) -> DatasetSpec | None:
    name = _BY_COUNT.get(count)
    if name is None:
        _LOG.warning("the checkpoint has no class names; they are numbered 'class 0' and on")
        return None
    spec = get_spec(name)
    _LOG.warning(
        "the checkpoint has no class names; %d classes are taken for those of %s",
        count,
        spec.title,
    )
    return spec


def _test_settings(model: nn.Module, source: str | Path) -> TestConfig:
    settings = getattr(model, "preprocessing", None)
    if settings is None:
        _LOG.warning(
            "%s holds no test settings; the published ones of ADE20K are used (short side 512)",
            source,
        )
        return TestConfig()
    try:
        return TestConfig(**settings)
    except (ValidationError, ConfigError, TypeError) as error:
        raise WeightsError(
            explain(
                source,
                found=f"test settings that cannot be used ({error})",
                expected="those of a run, as this version writes them",
                remedy="pass test=TestConfig(...) to from_pretrained, or update cgrseg",
            )
        ) from error
