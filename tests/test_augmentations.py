"""Added augmentations: by hand, with the labels, by key, and on images of other channels."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cgrseg.augmentations import (
    MIXES,
    OPERATIONS,
    add_noise,
    blur,
    classmix,
    compress_as_jpeg,
    copy_paste,
    cutmix,
    mosaic,
)
from cgrseg.config.schema import AugmentConfig, ChannelsConfig, PhotometricConfig
from cgrseg.data.color import MEAN, STD, gray_levels, stored_values
from cgrseg.data.dataset import TrainDataset
from cgrseg.data.pairs import Pair
from cgrseg.data.sampling import draw_index, sample_generator
from cgrseg.data.sources import Source
from cgrseg.data.train_transform import TrainTransform
from cgrseg.datasets import get_spec
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
    for position in range(200):
        image, _ = rendered(position, **{name: 0.25, f"{name}_{operation.amount}": (3.0, 5.0)})  # type: ignore[arg-type]
        assert np.array_equal(image, rendered(position)[0])
    assert 30 < len(amounts) < 70
    assert 3 <= min(amounts) < 3.2
    assert 4.8 < max(amounts) <= 5


def test_off_draws_nothing() -> None:
    """Labels and random generator are those of the pipeline before these steps were added."""
    image, labels = scene()
    transform = TrainTransform(AugmentConfig(scale=(64, 48), crop_size=(32, 32)))
    assert not any(getattr(transform.config, name) for name in [*OPERATIONS, *MIXES])
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


def random_labels(height: int, width: int, classes: int, seed: int) -> list[np.ndarray]:
    """Four label maps, some of their pixels ignored."""
    labels = np.random.default_rng(seed).integers(0, classes + 1, (4, height, width))
    labels[labels == classes] = 255
    return list(labels)


class TestOrigins:
    def test_classmix_by_hand(self) -> None:
        labels = np.array([[0, 0, 1], [1, 2, 255]])
        pairs = {frozenset(pair): 0 for pair in ((0, 1), (0, 2), (1, 2))}  # 2 of 3 classes
        for seed in range(300):
            origin = classmix([labels * 0, labels], 255, np.random.default_rng(seed))
            pasted = frozenset(labels[origin == 1].tolist())
            assert np.array_equal(origin == 1, np.isin(labels, list(pasted)))
            pairs[pasted] += 1
        assert min(pairs.values()) > 70
        rng = np.random.default_rng(0)
        alone = np.array([[3, 255]])
        assert classmix([alone, alone], 255, rng).tolist() == [[1, 0]]
        assert classmix([alone, alone], 3, rng).tolist() == [[0, 1]]
        assert not classmix([alone, np.full((1, 2), 255)], 255, rng).any()

    def test_copy_paste_by_hand(self) -> None:
        """Shares of 0.5, 10, 70 and 19.5 %, the last one ignored."""
        labels = np.repeat([0, 1, 2, 255], [1, 20, 140, 39])[None]
        pasted = np.zeros(256)
        for seed in range(1500):
            origin = copy_paste([labels * 0, labels], 255, np.random.default_rng(seed))
            there = np.unique(labels[origin == 1])
            assert np.array_equal(origin == 1, np.isin(labels, there))
            pasted[there] += 1
        assert pasted[0] == 1500
        assert pasted[1] / 1500 == pytest.approx(0.2, abs=0.04)
        assert pasted[2] / 1500 == pytest.approx(0.02 / 0.7, abs=0.02)
        assert pasted[255] == 0

    @settings(max_examples=100, deadline=None)
    @given(st.integers(2, 70), st.integers(2, 70), st.integers(0, 2**32 - 1))
    def test_cutmix_is_a_rectangle_of_half_the_area(
        self, height: int, width: int, seed: int
    ) -> None:
        labels = random_labels(height, width, 3, 0)
        origin = cutmix(labels[:2], 255, np.random.default_rng(seed))
        rows, columns = np.flatnonzero(origin.any(1)), np.flatnonzero(origin.any(0))
        assert origin[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert origin.sum() == len(rows) * len(columns)
        rounding = (height + width) / 2 + 1  # half a pixel of each side
        assert abs(origin.sum() - height * width / 2) <= rounding

    def test_cutmix_reaches_all_places_and_shapes(self) -> None:
        labels = random_labels(40, 40, 3, 0)
        origins = [cutmix(labels[:2], 255, np.random.default_rng(seed)) for seed in range(400)]
        tall = [origin.any(1).sum() for origin in origins]
        assert min(tall) <= 21 and max(tall) >= 39
        share = np.mean(origins, axis=0)
        assert share.min() > 0 and share[20, 20] > 0.8
        assert np.allclose(share, share[::-1, ::-1], atol=0.12)

    @settings(max_examples=100, deadline=None)
    @given(st.integers(2, 70), st.integers(2, 70), st.integers(0, 2**32 - 1))
    def test_mosaic_has_four_quadrants(self, height: int, width: int, seed: int) -> None:
        labels = random_labels(height, width, 3, 0)
        origin = mosaic(labels, 255, np.random.default_rng(seed))
        row, column = int((origin[:, 0] == 0).sum()), int((origin[0] == 0).sum())
        assert abs(row - height / 2) <= height / 4 + 0.5
        assert abs(column - width / 2) <= width / 4 + 0.5
        below, right = np.arange(height) >= row, np.arange(width) >= column
        assert np.array_equal(origin, 2 * below[:, None] + right)

    @settings(max_examples=100, deadline=None)
    @given(
        st.sampled_from(sorted(MIXES)),
        st.integers(0, 2**32 - 1),
        st.integers(1, 20),
        st.sampled_from([255, 0, 7]),
    )
    def test_origins_are_crops_and_depend_on_the_generator_alone(
        self, name: str, seed: int, classes: int, ignore_index: int
    ) -> None:
        mix = MIXES[name]
        labels = random_labels(16, 24, classes, seed)[: mix.crops]
        before = [one.copy() for one in labels]
        origin = mix.compute(labels, ignore_index, np.random.default_rng(seed))
        again = mix.compute(labels, ignore_index, np.random.default_rng(seed))
        assert np.array_equal(origin, again)
        assert origin.shape == (16, 24) and origin.max() < mix.crops
        assert all(np.array_equal(*pair) for pair in zip(labels, before, strict=True))
        if name in ("classmix", "copy_paste"):
            assert not (labels[1][origin == 1] == ignore_index).any()


COUNT = 8
PHOTOMETRIC = PhotometricConfig(probability=0)


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Pair], list[np.ndarray]]:
    """Images whose pixels say where they come from: (20 * number, row, column); and labels."""
    root = tmp_path_factory.mktemp("coded")
    pairs, labels = [], []
    for number in range(COUNT):
        height = 20 if number == 3 else 48  # one of them is smaller than the crop
        rows, columns = np.mgrid[:height, :64]
        image = np.stack([np.full_like(rows, 20 * number), rows, columns], axis=-1)
        rng = np.random.default_rng(number)
        ids = rng.integers(0, 12, (height // 4, 16)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
        ids[ids == 11] = 255
        files = root / f"image{number}.png", root / f"label{number}.png"
        Image.fromarray(image.astype(np.uint8)).save(files[0])
        Image.fromarray(ids).save(files[1])
        pairs.append(Pair(str(number), *files))
        labels.append(ids)
    return pairs, labels


def coded_dataset(pairs: list[Pair], extra: float = 0.0, **chances: float) -> TrainDataset:
    """Crops at the original size; with `extra`, the last four images are a set of this weight."""
    spec = get_spec("camvid")
    config = AugmentConfig(
        scale=(64, 48), ratio_range=(1, 1), crop_size=(32, 32), vertical_flip=0.5,
        photometric=PHOTOMETRIC, **chances,  # type: ignore[arg-type]
    )  # fmt: skip
    further = [Source(spec, pairs[4:], extra)] if extra else []
    return TrainDataset(spec, pairs[:4] if extra else pairs, config, seed=5, extra=further)


@settings(max_examples=80, deadline=None)
@given(
    position=st.integers(0, 2**40),
    index=st.integers(0, COUNT - 1),
    chances=st.fixed_dictionaries({name: st.sampled_from([0.0, 0.5, 1.0]) for name in MIXES}),
)
def test_every_pixel_comes_with_its_label_from_one_place(
    coded: tuple[list[Pair], list[np.ndarray]],
    position: int,
    index: int,
    chances: dict[str, float],
) -> None:
    pairs, labels = coded
    dataset = coded_dataset(pairs, **chances)
    sample = dataset[position, index]
    drawn = [number for number in sample["further"].tolist() if number >= 0]
    lengths = {name: MIXES[name].crops - 1 for name in MIXES}
    assert len(sample["further"]) == sum(lengths[name] for name in MIXES if chances[name])
    assert len(drawn) >= sum(lengths[name] for name in MIXES if chances[name] == 1)

    pixels = np.rint(sample["image"].numpy().transpose(1, 2, 0) * STD + MEAN).astype(int)
    ids = sample["label"].numpy()
    padding = (sample["image"] == 0).all(dim=0).numpy()
    assert (ids[padding] == 255).all()
    out = np.argwhere(~padding)
    number, row, column = pixels[~padding].T
    assert not (number % 20).any()
    number //= 20
    # The label is that of the pixel's own place in its own image.
    expected = [labels[n][r, c] for n, r, c in zip(number, row, column, strict=True)]
    assert np.array_equal(ids[~padding], expected)
    # The images are those that were drawn, each cut, mirrored and pasted without other moves.
    sources = [index, *drawn]
    assert set(number) <= set(sources)
    for one in {n for n in sources if sources.count(n) == 1}:
        own = number == one
        for place, at in ((row, out[:, 0]), (column, out[:, 1])):
            moves = [set((place - at)[own]), set((place + at)[own])]
            assert min(map(len, moves)) <= 1


def test_the_key_decides_and_mixing_leaves_the_first_crop_as_it_was(
    coded: tuple[list[Pair], list[np.ndarray]],
) -> None:
    pairs, _ = coded
    plain, mixed = coded_dataset(pairs), coded_dataset(pairs, copy_paste=1, cutmix=1)
    kept = []
    for position in range(20):
        one, other, again = (each[position, 0] for each in (plain, mixed, mixed))
        assert one["further"].shape == (0,)
        for name in ("image", "label", "further"):
            assert np.array_equal(other[name], again[name])  # type: ignore[literal-required]
        kept.append((one["image"] == other["image"]).all(dim=0).float().mean())
        assert kept[-1] < 1
    assert np.mean(kept) > 0.25
    assert len({tuple(mixed[position, 0]["further"].tolist()) for position in range(20)}) > 10


def test_images_to_mix_come_from_all_training_sets_by_weight(
    coded: tuple[list[Pair], list[np.ndarray]],
) -> None:
    dataset = coded_dataset(coded[0], extra=0.5, cutmix=1)
    drawn = [int(dataset[position, 0]["further"][0]) for position in range(150)]
    assert set(drawn) == set(range(COUNT))
    assert 30 < sum(number >= 4 for number in drawn) < 70  # a third
    rng = np.random.default_rng(0)
    found = np.bincount([draw_index([(2, 1.0), (3, 0.5)], rng) for _ in range(3000)])
    assert found / 3000 == pytest.approx([1 / 3, 1 / 3, 1 / 9, 1 / 9, 1 / 9], abs=0.03)
    assert {draw_index([(1, 2.0)], rng) for _ in range(3)} == {0}
