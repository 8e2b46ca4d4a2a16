"""The train pipeline: every step by hand, and both orders of computing it alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrseg.config.schema import AugmentConfig, PhotometricConfig
from cgrseg.data.color import MEAN, STD
from cgrseg.data.geometry import Window
from cgrseg.data.sampling import sample_generator
from cgrseg.data.train_transform import (
    TrainTransform,
    class_counts,
    draw_pixel_of_any_class,
    flip,
    is_varied,
    rotate,
)

NO_COLOUR = PhotometricConfig(probability=0)


def augment(
    transform: TrainTransform, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The sample before normalizing and padding."""
    return transform.render(image, transform.plan(labels, rng), rng)


def sample(
    transform: TrainTransform, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The sample as the network gets it."""
    return transform.finish(*augment(transform, image, labels, rng))


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def patches(height: int, width: int, classes: int = 5, seed: int = 0) -> np.ndarray:
    """Labels in blocks of 8 pixels, some of them ignored."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, classes + 1, (-(-height // 8), -(-width // 8)))
    blocks[blocks == classes] = 255
    return blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width].astype(np.uint8)


class TestCropRule:
    def test_share_counts_labelled_pixels_only(self) -> None:
        labels = np.array([[0, 0, 0, 1, 255, 255, 255, 255]], dtype=np.uint8)
        assert class_counts(labels)[[0, 1, 255]].tolist() == [3, 1, 4]
        assert not is_varied(labels, 0.75, 255)  # 3 of 4 labelled pixels: exactly the limit
        assert is_varied(labels, 0.76, 255)

    def test_one_class_is_never_varied(self) -> None:
        assert not is_varied(np.zeros((4, 4), np.uint8), 0.99, 255)
        assert not is_varied(np.full((4, 4), 255, np.uint8), 0.99, 255)
        assert not is_varied(np.array([[0, 255]], np.uint8), 0.99, 255)

    def test_another_ignore_index(self) -> None:
        assert not is_varied(np.array([[0, 9]], np.uint8), 0.75, 9)

    @given(
        height=st.integers(1, 70),
        width=st.integers(1, 70),
        classes=st.integers(1, 30),
        skew=st.floats(0.0, 6.0),
        ignored=st.sampled_from([0.0, 0.3, 0.97, 1.0]),
        ignore_index=st.sampled_from([255, 0, 7]),
        share=st.sampled_from([0.05, 0.2, 0.5, 0.75, 0.99]),
        seed=st.integers(0, 2**32 - 1),
    )
    @settings(max_examples=300, deadline=None)
    def test_as_a_histogram_of_all_pixels_says(
        self,
        height: int,
        width: int,
        classes: int,
        skew: float,
        ignored: float,
        ignore_index: int,
        share: float,
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        weights = np.exp(-skew * np.arange(classes))
        labels = rng.choice(classes, (height, width), p=weights / weights.sum()).astype(np.uint8)
        labels[rng.random((height, width)) < ignored] = ignore_index
        values, counts = np.unique(labels[labels != ignore_index], return_counts=True)
        expected = len(values) >= 2 and counts.max() / counts.sum() < share
        assert is_varied(labels, share, ignore_index) == expected

    def test_crops_are_drawn_again_until_varied(self) -> None:
        # One column of a second class at the right edge: few crops see it, retries find it.
        labels = np.zeros((64, 640), np.uint8)
        labels[:, 500:] = 1
        config = AugmentConfig(scale=(640, 64), ratio_range=(1, 1), crop_size=(64, 64))
        seen = {True: 0, False: 0}
        for share in (0.75, 1.0):
            transform = TrainTransform(config.model_copy(update={"max_class_share": share}))
            for position in range(200):
                plan = transform.plan(labels, np.random.default_rng(position))
                seen[share < 1] += is_varied(plan.labels, 0.75, 255)
        # A crop is varied at 32 of 577 offsets, 5.5 %; at least one of 11 draws: 46 %.
        assert 2 <= seen[False] <= 24
        assert 70 <= seen[True] <= 115

    def test_the_last_try_stands(self) -> None:
        config = AugmentConfig(scale=(96, 96), ratio_range=(1, 1), crop_size=(32, 32))
        plan = TrainTransform(config).plan(np.zeros((96, 96), np.uint8), np.random.default_rng(0))
        draws = np.random.default_rng(0)
        draws.uniform(1, 1)
        corners = [(int(draws.integers(0, 65)), int(draws.integers(0, 65))) for _ in range(11)]
        assert (plan.window.top, plan.window.left) == corners[-1]


class TestSizes:
    def test_ratio_scales_the_base_and_keeps_the_aspect(self) -> None:
        class Fixed:
            def uniform(self, low: float, high: float) -> float:
                return 0.7

            def integers(self, low: int, high: int) -> int:
                return low

        # int(512 * 0.7) = 358; 358 / 300 = 1.19333; 420 * 1.19333 + 0.5 = 501.7
        plan = TrainTransform(AugmentConfig()).plan(np.zeros((300, 420), np.uint8), Fixed())  # type: ignore[arg-type]
        assert plan.size == (358, 501)
        assert plan.window == Window(0, 0, 358, 501)

    def test_ratios_fill_their_range(self) -> None:
        transform = TrainTransform(AugmentConfig())
        labels = np.zeros((512, 512), np.uint8)
        sizes = [transform.plan(labels, sample_generator(0, p)).size[0] for p in range(300)]
        assert 256 <= min(sizes) < 290
        assert 980 < max(sizes) <= 1024
        assert np.mean(sizes) == pytest.approx(640, abs=40)

    def test_corners_reach_both_ends(self) -> None:
        config = AugmentConfig(
            scale=(40, 40), ratio_range=(1, 1), crop_size=(32, 32), max_class_share=1
        )
        transform = TrainTransform(config)
        labels = np.zeros((40, 40), np.uint8)
        windows = [transform.plan(labels, sample_generator(1, p)).window for p in range(200)]
        assert {w.top for w in windows} == set(range(9))
        assert {w.left for w in windows} == set(range(9))


class TestWholeSample:
    def test_small_image_is_padded_by_zero_and_ignore(self) -> None:
        config = AugmentConfig(
            scale=(20, 10),
            ratio_range=(1, 1),
            crop_size=(32, 64),
            flip=0,
            photometric=NO_COLOUR,
        )
        image, labels = photo(10, 20), patches(10, 20)
        pixels, ids = sample(TrainTransform(config), image, labels, np.random.default_rng(0))
        assert pixels.shape == (3, 32, 64)
        assert pixels.dtype == np.float32
        assert ids.shape == (32, 64)
        assert ids.dtype == np.int64
        expected = (image.astype(np.float64) - MEAN) / STD
        assert np.allclose(pixels[:, :10, :20], expected.transpose(2, 0, 1), atol=1e-5)
        assert np.array_equal(ids[:10, :20], labels)
        assert not pixels[:, 10:].any() and not pixels[:, :, 20:].any()
        assert (ids[10:] == 255).all() and (ids[:, 20:] == 255).all()

    def test_flip_mirrors_image_and_labels_alike(self) -> None:
        config = AugmentConfig(
            scale=(32, 32), ratio_range=(1, 1), crop_size=(32, 32), flip=1, photometric=NO_COLOUR
        )
        image, labels = photo(32, 32), patches(32, 32)
        got, ids = augment(TrainTransform(config), image, labels, np.random.default_rng(0))
        assert np.array_equal(got, image[:, ::-1])
        assert np.array_equal(ids, labels[:, ::-1])

    def test_flip_happens_half_of_the_time(self) -> None:
        config = AugmentConfig(
            scale=(32, 32), ratio_range=(1, 1), crop_size=(32, 32), photometric=NO_COLOUR
        )
        image, labels = photo(32, 32), patches(32, 32)
        transform = TrainTransform(config)
        flips = sum(
            not np.array_equal(augment(transform, image, labels, sample_generator(0, p))[0], image)
            for p in range(400)
        )
        assert 160 < flips < 240

    def test_image_and_labels_stay_aligned(self) -> None:
        labels = patches(96, 160)
        # The image shows its own labels, so any misalignment is visible after all steps.
        image = np.repeat(labels[..., None], 3, axis=2)
        config = AugmentConfig(
            scale=(160, 96), crop_size=(64, 64), vertical_flip=0.5, photometric=NO_COLOUR
        )
        for position in range(40):
            got, ids = augment(TrainTransform(config), image, labels, sample_generator(2, position))
            # Bilinear and nearest differ where classes meet, which is a minority of pixels.
            assert np.mean(got[..., 0] == ids) > 0.6
        config = config.model_copy(update={"ratio_range": (1.0, 1.0)})
        for position in range(40):
            got, ids = augment(TrainTransform(config), image, labels, sample_generator(2, position))
            assert np.array_equal(got[..., 0], ids)


class TestCropFirst:
    @settings(max_examples=150, deadline=None)
    @given(
        height=st.integers(20, 300),
        width=st.integers(20, 300),
        position=st.integers(0, 10**9),
        seed=st.integers(0, 10**6),
        rare=st.sampled_from([0.0, 0.5]),
        turn=st.sampled_from([0.0, 0.5]),
    )
    def test_equal_to_the_plain_order(
        self, height: int, width: int, position: int, seed: int, rare: float, turn: float
    ) -> None:
        image, labels = photo(height, width, seed % 7), patches(height, width, seed=seed % 5)
        config = AugmentConfig(
            scale=(400, 128),
            crop_size=(96, 64),
            photometric=NO_COLOUR,
            rare_class_crops=rare,
            vertical_flip=turn,
        )
        plain = TrainTransform(config.model_copy(update={"crop_first": False}))
        fast_image, fast_labels = augment(
            TrainTransform(config), image, labels, sample_generator(seed, position)
        )
        image, labels = augment(plain, image, labels, sample_generator(seed, position))
        assert np.array_equal(fast_labels, labels)
        assert fast_image.shape == image.shape
        assert np.abs(fast_image.astype(int) - image).max() <= 1

    def test_colours_draw_alike_in_both_orders(self) -> None:
        # A flat picture resizes to itself, so even distorted colours must agree exactly.
        image = np.full((200, 300, 3), (180, 90, 30), np.uint8)
        labels = patches(200, 300)
        for position in range(30):
            results = [
                sample(
                    TrainTransform(AugmentConfig(crop_size=(96, 96), crop_first=first)),
                    image,
                    labels,
                    sample_generator(0, position),
                )
                for first in (True, False)
            ]
            assert np.array_equal(results[0][0], results[1][0])
            assert np.array_equal(results[0][1], results[1][1])

    def test_real_photos(self, shared_data) -> None:
        from cgrseg.data.image_files import read_image
        from cgrseg.data.label_files import read_label

        root = shared_data / "ade20k_samples"
        stem = "validation/ADE_val_00000001"
        image = read_image(root / f"images/{stem}.jpg")
        labels = read_label(root / f"annotations/{stem}.png")
        config = AugmentConfig(photometric=NO_COLOUR)
        plain = TrainTransform(config.model_copy(update={"crop_first": False}), 0)
        for position in range(12):
            fast_image, fast_labels = augment(
                TrainTransform(config, 0), image, labels, sample_generator(0, position)
            )
            slow_image, slow_labels = augment(plain, image, labels, sample_generator(0, position))
            assert np.array_equal(fast_labels, slow_labels)
            assert np.abs(fast_image.astype(int) - slow_image).max() <= 1


class TestOptions:
    def test_all_are_off_by_default(self) -> None:
        config = AugmentConfig()
        assert (config.vertical_flip, config.rotation, config.rare_class_crops) == (0, 0, 0)
        assert not config.colour_only
        assert not config.reduced_decode

    def test_vertical_flip(self) -> None:
        config = AugmentConfig(
            scale=(32, 32),
            ratio_range=(1, 1),
            crop_size=(32, 32),
            flip=0,
            vertical_flip=1,
            photometric=NO_COLOUR,
        )
        image, labels = photo(32, 32), patches(32, 32)
        got, ids = augment(TrainTransform(config), image, labels, np.random.default_rng(0))
        assert np.array_equal(got, image[::-1])
        assert np.array_equal(ids, labels[::-1])

    def test_flip_by_hand(self) -> None:
        labels = np.array([[1, 2], [3, 4]], np.uint8)
        assert flip(labels, horizontal=True).tolist() == [[2, 1], [4, 3]]
        assert flip(labels, horizontal=False).tolist() == [[3, 4], [1, 2]]

    def test_quarter_turn_is_exact(self) -> None:
        image, labels = photo(33, 33), patches(33, 33)
        got, ids = rotate(image, labels, 90, 255)
        assert np.array_equal(ids, np.rot90(labels))
        assert np.abs(got.astype(int) - np.rot90(image)).max() <= 1

    def test_corners_that_come_from_outside_are_ignored(self) -> None:
        image, labels = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
        got, ids = rotate(image, labels, 45, 255)
        assert [ids[0, 0], ids[0, 63], ids[63, 0], ids[63, 63]] == [255] * 4
        assert ids[32, 32] == 0
        assert got[0, 0].tolist() == [124, 116, 104]
        # An octagon stays: of the unit square turned by 45 degrees 2 * (sqrt(2) - 1) is inside.
        assert np.mean(ids == 0) == pytest.approx(2 * (2**0.5 - 1), abs=0.02)

    def test_rotation_draws_both_directions(self) -> None:
        config = AugmentConfig(
            scale=(64, 64), ratio_range=(1, 1), crop_size=(64, 64), flip=0, rotation=30
        )
        labels = np.zeros((64, 64), np.uint8)
        labels[:32] = 1
        transform = TrainTransform(config)
        leaning = []
        for position in range(60):
            _, ids = augment(transform, photo(64, 64), labels, sample_generator(0, position))
            left, right = np.sum(ids[:, :32] == 1), np.sum(ids[:, 32:] == 1)
            leaning.append(int(np.sign(left - right)))
        assert 15 < leaning.count(1) < 45
        assert 15 < leaning.count(-1) < 45

    def test_rare_classes_are_drawn_as_often_as_common_ones(self) -> None:
        labels = np.zeros((100, 100), np.uint8)
        labels[50, 60] = 3  # one pixel of 10,000
        labels[:10] = 255
        drawn = [
            draw_pixel_of_any_class(labels, 255, np.random.default_rng(seed)) for seed in range(300)
        ]
        assert None not in drawn
        assert 115 < drawn.count((50, 60)) < 185
        assert all(pixel is not None and pixel[0] >= 10 for pixel in drawn)

    def test_nothing_labelled_falls_back_to_any_crop(self) -> None:
        assert draw_pixel_of_any_class(np.full((4, 4), 255, np.uint8), 255, None) is None  # type: ignore[arg-type]

    @pytest.mark.parametrize("place", [(0, 0), (199, 299), (100, 7), (120, 280)])
    def test_rare_crops_hold_the_rare_pixel(self, place: tuple[int, int]) -> None:
        labels = np.zeros((200, 300), np.uint8)
        row, column = place
        labels[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 1
        config = AugmentConfig(
            scale=(300, 200), ratio_range=(1, 2), crop_size=(64, 64), rare_class_crops=1
        )
        transform = TrainTransform(config.model_copy(update={"max_class_share": 1.0}))
        hits = [
            (transform.plan(labels, sample_generator(0, p)).labels == 1).any() for p in range(200)
        ]
        # Half of the draws choose the rare class, and all of those must show it.
        assert 75 < sum(hits) < 200
        plain = TrainTransform(config.model_copy(update={"rare_class_crops": 0.0}))
        seldom = [
            (plain.plan(labels, sample_generator(0, p)).labels == 1).any() for p in range(200)
        ]
        assert sum(seldom) < sum(hits)

    def test_colour_only_keeps_the_geometry(self) -> None:
        config = AugmentConfig(
            scale=(80, 60), crop_size=(32, 32), rotation=30, vertical_flip=1, colour_only=True
        )
        image, labels = photo(60, 80), patches(60, 80)
        images = []
        for position in range(8):
            got, ids = augment(TrainTransform(config), image, labels, sample_generator(0, position))
            assert np.array_equal(ids, labels[14:46, 24:56])
            images.append(got)
        assert any(not np.array_equal(images[0], other) for other in images[1:])
        calm = TrainTransform(config.model_copy(update={"photometric": NO_COLOUR}))
        got, _ = augment(calm, image, labels, np.random.default_rng(0))
        assert np.array_equal(got, image[14:46, 24:56])
