"""Losses against answers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from cgrseg.config.schema import Config, LossConfig
from cgrseg.errors import ConfigError
from cgrseg.loss_terms import TERMS, dice_loss, focal_loss, lovasz_loss
from cgrseg.training import losses
from cgrseg.training.losses import SegmentationLoss, hard_pixels, pixel_accuracy
from cgrseg.training.module import fused_optimizer

LN2, LN3 = math.log(2.0), math.log(3.0)


def two_pixels() -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes; probabilities of class 0: 1/2, 3/4, 1/4, 3/4; truth 0, 0, 0, ignored."""
    logits = torch.tensor([[[[0.0, LN3], [0.0, LN3]], [[0.0, 0.0], [LN3, 0.0]]]])
    label = torch.tensor([[[0, 0], [0, 255]]])
    return logits, label


def test_published_average_counts_ignored_pixels() -> None:
    logits, label = two_pixels()
    # -ln 1/2, -ln 3/4, -ln 1/4 over four pixels
    expected = (LN2 + math.log(4 / 3) + math.log(4.0)) / 4
    terms = SegmentationLoss(LossConfig(), 2)(logits, label)
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-6)
    assert float(terms["loss_ce"]) == pytest.approx(expected, rel=1e-6)
    assert set(terms) == {"loss", "loss_ce"}


def test_valid_average_leaves_ignored_pixels_out() -> None:
    logits, label = two_pixels()
    expected = (LN2 + math.log(4 / 3) + math.log(4.0)) / 3
    loss = SegmentationLoss(LossConfig(average="valid"), 2)(logits, label)["loss"]
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_nothing_labelled_gives_zero_and_no_gradient_trouble() -> None:
    added = [{f"{name}_weight": 1.0} for name in TERMS]
    for options in ({}, {"average": "valid"}, {"ohem_threshold": 0.7}, *added):
        logits = torch.randn(1, 3, 2, 2, requires_grad=True)
        label = torch.full((1, 4, 4), 255)
        loss = SegmentationLoss(LossConfig.model_validate(options), 3)(logits, label)["loss"]
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert logits.grad is not None and float(logits.grad.abs().max()) == 0.0


def test_class_weights_scale_their_class() -> None:
    logits, _ = two_pixels()
    label = torch.tensor([[[0, 1], [255, 255]]])
    # class 0 weighs 2: 2 ln 2; class 1 weighs 0.5: 0.5 ln 4; over four pixels
    expected = (2 * LN2 + 0.5 * math.log(4.0)) / 4
    config = LossConfig(class_weights=[2.0, 0.5])
    loss = SegmentationLoss(config, 2)(logits, label)["loss"]
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_class_weights_must_match_the_classes() -> None:
    with pytest.raises(ConfigError, match="2 numbers"):
        SegmentationLoss(LossConfig(class_weights=[1.0, 1.0]), 3)


def test_label_smoothing_by_hand() -> None:
    logits, _ = two_pixels()
    label = torch.tensor([[[255, 0], [255, 255]]])
    # target 0.9 / 0.1 against probabilities 3/4 / 1/4
    expected = (0.9 * math.log(4 / 3) + 0.1 * math.log(4.0)) / 4
    loss = SegmentationLoss(LossConfig(label_smoothing=0.2), 2)(logits, label)["loss"]
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_hard_pixels_below_the_threshold() -> None:
    logits, label = two_pixels()
    hard = hard_pixels(logits, label, threshold=0.6, min_pixels=1, ignore_index=255)
    assert hard.tolist() == [[[True, False], [True, False]]]
    loss = SegmentationLoss(LossConfig(ohem_threshold=0.6, ohem_min_pixels=1), 2)(logits, label)
    assert float(loss["loss"]) == pytest.approx((LN2 + math.log(4.0)) / 2, rel=1e-6)


def test_hard_pixels_keep_a_minimum() -> None:
    logits, label = two_pixels()
    two = hard_pixels(logits, label, threshold=0.1, min_pixels=2, ignore_index=255)
    assert two.tolist() == [[[True, False], [True, False]]]
    every = hard_pixels(logits, label, threshold=0.1, min_pixels=99, ignore_index=255)
    assert every.tolist() == [[[True, True], [True, False]]]


def test_dice_by_hand() -> None:
    logits, _ = two_pixels()
    label = torch.tensor([[[0, 0], [1, 255]]])
    # class 0: overlap 1/2 + 3/4, predicted 1/2 + 3/4 + 1/4, labelled 2 -> (2.5 + 1) / (3.5 + 1)
    # class 1: overlap 3/4, predicted 1/2 + 1/4 + 3/4, labelled 1 -> (1.5 + 1) / (2.5 + 1)
    expected = 1 - (3.5 / 4.5 + 2.5 / 3.5) / 2
    assert float(dice_loss(logits, label, 255)) == pytest.approx(expected, rel=1e-6)
    terms = SegmentationLoss(LossConfig.model_validate({"dice_weight": 3.0}), 2)(logits, label)
    assert float(terms["loss"]) == pytest.approx(float(terms["loss_ce"]) + 3 * expected, rel=1e-6)


def test_dice_skips_classes_without_labels() -> None:
    logits, _ = two_pixels()
    label = torch.tensor([[[0, 0], [0, 255]]])
    # only class 0: overlap and prediction 1/2 + 3/4 + 1/4, labelled 3
    expected = 1 - (3.0 + 1) / (4.5 + 1)
    assert float(dice_loss(logits, label, 255)) == pytest.approx(expected, rel=1e-6)


def test_lovasz_by_hand() -> None:
    logits, _ = two_pixels()
    label = torch.tensor([[[0, 0], [1, 255]]])
    # class 0: errors 1/2, 1/4 (true) and 1/4 (wrong); the intersection over union falls from 1
    # to 1/2 to 0, and the wrong pixel costs nothing more: 1/2 * 1/2 + 1/4 * 1/2
    # class 1: errors 1/2, 1/4 (wrong) and 1/4 (true): from 1 to 1/2 to 1/3 to 0 or, of the equal
    # errors the other first, from 1/2 to 0: 1/2 * 1/2 + 1/4 * 1/2
    expected = (1 / 2 * 1 / 2 + 1 / 4 * 1 / 2 + 1 / 2 * 1 / 2 + 1 / 4 * 1 / 2) / 2
    assert float(lovasz_loss(logits, label, 255)) == pytest.approx(expected, rel=1e-6)
    terms = SegmentationLoss(LossConfig.model_validate({"lovasz_weight": 3.0}), 2)(logits, label)
    assert float(terms["loss"]) == pytest.approx(float(terms["loss_ce"]) + 3 * expected, rel=1e-6)


def test_lovasz_of_certain_predictions_is_the_share_outside_the_intersection() -> None:
    found = torch.tensor([[[0, 0, 1, 2], [1, 1, 1, 0]]])
    label = torch.tensor([[[0, 1, 1, 1], [1, 255, 1, 0]]])
    logits = 200.0 * functional.one_hot(found, 3).movedim(-1, 1).double()
    # class 0: intersection 2 of a union of 3; class 1: 3 of 5; class 2 is in no label
    expected = (1 / 3 + 2 / 5) / 2
    assert float(lovasz_loss(logits, label, 255)) == pytest.approx(expected, rel=1e-12)


def test_focal_by_hand() -> None:
    logits, label = two_pixels()
    expected = (LN2 / 4 + math.log(4 / 3) / 16 + math.log(4.0) * 9 / 16) / 3
    assert float(focal_loss(logits, label, 255)) == pytest.approx(expected, rel=1e-6)


def plain_term(
    name: str, logits: NDArray[np.float64], label: NDArray[np.int64]
) -> tuple[float, NDArray[np.float64]]:
    """Value of a term by its definition, pixel by pixel, and its gradient by differences."""
    classes = logits.shape[1]

    def value(logits: NDArray[np.float64]) -> float:
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        pixels = [
            (shares[n, :, y, x], label[n, y, x])
            for n, y, x in np.ndindex(label.shape)
            if label[n, y, x] != 255
        ]
        if name == "focal":
            return float(np.mean([-((1 - p[k]) ** 2) * math.log(p[k]) for p, k in pixels]))
        present = [k for k in range(classes) if any(truth == k for _, truth in pixels)]
        parts = []
        for k in present:
            if name == "dice":
                both = sum(p[k] for p, truth in pixels if truth == k)
                either = sum(p[k] + (truth == k) for p, truth in pixels)
                parts.append(1 - (2 * both + 1) / (either + 1))
                continue
            errors = sorted(((abs((truth == k) - p[k]), truth == k) for p, truth in pixels))[::-1]
            total, before = 0.0, 0.0
            for count in range(1, len(errors) + 1):
                wrong = errors[:count]  # pixels that count as wrong
                true = sum(inside for _, inside in errors)
                kept = true - sum(inside for _, inside in wrong)
                lost = 1 - kept / (true + sum(not inside for _, inside in wrong))
                total += wrong[-1][0] * (lost - before)
                before = lost
            parts.append(total)
        return float(np.mean(parts))

    gradient, step = np.zeros_like(logits), 1e-6
    for place in np.ndindex(logits.shape):
        moved = np.zeros_like(logits)
        moved[place] = step
        gradient[place] = (value(logits + moved) - value(logits - moved)) / (2 * step)
    return value(logits), gradient


@pytest.mark.parametrize("name", list(TERMS))
@pytest.mark.parametrize("seed", range(3))
def test_terms_and_gradients_are_those_of_their_definition(name: str, seed: int) -> None:
    draws = np.random.default_rng(seed)
    logits = draws.normal(0, 2, (2, 4, 3, 2))
    label = draws.choice([0, 1, 3, 255], (2, 3, 2))
    wanted, slope = plain_term(name, logits, label)
    given = torch.from_numpy(logits).requires_grad_()
    found = TERMS[name].compute(given, torch.from_numpy(label), 255)
    found.backward()
    assert given.grad is not None
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(given.grad.numpy(), slope, rtol=1e-5, atol=1e-8)
    assert np.abs(slope).max() > 1e-3


def test_first_prediction_adds_its_own_loss() -> None:
    logits, label = two_pixels()
    terms = SegmentationLoss(LossConfig.model_validate({"initial_weight": 0.4}), 2)(
        logits, label, logits * 0
    )
    assert float(terms["loss_initial"]) == pytest.approx(3 * LN2 / 4, rel=1e-6)
    assert float(terms["loss"]) == pytest.approx(
        float(terms["loss_ce"]) + 0.4 * 3 * LN2 / 4, rel=1e-6
    )


def test_logits_are_upsampled_between_pixel_centres() -> None:
    # One row of logits 0, 1 for class 1 becomes 0, 0.25, 0.75, 1 without aligned corners.
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 1] = 1.0
    label = torch.ones(1, 1, 4, dtype=torch.int64)
    expected = sum(math.log(1 + math.exp(-value)) for value in (0.0, 0.25, 0.75, 1.0)) / 4
    loss = SegmentationLoss(LossConfig(), 2)(logits, label)["loss"]
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_half_precision_logits_are_averaged_in_single_precision() -> None:
    logits = torch.randn(2, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 5, (2, 128, 128), generator=torch.Generator().manual_seed(1))
    rounded = logits.to(torch.bfloat16)
    loss = SegmentationLoss(LossConfig(), 5)(rounded, label)["loss"]
    wide = functional.interpolate(rounded.float(), (128, 128), mode="bilinear")
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(functional.cross_entropy(wide, label)), rel=1e-5)


def test_accuracy_is_percent_of_labelled_pixels() -> None:
    logits, _ = two_pixels()
    label = torch.tensor([[[0, 0], [0, 255]]])
    # the tie of the first pixel goes to class 0; the third is predicted as class 1
    assert float(pixel_accuracy(logits, label, 255)) == pytest.approx(200 / 3)
    assert float(pixel_accuracy(logits, torch.full((1, 2, 2), 255), 255)) == 0.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"average": "valid"},
        {"class_weights": [0.0, 1.0, 2.5, 0.5, 1.0], "average": "valid"},
        {"class_weights": [0.3, 1.0, 2.5, 0.5, 1.0], "label_smoothing": 0.1},
        {"initial_weight": 0.4, "label_smoothing": 0.2},
    ],
)
def test_single_precision_equals_full_size_logits_in_double(options: dict[str, Any]) -> None:
    """float64 takes the plain way: resize, then PyTorch's cross-entropy."""
    generator = torch.Generator().manual_seed(4)
    label = torch.randint(0, 5, (2, 40, 56), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.3] = 255
    drawn = [3 * torch.randn(2, 5, 5, 7, generator=generator) for _ in range(2)]
    found = {}
    for dtype in (torch.float32, torch.float64):
        logits, initial = (value.to(dtype, copy=True).requires_grad_() for value in drawn)
        terms = SegmentationLoss(LossConfig(**options), 5)(logits, label, initial)
        terms["loss"].backward()
        assert terms["loss"].dtype == dtype
        found[dtype] = (terms["loss"].detach(), logits.grad, initial.grad)
    for ours, plain in zip(found[torch.float32], found[torch.float64], strict=True):
        if plain is None:
            assert ours is None and "initial_weight" not in options
            continue
        assert ours is not None
        assert float((ours - plain).abs().max()) <= 1e-5 * float(plain.abs().max())


def test_full_size_logits_are_made_only_where_an_option_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        raise AssertionError(f"logits of {size} were made")

    monkeypatch.setattr(losses, "upsample_logits", refuse)
    logits, label = two_pixels()
    for options in ({}, {"average": "valid", "class_weights": [1.0, 2.0]}, {"initial_weight": 1.0}):
        SegmentationLoss(LossConfig(**options), 2)(logits, label, logits)  # type: ignore[arg-type]
    pixel_accuracy(logits, label, 255)
    for needy in (LossConfig(ohem_threshold=0.5), LossConfig.model_validate({"dice_weight": 1.0})):
        with pytest.raises(AssertionError, match="were made"):
            SegmentationLoss(needy, 2)(logits, label)


def test_optimiser_is_fused_unless_checks_or_clipped_half_precision_forbid_it() -> None:
    def config(precision: str, clip: float | None = None) -> Config:
        return Config.model_validate(
            {"train": {"precision": precision}, "optimizer": {"clip_norm": clip}}
        )

    assert fused_optimizer(config("fp32"), "cpu")
    assert fused_optimizer(config("fp16"), "cuda")
    assert fused_optimizer(config("bf16"), "cuda")
    assert fused_optimizer(config("fp32", 1.0), "cuda")
    assert not fused_optimizer(config("bf16", 1.0), "cuda")
    assert not fused_optimizer(config("fp16", 1.0), "cuda")
    assert not fused_optimizer(config("fp64"), "cpu")
    assert not fused_optimizer(config("fp32"), "mps")
