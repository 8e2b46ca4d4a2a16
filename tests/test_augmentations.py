"""Added augmentations: by hand, with the labels, by key, and on images of other channels."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cgrseg.augmentations import OPERATIONS, add_noise, blur, compress_as_jpeg
from cgrseg.config.schema import AugmentConfig, ChannelsConfig
from cgrseg.data.color import gray_levels, stored_values
from cgrseg.data.sampling import sample_generator
from cgrseg.data.train_transform import TrainTransform
from cgrseg.errors import ConfigError

FIVE = ChannelsConfig(
    names=["red", "green", "blue", "nir", "height"],
    mean=[500.0, 600.0, 700.0, 2000.0, 30.0],
    std=[100.0, 100.0, 200.0, 400.0, 9.0],
    types=["uint16"] * 5,  # type: ignore[list-item]
)
BEFORE = "6a45c878fccf43cefa042d7b9491959fd1d4ed765d9322e0a58abc2f126646e1"


def scene(height: int = 48, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (height // 8, width // 8)).repeat(8, 0).repeat(8, 1)
    image = labels[..., None] * 80 + rng.integers(0, 60, (height, width, 3))
    return image.astype(np.uint8), labels.astype(np.uint8)


def rendered(
    position: int, channels: ChannelsConfig | None = None, **settings: object
) -> tuple[np.ndarray, np.ndarray]:
    image, labels = scene()
    if channels is not None:
        wide = np.dstack([image, image[..., :2]]).astype(np.float32)
        image = stored_values(wide, channels).astype(np.uint16)
    config = AugmentConfig(scale=(64, 48), crop_size=(32, 32), **settings)  # type: ignore[arg-type]
    transform = TrainTransform(config, channels=channels)
    rng = sample_generator(0, position)
    return transform.render(image, transform.plan(labels, rng), rng)


def errors(levels: np.ndarray) -> Iterator[float]:
    """Mean change by JPEG at falling quality."""
    for quality in (95, 60, 20):
        changed = compress_as_jpeg(levels, quality, np.random.default_rng(0))
        yield float(np.abs(changed.astype(float) - levels).mean())


def test_blur_of_one_pixel_is_a_gaussian() -> None:
    levels = np.zeros((31, 31, 5), np.float32)
    levels[15, 15] = [1, 10, 100, 1000, -50]
    got = blur(levels, 2.0, np.random.default_rng(0))
    weights = np.exp(-(np.arange(-15, 16) ** 2) / 8)
    expected = np.outer(weights, weights) / weights.sum() ** 2
    assert np.allclose(got / levels[15, 15], expected[..., None], atol=1e-4)


def test_noise_has_the_deviation_that_was_drawn() -> None:
    levels = np.full((200, 200, 3), 128, np.uint8)
    noise = add_noise(levels, 8.0, np.random.default_rng(0)).astype(float) - 128
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(math.sqrt(8**2 + 1 / 12), rel=0.01)  # rounding adds 1/12
    assert np.corrcoef(noise.reshape(-1, 3).T)[0, 1] == pytest.approx(0, abs=0.02)
    black = add_noise(np.zeros((200, 200, 3), np.uint8), 8.0, np.random.default_rng(0))
    assert black.max() < 60  # clipped, not wrapped around
    assert np.mean(black == 0) == pytest.approx(0.5 + 0.025, abs=0.01)


def test_jpeg_is_that_of_another_encoder() -> None:
    image = scene()[0]
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=50)
    expected = np.asarray(Image.open(file)).astype(int)
    got = compress_as_jpeg(image, 50.4, np.random.default_rng(0))
    assert np.abs(got - expected).max() <= 3
    worse = list(errors(image))
    assert 0 < worse[0] < worse[1] < worse[2]


def test_jpeg_of_other_channels_keeps_what_lies_outside() -> None:
    image = scene()[0].astype(np.float32)
    levels = np.dstack([image, image[..., :2] + 300])  # beyond 255
    got = compress_as_jpeg(levels, 50, np.random.default_rng(0))
    assert got.dtype == np.float32
    assert np.array_equal(got[..., 3:], levels[..., 3:])  # a flat 255 is compressed without loss
    gray = compress_as_jpeg(levels[..., :1], 50, np.random.default_rng(0))
    assert np.array_equal(got[..., :1], gray)
    assert 0 < np.abs(got[..., 0] - levels[..., 0]).mean() < 20


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [None, FIVE])
def test_an_operation_changes_pixels_alone_and_by_its_key_alone(
    name: str, channels: ChannelsConfig | None
) -> None:
    for position in range(5):
        plain, plain_labels = rendered(position, channels)
        image, labels = rendered(position, channels, **{name: 1.0})
        again, _ = rendered(position, channels, **{name: 1.0})
        assert np.array_equal(labels, plain_labels)
        assert image.shape == plain.shape
        assert np.array_equal(image, again)
        assert not np.array_equal(image, plain)
        if channels is not None:
            before, after = gray_levels(plain, channels), gray_levels(image, channels)
            changes = np.abs(after - before).mean(axis=(0, 1))
            assert changes.min() > 0.5 and changes.max() < 25


@pytest.mark.parametrize("name", OPERATIONS)
def test_probability_and_range(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation = OPERATIONS[name]
    amounts: list[float] = []

    def record(levels: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
        amounts.append(amount)
        return levels

    monkeypatch.setitem(OPERATIONS, name, replace(operation, compute=record))
    for position in range(400):
        image, _ = rendered(position, **{name: 0.25, f"{name}_{operation.amount}": (3.0, 5.0)})  # type: ignore[arg-type]
        assert np.array_equal(image, rendered(position)[0])
    assert 70 < len(amounts) < 130
    assert 3 <= min(amounts) < 3.1
    assert 4.9 < max(amounts) <= 5


def test_off_draws_nothing() -> None:
    """Labels and random generator are those of the pipeline before these steps were added."""
    image, labels = scene()
    transform = TrainTransform(AugmentConfig(scale=(64, 48), crop_size=(32, 32)))
    assert not any(getattr(transform.config, name) for name in OPERATIONS)
    digest = hashlib.sha256()
    for position in range(20):
        rng = np.random.default_rng(position)
        _, crop = transform.render(image, transform.plan(labels, rng), rng)
        digest.update(crop.tobytes())
        digest.update(str(rng.bit_generator.state["state"]["state"]).encode())
    assert digest.hexdigest() == BEFORE


@pytest.mark.parametrize("name", OPERATIONS)
def test_falling_ranges_are_refused(name: str) -> None:
    setting = f"{name}_{OPERATIONS[name].amount}"
    with pytest.raises(ConfigError, match=rf"augment\.{setting}.*\[9, 4\]"):
        AugmentConfig(**{setting: (9, 4)})  # type: ignore[arg-type]
