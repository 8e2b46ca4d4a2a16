"""Scores of rankings against answers computed by hand, and rankings with a real backend."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cgrseg.config.schema import DataConfig, TestConfig
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import write_label_png
from cgrseg.data.pair_files import load_image, load_label
from cgrseg.data.pairs import find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.errors import ConfigError
from cgrseg.evaluation.ranking import rank_images, rank_labels
from cgrseg.evaluation.selection import labeling_order
from cgrseg.evaluation.suspicion import (
    ClassConfidence,
    SuspectRegion,
    discounted,
    pixel_suspicion,
    suspect_regions,
)
from cgrseg.inference import Predictor
from cgrseg.inference.backends import Backend
from cgrseg.inference.image_sources import find_images
from cgrseg.inference.pixel_scores import pixel_scores

HALVES = TestConfig(resize="none")


def test_mean_probability_of_each_class() -> None:
    confidence = ClassConfidence(3)
    confidence.add(np.array([[0, 0, 1]]), np.array([[0.9, 0.5, 0.2]]))
    confidence.add(np.array([[1, 255]]), np.array([[0.6, 0.0]]))
    np.testing.assert_array_equal(confidence.pixels, [2, 2, 0])
    np.testing.assert_allclose(confidence.means(), [0.7, 0.4, 1.0])  # 2 is never labeled


def test_suspicion_of_pixels() -> None:
    means = np.array([0.8, 0.5])
    cases = [  # label, prediction, confidence, given, suspicion
        (0, 1, 0.6, 0.2, 0.6 * (1 - 0.2 / 0.8)),
        (0, 1, 0.45, 0.2, 0.0),  # less sure of 1 than where 1 is labeled
        (0, 0, 0.9, 0.9, 0.0),
        (255, 1, 0.9, 0.0, 0.0),  # an ignored pixel is no wrong label
        (1, 0, 0.9, 0.1, 0.9 * (1 - 0.1 / 0.5)),
        (1, 0, 0.79, 0.1, 0.0),
    ]
    labels, prediction, confidence, given, expected = (
        np.array(x)[None] for x in zip(*cases, strict=True)
    )
    found = pixel_suspicion(labels.astype(np.uint8), prediction, confidence, given, means)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_region_counts_and_a_strip_along_a_border_does_not() -> None:
    labels = np.zeros((100, 120), np.uint8)
    prediction = np.zeros_like(labels)
    prediction[10:20, 30:42] = 1  # 10 x 12 pixels
    prediction[60:62, :] = 1  # two pixels high: a border that is off by two
    prediction[13:17, 34:38] = 2  # another prediction is a region of its own
    suspicion = np.where(prediction > 0, np.float32(0.5), np.float32(0))
    suspicion[10, 30:42] = 0.25
    first, second = sorted(
        suspect_regions(suspicion, labels, prediction), key=lambda r: r.predicted
    )
    assert (first.given, first.predicted, first.pixels, first.box) == (0, 1, 104, (30, 10, 12, 10))
    assert first.suspicion == pytest.approx((92 * 0.5 + 12 * 0.25) / 104)
    assert (second.predicted, second.pixels, second.box) == (2, 16, (34, 13, 4, 4))
    painted = np.zeros_like(labels)
    cv2.drawContours(painted, list(first.outlines), -1, 1, cv2.FILLED)
    np.testing.assert_array_equal(painted > 0, (prediction == 1) & (np.arange(100) < 50)[:, None])


def test_a_confusion_that_other_images_have_too_counts_for_less() -> None:
    def region(given: int, predicted: int, pixels: int, suspicion: float) -> SuspectRegion:
        return SuspectRegion(given, predicted, pixels, suspicion, (0, 0, 1, 1))

    labeled = np.array([1000, 100])
    images = [[region(0, 1, 50, 0.8), region(1, 0, 80, 0.5)], [region(0, 1, 75, 0.8)], []]
    found = discounted(images, labeled)
    # Elsewhere, 60 of the 1000 pixels of class 0 are suspect as 1, then 40; of class 1 none.
    assert [[(r.given, r.suspicion) for r in own] for own in found] == [
        [(1, 0.5), (0, pytest.approx(0.8 / (1 + 0.06 / 0.001)))],
        [(0, pytest.approx(0.8 / (1 + 0.04 / 0.001)))],
        [],
    ]


def test_near_duplicates_come_last() -> None:
    # Image 1 is nearly image 0; image 3 is nearly labeled.
    features = np.array([[0.0, 0], [0.01, 0], [8, 0], [4.01, 0]])
    order = labeling_order(np.array([0.9, 0.89, 0.5, 1.0]), features, np.array([[4.0, 0]]))
    assert order.order.tolist() == [0, 2, 3, 1]
    np.testing.assert_allclose(order.distance, [1, 3.99 / 4, 1, 0.01 / 4], atol=1e-6)
    np.testing.assert_allclose(order.score, [0.9, 0.89 * 0.01 / 4, 0.5, 0.01 / 4], atol=1e-6)


def test_without_labeled_images_the_most_uncertain_is_first() -> None:
    features = np.array([[0.0], [1], [10]])
    order = labeling_order(np.array([0.3, 0.9, 0.2]), features, np.zeros((0, 1)))
    assert order.order.tolist() == [1, 2, 0]
    np.testing.assert_allclose(order.distance, 1)
    np.testing.assert_allclose(order.score, [0.3 / 9, 0.9, 0.2])


def test_images_that_are_all_the_same_keep_the_order_of_their_uncertainty() -> None:
    uncertainty = np.array([0.2, 0.8, 0.5])
    for labeled in (np.zeros((0, 3)), np.ones((1, 3))):
        order = labeling_order(uncertainty, np.ones((3, 3)), labeled)
        assert order.order.tolist() == [1, 2, 0]


class RedBackend(Backend):
    """Two classes: the redder an 8x8 block, the likelier class 1."""

    num_classes = 2
    device = torch.device("cpu")

    def logits(self, batch: Tensor) -> Tensor:
        red = F.avg_pool2d(batch[:, :1], 8)
        return torch.cat([-2 * red, 2 * red], dim=1)


def block_image(boxes: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Red boxes (top, bottom, left, right) on dark gray, and their label map."""
    labels = np.zeros((128, 160), np.uint8)
    for top, bottom, left, right in boxes:
        labels[top:bottom, left:right] = 1
    image = np.full((128, 160, 3), 30, np.uint8)
    image[labels == 1, 0] = 220
    return image, labels


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """Six images; in the label of `missing` a box is missing, in `ignored` one is ignored."""
    root = tmp_path / "boxes"
    for name in ("a", "b", "c", "d", "missing", "ignored"):
        image, labels = block_image([(16, 64, 16, 64), (72, 112, 96, 144)])
        if name == "missing":
            labels[72:112, 96:144] = 0
        if name == "ignored":
            labels[16:64, 16:64] = 255
        write_image(root / "images" / "train" / f"{name}.png", image)
        write_label_png(root / "annotations" / "train" / f"{name}.png", labels, [(0, 0, 0)] * 2)
    (root / "classes.txt").write_text("ground\nbox\n")
    return root


def test_a_missing_region_is_found_and_an_ignored_one_is_no_mistake(boxes: Path) -> None:
    spec = resolve_spec(DataConfig(dataset="custom", root=str(boxes)))
    pairs = find_pairs(spec, boxes, "train")
    predictor = Predictor(RedBackend(), HALVES, spec.classes)
    ranking, problems = rank_labels(predictor, spec, pairs)
    assert problems == []
    assert ranking[0].pair.stem == "missing"
    assert [one.suspicion for one in ranking[1:]] == [0] * 5
    (region,) = ranking[0].regions
    assert (region.given, region.predicted) == (0, 1)
    left, top, width, height = region.box
    assert abs(left - 96) <= 8 and abs(top - 72) <= 8
    assert abs(width - 48) <= 16 and abs(height - 40) <= 16
    assert 0.03 < ranking[0].suspicion < 48 * 40 / (128 * 160)


def test_suspicion_has_the_precision_of_the_probabilities(boxes: Path) -> None:
    spec = resolve_spec(DataConfig(dataset="custom", root=str(boxes)))
    pairs = find_pairs(spec, boxes, "train")
    predictor = Predictor(RedBackend(), HALVES, spec.classes)
    confidence = ClassConfidence(2)
    scored = {}
    for pair in pairs:
        labels = load_label(spec, pair)
        scores = pixel_scores(predictor.backend, load_image(pair, labels), HALVES, labels)
        assert scores.given is not None
        confidence.add(labels, scores.given)
        scored[pair.stem] = labels, scores.prediction, scores.confidence, scores.given
    labels, prediction, *_ = scored["missing"]
    suspicion = pixel_suspicion(*scored["missing"], confidence.means())
    (wanted,) = suspect_regions(suspicion, labels, prediction)
    (found,) = rank_labels(predictor, spec, pairs)[0][0].regions
    assert found.suspicion == pytest.approx(wanted.suspicion, rel=1e-6)


def test_a_damaged_image_is_named_and_the_others_are_ranked(boxes: Path) -> None:
    (boxes / "images" / "train" / "b.png").write_bytes(b"no image")
    spec = resolve_spec(DataConfig(dataset="custom", root=str(boxes)))
    predictor = Predictor(RedBackend(), HALVES, spec.classes)
    ranking, problems = rank_labels(predictor, spec, find_pairs(spec, boxes, "train"))
    assert [problem.path.name for problem in problems] == ["b.png"]
    assert len(ranking) == 5 and ranking[0].pair.stem == "missing"


def test_uncertainty_is_the_mean_entropy() -> None:
    """Red 123.675 is 0 after normalization: both classes get one half; pure colors are certain."""

    def mean_entropy(red: int) -> float:
        image = np.full((32, 32, 3), red, np.uint8)
        return float(pixel_scores(RedBackend(), image, HALVES).entropy.mean())

    logit = 2 * (160 - 123.675) / 58.395
    share = 1 / (1 + math.exp(-2 * logit))
    expected = -(share * math.log(share) + (1 - share) * math.log(1 - share)) / math.log(2)
    assert mean_entropy(160) == pytest.approx(expected, abs=1e-5)
    assert mean_entropy(124) == pytest.approx(1, abs=1e-3)
    assert mean_entropy(255) < 0.01


def test_probability_of_the_label() -> None:
    image, labels = block_image([(16, 64, 16, 64)])
    labels[0, 0] = 255
    scores = pixel_scores(RedBackend(), image, HALVES, labels)
    assert scores.given is not None
    assert scores.given[0, 0] == 0
    agree = (scores.prediction == labels) & (labels < 2)
    np.testing.assert_allclose(scores.given[agree], scores.confidence[agree])
    differ = (scores.prediction != labels) & (labels < 2)
    np.testing.assert_allclose(scores.given[differ], 1 - scores.confidence[differ], atol=1e-6)


def test_unlabeled_images(tmp_path: Path) -> None:
    """Uncertain before certain; the copy of an image and what looks like a labeled image last."""
    reds = {"copy1": 128, "copy2": 128, "sure": 200, "known": 90}
    for name, red in reds.items():
        image = np.full((64, 64, 3), 60, np.uint8)
        image[..., 0] = red
        write_image(tmp_path / "new" / f"{name}.png", image)
        if name == "known":
            write_image(tmp_path / "labeled.png", image)
    predictor = Predictor(RedBackend(), HALVES, ("ground", "box"))
    images = find_images(tmp_path / "new")
    ranking, problems = rank_images(predictor, images, [tmp_path / "labeled.png"])
    assert problems == []
    assert [one.image.name for one in ranking][:2] == ["copy1", "sure"]
    assert [one.score for one in ranking[2:]] == [pytest.approx(0, abs=1e-6)] * 2
    assert ranking[0].uncertainty > 0.9 > ranking[1].uncertainty


def test_a_network_that_gives_label_maps_only_is_refused() -> None:
    backend = RedBackend()
    backend.output = "labels"
    with pytest.raises(ConfigError, match="export it again"):
        pixel_scores(backend, np.zeros((32, 32, 3), np.uint8), HALVES)
