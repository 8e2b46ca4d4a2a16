"""Fused resize and cross-entropy against PyTorch's own two steps."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrseg.errors import DataError
from cgrseg.ops import (
    upsample_accuracy,
    upsample_cross_entropy,
    upsample_cross_entropy_reference,
)
from cgrseg.ops.cross_entropy import Average
from cgrseg.ops.windows import tensor_plan


def make(seed, batch, classes, low, high, ignored, *, magnitude=3.0):
    """Logits, labels with a share of ignored pixels, class weights of which one may be 0."""
    generator = torch.Generator().manual_seed(seed)
    logits = magnitude * torch.randn(batch, classes, *low, generator=generator)
    target = torch.randint(0, classes, (batch, *high), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = 255
    weight = torch.rand(classes, generator=generator) * 2
    weight[0] = 0.0
    return logits, target, weight


def value_and_gradient(function, logits, target, **options):
    logits = logits.detach().clone().requires_grad_()
    loss = function(logits, target, **options)
    (3.0 * loss).backward()  # a factor from above, as loss scaling has
    return loss.detach(), logits.grad / 3.0


def pytorch(logits, target, *, weight=None, label_smoothing=0.0, average="all"):
    """The definition in PyTorch's own words, float64."""
    logits = F.interpolate(logits.double(), size=target.shape[1:], mode="bilinear")
    options = {
        "weight": None if weight is None else weight.double(),
        "ignore_index": 255,
        "label_smoothing": label_smoothing,
    }
    if average == "valid":
        return F.cross_entropy(logits, target, **options)
    return F.cross_entropy(logits, target, reduction="sum", **options) / (
        target.numel() if average == "all" else 1
    )


@settings(deadline=None, max_examples=120)
@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 3),
    classes=st.integers(1, 60),
    low=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    high=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    ignored=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    weighted=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    average=st.sampled_from(["all", "valid", "sum"]),
    channels_last=st.booleans(),
)
def test_equals_pytorch(
    seed, batch, classes, low, high, ignored, weighted, label_smoothing, average, channels_last
):
    logits, target, weight = make(seed, batch, classes, low, high, ignored)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    options = {
        "weight": weight if weighted else None,
        "label_smoothing": label_smoothing,
        "average": average,
    }
    value, gradient = value_and_gradient(upsample_cross_entropy, logits, target, **options)
    plain, plain_gradient = value_and_gradient(
        upsample_cross_entropy_reference, logits, target, **options
    )
    assert value.dtype == torch.float32 and gradient.shape == logits.shape
    expected, expected_gradient = value_and_gradient(pytorch, logits, target, **options)
    if not torch.isfinite(expected):  # nothing to average over: PyTorch divides by 0
        assert average == "valid"
        assert value == plain == 0
        assert not gradient.any() and not plain_gradient.any()
        return
    assert math.isclose(value, expected, rel_tol=1e-5, abs_tol=1e-6)
    assert math.isclose(plain, expected, rel_tol=1e-5, abs_tol=1e-6)
    largest = expected_gradient.abs().max()
    if classes == 1:  # softmax - 1 = 0, and what is left is rounding of the terms, which are 1
        largest = torch.tensor(0.1 * target.numel() if average == "sum" else 0.1)
    assert (gradient - expected_gradient).abs().max() <= 1e-5 * largest + 1e-9
    # PyTorch adds hundreds of equal terms one by one, and loses a digit more in doing so.
    assert (plain_gradient - expected_gradient).abs().max() <= 1e-4 * largest + 1e-9


def test_by_hand():
    """Two classes, one position resized to two pixels, one of them ignored.

    softmax of (ln 3, 0) is (3/4, 1/4); label 1: loss ln 4, gradient (3/4, -3/4).
    """
    logits = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1)
    target = torch.tensor([[[1, 255]]])
    value, gradient = value_and_gradient(upsample_cross_entropy, logits, target)
    assert value.item() == pytest.approx(math.log(4) / 2)
    assert gradient.flatten().tolist() == pytest.approx([0.375, -0.375])
    value, gradient = value_and_gradient(upsample_cross_entropy, logits, target, average="valid")
    assert value.item() == pytest.approx(math.log(4))
    assert gradient.flatten().tolist() == pytest.approx([0.75, -0.75])


def test_weights_and_averages_by_hand():
    """Pixels of losses ln 4 (label 1, weight 3) and ln 4/3 (label 0, weight 1)."""
    logits = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1)
    target = torch.tensor([[[1, 0, 255]]])
    weight = torch.tensor([1.0, 3.0])
    total = 3 * math.log(4) + math.log(4 / 3)
    divisors: dict[Average, int] = {"all": 3, "valid": 4, "sum": 1}
    for average, divisor in divisors.items():
        value = upsample_cross_entropy(logits, target, weight=weight, average=average)
        assert value.item() == pytest.approx(total / divisor)


def test_nothing_labelled_costs_nothing():
    logits, target, _ = make(0, 2, 5, (3, 3), (12, 12), 1.0)
    for average in ("all", "valid", "sum"):
        value, gradient = value_and_gradient(
            upsample_cross_entropy, logits, target, average=average
        )
        assert value == 0 and not gradient.any()


def test_only_classes_of_weight_zero_cost_nothing_on_average():
    """Smoothing gives the other class a loss, but there is no weight to divide it by."""
    logits = torch.zeros(1, 2, 2, 2)
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    options = {"weight": torch.tensor([0.0, 1.0]), "label_smoothing": 0.5}
    for function in (upsample_cross_entropy, upsample_cross_entropy_reference):
        value, gradient = value_and_gradient(function, logits, target, average="valid", **options)
        assert value == 0 and not gradient.any()
        # Summed: 16 pixels, a quarter (0.5 / 2 classes) of ln 2 each.
        value, _ = value_and_gradient(function, logits, target, average="sum", **options)
        assert value.item() == pytest.approx(4 * math.log(2))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("size", [(6, 9), (7, 4), (2, 2)])
def test_gradcheck(weighted, label_smoothing, size):
    logits, target, weight = make(1, 2, 4, (3, 3), size, 0.2, magnitude=1.0)

    def loss(values):
        return upsample_cross_entropy(
            values,
            target,
            weight=weight if weighted else None,
            label_smoothing=label_smoothing,
            average="valid",
        )

    assert torch.autograd.gradcheck(loss, logits.double().requires_grad_())


def test_second_derivative_is_refused():
    logits, target, _ = make(2, 1, 3, (2, 2), (4, 4), 0.0)
    loss = upsample_cross_entropy(logits.requires_grad_(), target)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_without_gradient():
    logits, target, _ = make(3, 2, 6, (4, 5), (32, 40), 0.1)
    expected = upsample_cross_entropy(logits.clone().requires_grad_(), target)
    value = upsample_cross_entropy(logits, target)
    assert expected.requires_grad and not value.requires_grad
    assert value == expected.detach()
    with torch.inference_mode():
        assert upsample_cross_entropy(logits, target) == value


def test_training_after_inference_of_the_same_size():
    """Plans are cached: one made in inference mode must serve a backward pass."""
    logits, target, _ = make(14, 1, 5, (3, 7), (19, 23), 0.0)
    with torch.inference_mode():
        expected = upsample_cross_entropy(logits, target)
    value, gradient = value_and_gradient(upsample_cross_entropy, logits, target)
    assert value == expected
    assert gradient.any()
    assert not tensor_plan(3, 19).weights.is_inference()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits, target, _ = make(4, 2, 19, (8, 8), (64, 64), 0.1)
    logits = logits.to(dtype)
    value, gradient = value_and_gradient(upsample_cross_entropy, logits, target)
    expected, expected_gradient = value_and_gradient(pytorch, logits.float(), target)
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    assert math.isclose(value, expected, rel_tol=1e-5)
    unit = torch.finfo(dtype).eps
    largest = expected_gradient.abs().max()
    assert (gradient.float() - expected_gradient).abs().max() <= 2 * unit * largest


def test_small_gradients_survive_float16():
    """The factor of loss scaling is applied before the gradient is rounded to float16."""
    logits, target, _ = make(5, 1, 150, (8, 8), (64, 64), 0.0)
    half = logits.half().requires_grad_()
    (65536.0 * upsample_cross_entropy(half, target)).backward()
    _, expected = value_and_gradient(pytorch, logits.half().float(), target)
    scaled = 65536.0 * expected
    assert (half.grad.float() - scaled).abs().max() <= 2e-3 * scaled.abs().max()
    assert (half.grad != 0).double().mean() > 0.99


def test_under_autocast():
    """Autocast must not round the products of the way back."""
    logits, target, _ = make(6, 2, 19, (8, 8), (64, 64), 0.1)
    expected = value_and_gradient(upsample_cross_entropy, logits, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = value_and_gradient(upsample_cross_entropy, logits, target)
    assert value == expected[0] and torch.equal(gradient, expected[1])


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_lower_matmul_precision_changes_nothing(precision):
    logits, target, weight = make(7, 2, 19, (8, 8), (64, 64), 0.1)
    _, expected = value_and_gradient(pytorch, logits, target, weight=weight)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        _, gradient = value_and_gradient(upsample_cross_entropy, logits, target, weight=weight)
    finally:
        torch.set_float32_matmul_precision(before)
    assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_inside_a_compiled_function_without_graph_breaks():
    logits, target, weight = make(8, 2, 7, (4, 4), (30, 30), 0.1)
    layer = torch.nn.Conv2d(7, 7, 1)

    def step(values):
        return upsample_cross_entropy(layer(values), target, weight=weight, average="valid")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(step(logits), layer.weight)
    (gradient,) = torch.autograd.grad(compiled(logits), layer.weight)
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("gradient_wanted", [False, True])
def test_operation_is_registered_properly(gradient_wanted):
    logits, target, weight = make(9, 1, 5, (3, 4), (10, 11), 0.1)
    torch.library.opcheck(
        torch.ops.cgrseg.upsample_cross_entropy_sum.default,
        (logits.requires_grad_(gradient_wanted), target, weight, 255, 0.1, gradient_wanted),
    )


def test_repeatable():
    logits, target, _ = make(10, 2, 50, (16, 16), (128, 128), 0.1)
    first = value_and_gradient(upsample_cross_entropy, logits, target)
    second = value_and_gradient(upsample_cross_entropy, logits, target)
    assert first[0] == second[0] and torch.equal(first[1], second[1])


def test_extreme_logits_stay_finite():
    logits, target, _ = make(11, 1, 6, (4, 4), (32, 32), 0.0, magnitude=1e4)
    value, gradient = value_and_gradient(upsample_cross_entropy, logits, target)
    expected, expected_gradient = value_and_gradient(pytorch, logits, target)
    assert math.isclose(value, expected, rel_tol=1e-5)
    # Logits of 1e4 are themselves only known to 1e-3, and so are the probabilities.
    assert (gradient - expected_gradient).abs().max() <= 1e-3 * expected_gradient.abs().max()


def test_other_ignore_index():
    logits, target, _ = make(12, 1, 6, (4, 4), (32, 32), 0.3)
    expected = upsample_cross_entropy(logits, target)
    moved = torch.where(target == 255, -100, target)
    assert upsample_cross_entropy(logits, moved, ignore_index=-100) == expected
    # An ignore index among the classes takes that class out of the loss.
    without = torch.where(target == 2, 255, target)
    both = torch.where(target == 255, 2, target)
    assert upsample_cross_entropy(logits, both, ignore_index=2) == upsample_cross_entropy(
        logits, without
    )


def test_accuracy_by_hand():
    """Best classes along the four outputs: 0, 0, 1, 1; one label ignored, one wrong."""
    logits = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    target = torch.tensor([[[0, 255, 0, 1]]])
    assert upsample_accuracy(logits, target).item() == pytest.approx(200 / 3)
    assert upsample_accuracy(logits, torch.full_like(target, 255)).item() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": torch.tensor([[[0, 5], [6, 1]]])}, r"ids \[5, 6\] in 2 pixels"),
        ({"target": torch.tensor([[[0, -1], [2, 1]]])}, r"ids \[-1\] in 1 pixels"),
        ({"target": torch.zeros(1, 2, 2, dtype=torch.int32)}, "int32 labels"),
        ({"target": torch.zeros(2, 2, 2, dtype=torch.int64)}, r"labels of shape \(2, 2, 2\)"),
        ({"target": torch.zeros(1, 1, 2, 2, dtype=torch.int64)}, r"shape \(1, 1, 2, 2\)"),
        ({"logits": torch.zeros(5, 2, 2)}, "leading dimension"),
        ({"weight": torch.ones(4)}, r"class weights of shape \(4,\)"),
        ({"weight": torch.tensor([1.0, -1.0, 1.0, 0.0, 2.0])}, "a class weight of -1"),
        ({"label_smoothing": 1.5}, "label_smoothing = 1.5"),
        ({"average": "mean"}, "average = 'mean'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    arguments = {
        "logits": torch.zeros(1, 5, 2, 2),
        "target": torch.zeros(1, 2, 2, dtype=torch.int64),
        **changes,
    }
    for function in (upsample_cross_entropy, upsample_cross_entropy_reference):
        with pytest.raises(DataError, match=message):
            function(**arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_on_a_gpu(label_smoothing):
    logits, target, weight = make(13, 2, 150, (16, 16), (128, 128), 0.2)
    options = {"weight": weight, "label_smoothing": label_smoothing, "average": "valid"}
    expected, expected_gradient = value_and_gradient(pytorch, logits, target, **options)
    options["weight"] = weight.cuda()
    value, gradient = value_and_gradient(
        upsample_cross_entropy, logits.cuda(), target.cuda(), **options
    )
    assert math.isclose(value, expected, rel_tol=1e-5)
    difference = (gradient.cpu() - expected_gradient).abs().max()
    assert difference <= 1e-5 * expected_gradient.abs().max()
