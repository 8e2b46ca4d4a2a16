"""Predictor: what is done once told apart from every image's time; threads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from cgrseg.bench.random_weights import draw_weights
from cgrseg.config.schema import TestConfig
from cgrseg.errors import ConfigError, DataError
from cgrseg.inference import Prediction, Predictor, Speed
from cgrseg.inference.ready_backend import make_backend
from cgrseg.inference.segmenting import PlannedImage, share_threads
from cgrseg.models import CGRSeg, create_model
from tests.inference.fixtures import BlockBackend, photo

CLASSES = ("sky", "road", "car")
PALETTE = ((70, 130, 180), (128, 64, 128), (0, 0, 142))


def predictor() -> Predictor:
    return Predictor(BlockBackend(3), TestConfig(scale=(128, 64)), CLASSES, PALETTE)


def test_timing_tells_the_first_image_of_a_size_apart() -> None:
    ours = predictor()
    images = [photo(60, 80), photo(60, 80, 1), photo(80, 60), photo(60, 80, 2)]
    timings = [found.timing for _, found in ours.stream(images)]  # type: ignore[union-attr]
    assert [one.warm for one in timings if one] == [False, True, False, True]
    assert all(one and one.read > 0 and one.predict > 0 for one in timings)
    speed = Speed()
    for one in timings:
        speed.add(one)
    assert speed.images == 2 and speed.once > 0
    assert speed.seconds == pytest.approx(sum(one.predict for one in timings if one and one.warm))
    assert "then" in str(speed) and "images/s" in str(speed)

    prepared = predictor()
    assert prepared.warm_up(60, 80) > 0
    assert prepared(photo(60, 80)).timing.warm
    assert not prepared(photo(80, 60)).timing.warm


def test_warm_up_prepares_every_shape_that_the_settings_need() -> None:
    class Compiling(BlockBackend):
        compiled = True

        def __init__(self) -> None:
            super().__init__(3)
            self.prepared: list[tuple[int, int, int]] = []
            self.seconds_preparing = 0.0

        def prepare(self, height: int, width: int, batch: int = 1) -> None:
            self.prepared.append((height, width, batch))

    backend = Compiling()
    test = TestConfig(scale=(128, 64), ratios=[1.0, 1.5], flip=True)
    Predictor(backend, test, CLASSES, PALETTE).warm_up(60, 80)
    # 60x80 becomes 64x85, padded to 64x96; one and a half times it is 96x128.
    assert backend.prepared == [(64, 96, 1), (96, 128, 1)]
    batches = Compiling()
    Predictor(batches, TestConfig(scale=(128, 64)), CLASSES, PALETTE).warm_up(60, 80, batch_size=3)
    assert batches.prepared == [(64, 96, 1)]  # a CPU runs a batch image by image
    assert batches.seen == [(3, 3, 64, 96)]


def test_an_image_that_waited_for_a_compilation_is_not_warm() -> None:
    class Compiling(BlockBackend):
        seconds_preparing = 0.0

        def logits(self, batch: torch.Tensor) -> torch.Tensor:
            if len(self.seen) == 2:
                self.seconds_preparing += 60
            return super().logits(batch)

    ours = Predictor(Compiling(3), TestConfig(scale=(128, 64)), CLASSES, PALETTE)
    found = [one.timing for one in ours([photo(60, 80, n) for n in range(5)])]
    assert [one.warm for one in found] == [False, True, False, True, True]


class Clocked(BlockBackend):
    """A backend whose time is told: seconds per batch, by a clock that nothing else moves."""

    now = 0.0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(3)
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr("cgrseg.inference.predictor.time", clock)

    def logits(self, batch: torch.Tensor) -> torch.Tensor:
        wide = batch.shape[3] > batch.shape[2]
        self.now += (10.0 if wide else 1.0) * len(batch)
        dark = batch.amax((1, 2, 3))[:, None, None, None] <= 0
        return torch.where(dark, torch.nan, super().logits(batch))


def test_images_are_timed_with_those_of_their_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Predictor(Clocked(monkeypatch), TestConfig(scale=(128, 64)), CLASSES, PALETTE)
    images = [photo(60, 80), photo(80, 60), photo(60, 80, 1), photo(80, 60, 1)]
    found = [one.timing for one in ours(images, batch_size=2)]
    assert [one.predict for one in found] == [10, 1, 10, 1]
    assert not any(one.warm for one in found)
    # Other sizes with the same network input of 64x96.
    assert all(one.timing.warm for one in ours([photo(61, 81), photo(120, 160)], batch_size=2))


def test_images_computed_again_are_timed_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Predictor(Clocked(monkeypatch), TestConfig(scale=(128, 64)), CLASSES, PALETTE)
    images = [photo(60, 80), photo(60, 80) * 0, photo(60, 80, 1)]
    found = [one for _, one in ours.stream(images, batch_size=3, on_error="yield")]
    assert isinstance(found[1], DataError)
    for one in (found[0], found[2]):
        assert isinstance(one, Prediction) and one.timing and one.timing.predict == 10


def test_threads_are_set(tmp_path: Path) -> None:
    CGRSeg("cgrseg_t", 3, classes=CLASSES, palette=PALETTE).save_pretrained(tmp_path)
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        Predictor.from_pretrained(tmp_path, "cpu", threads=before[0] + 1)
        assert torch.get_num_threads() == before[0] + 1
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    with pytest.raises(ConfigError, match="1 to 1024"):
        Predictor.from_pretrained(tmp_path, "cpu", threads=0)


def test_images_side_by_side_get_the_same_labels_in_order() -> None:
    model = create_model("cgrseg_t", num_classes=3, context_blocks=1).eval()
    draw_weights(model)
    ours = Predictor(make_backend(model, "cpu"), TestConfig(scale=(128, 64)), CLASSES, PALETTE)
    images = [photo(60, 80 + 40 * (number % 2), number) for number in range(8)]
    bad = b"no image"
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(2)
    try:
        expected = [found for _, found in ours.stream([*images, bad], on_error="yield")]
        stream = ours.stream([*images, bad], on_error="yield", side_by_side=True)
        found = [next(stream)]
        assert torch.get_num_threads() == 1
        found += list(stream)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    assert [source is image for (source, _), image in zip(found, images, strict=False)] == [
        True
    ] * 8
    assert isinstance(found[-1][1], DataError) and isinstance(expected[-1], DataError)
    for (_, ours_found), one in zip(found[:-1], expected, strict=False):
        assert isinstance(ours_found, Prediction) and isinstance(one, Prediction)
        assert (ours_found.labels == one.labels).mean() > 0.999  # sums in another order
        assert len(np.unique(one.labels)) > 1


def test_how_many_images_share_the_threads() -> None:
    config = TestConfig(scale=(2048, 64))

    def shared(
        threads: int, side: int, image_side: int = 512, **changes: object
    ) -> tuple[int, int] | None:
        backend = SimpleNamespace(side_by_side=True, on_cpu=True, sizes=None)
        backend.__dict__.update(changes)
        image = PlannedImage(np.zeros((image_side, image_side, 3), np.uint8), config, (side, side))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return share_threads(backend, [image])  # type: ignore[arg-type]
        finally:
            torch.set_num_threads(before)

    assert shared(2, 512) == (6, 1)
    assert shared(4, 512) == (8, 1)
    assert shared(16, 512) == (8, 2)
    assert shared(2, 1024) == (2, 1)  # memory
    assert shared(2, 2048) is None
    assert shared(2, 128, image_side=2048) == (4, 1)
    assert shared(2, 128, image_side=5000) is None
    assert shared(1, 512) is None
    assert shared(2, 512, side_by_side=False) is None
    assert shared(2, 512, on_cpu=False) is None
