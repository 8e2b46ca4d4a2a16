"""The network's input: against the published code's output, and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cgrseg.config import schema
from cgrseg.data.geometry import resize_image
from cgrseg.data.image_files import read_image
from cgrseg.inference.views import EvalTransform, NetworkInput


def blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 200, np.uint8)


def test_golden_of_the_published_pipeline(golden_dir: Path) -> None:
    golden = np.load(golden_dir / "test_pipeline.npz")
    prepared = NetworkInput.of(read_image(golden_dir / "photo.png"), schema.TestConfig())
    assert [*prepared.tensor.shape] == golden["shape"].tolist()
    assert np.abs(prepared.tensor.numpy()[0, :, ::6, ::6] - golden["tensor"]).max() < 1e-5
    assert prepared.resized == (512, 717)


@pytest.mark.parametrize(
    ("original", "resized", "padded"),
    [
        ((300, 420), (512, 717), (512, 736)),
        ((501, 37), (2048, 151), (2048, 160)),  # the long side limits: 2048 / 501 = 4.0878
        ((3000, 4000), (512, 683), (512, 704)),
        ((1, 1), (512, 512), (512, 512)),
    ],
)
def test_keep_ratio(
    original: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]
) -> None:
    prepared = NetworkInput.of(blank(*original), schema.TestConfig())
    assert prepared.resized == resized
    assert prepared.tensor.shape == (1, 3, *padded)


def test_padding_is_zero_at_the_right_and_the_bottom() -> None:
    config = schema.TestConfig(scale=(40, 30))
    tensor = NetworkInput.of(blank(30, 40), config).tensor.numpy()[0]
    assert tensor.shape == (3, 32, 64)
    assert tensor[:, :30, :40] == pytest.approx(
        np.broadcast_to(
            np.array([(200 - 123.675) / 58.395, (200 - 116.28) / 57.12, (200 - 103.53) / 57.375])[
                :, None, None
            ],
            (3, 30, 40),
        ),
        abs=1e-5,
    )
    assert not tensor[:, 30:].any()
    assert not tensor[:, :, 40:].any()


def test_pascal_context_resizes_twice_and_pads_nothing() -> None:
    config = schema.TestConfig(scale=(520, 520), resize="keep_ratio_divisible")
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    transform = EvalTransform(config)
    prepared = NetworkInput.of(image, config)
    # 520 / 500 = 1.04: 390 x 520, then up to multiples of 32: 416 x 544.
    assert prepared.resized == (416, 544)
    assert prepared.tensor.shape == (1, 3, 416, 544)
    twice = resize_image(resize_image(image, (390, 520)), (416, 544))
    assert np.array_equal(transform.resize(image), twice)
    assert not np.array_equal(transform.resize(image), resize_image(image, (416, 544)))


def test_native_resolution_only_pads() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    config = schema.TestConfig(resize="none")
    prepared = NetworkInput.of(image, config)
    assert prepared.resized == (50, 70)
    assert prepared.tensor.shape == (1, 3, 64, 96)
    assert np.array_equal(EvalTransform(config).resize(image), image)
