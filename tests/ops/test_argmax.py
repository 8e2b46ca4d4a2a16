"""Fused resize and argmax against a float64 evaluation of the plain definition."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrseg import ops
from cgrseg.errors import DataError
from cgrseg.ops import upsample_argmax_reference, upsample_confidence, upsample_topk
from cgrseg.ops.argmax import argmax_on_device, topk_on_device

GAP = 1e-5
ON_DEVICE = " on device"
METHODS = tuple(f"{m}{form}" for m in ("auto", "boundary", "dense") for form in ("", ON_DEVICE))
half_precisions = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def upsample_argmax(logits, size, *, method="auto", **steps):
    """Labels by NumPy, or by the form for GPUs, which runs on the CPU as well."""
    form = argmax_on_device if method.endswith(ON_DEVICE) else ops.upsample_argmax
    return form(logits, size, method=method.removesuffix(ON_DEVICE), **steps)


def resized(logits, size, *, input_size=None, crop=None):
    """Full-size float64 logits, as the published test path resizes them."""
    values = logits.double()
    if input_size is not None:
        values = F.interpolate(values, size=input_size, mode="bilinear", align_corners=False)
        if crop is not None:
            values = values[..., : crop[0], : crop[1]]
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def assert_exact(labels, logits, size, **steps):
    """Labels are the float64 argmax except where the two best differ by at most GAP."""
    full = resized(logits, size, **steps)
    best, expected = full.max(dim=1)
    assert labels.dtype == torch.int64 and labels.shape == expected.shape
    chosen = full.gather(1, labels[:, None])[:, 0]
    assert (best - chosen).max() <= GAP
    if logits.shape[1] > 1:
        two = full.topk(2, dim=1).values
        clear = two[:, 0] - two[:, 1] > GAP
        assert torch.equal(labels[clear], expected[clear])


def random_logits(kind, seed, batch, classes, height, width):
    """Kinds of maps that stress different parts of the method, magnitudes below 30."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, classes, height, width, generator=generator)
    if kind == "noise":
        return noise
    if kind == "constant":
        return noise[:, :, :1, :1].expand(batch, classes, height, width)
    if kind == "regions":
        coarse = torch.randn(batch, classes, 2, 2, generator=generator)
        smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
        return 5 * smooth + 0.1 * noise
    if kind == "near ties":  # all classes within a few GAP of each other everywhere
        return noise[:, :1] + 3 * GAP * torch.randn(noise.shape, generator=generator)
    if kind == "third class":  # 0 and 1 take turns; class 2 wins only between them
        stripes = torch.where(torch.arange(width) % 2 == 0, 4.0, -4.0).expand_as(noise[:, 0])
        noise[:, 0] = stripes
        noise[:, 1 % classes] = -stripes
        noise[:, 2 % classes] = 3.9
        return noise
    raise AssertionError(kind)


kinds = st.sampled_from(["noise", "constant", "regions", "near ties", "third class"])


@settings(deadline=None, max_examples=120)
@given(
    kind=kinds,
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 3),
    classes=st.integers(1, 200),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    out_height=st.integers(1, 60),
    out_width=st.integers(1, 60),
    dtype=half_precisions,
    method=st.sampled_from(METHODS),
)
def test_one_step(kind, seed, batch, classes, height, width, out_height, out_width, dtype, method):
    logits = random_logits(kind, seed, batch, classes, height, width).to(dtype)
    size = (out_height, out_width)
    assert_exact(upsample_argmax(logits, size, method=method), logits, size)


@settings(deadline=None, max_examples=120)
@given(
    kind=kinds,
    seed=st.integers(0, 2**32),
    classes=st.integers(1, 60),
    height=st.integers(1, 10),
    width=st.integers(1, 10),
    stride=st.integers(1, 8),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    method=st.sampled_from(METHODS),
)
def test_two_steps_with_crop(kind, seed, classes, height, width, stride, cut, size, method):
    logits = random_logits(kind, seed, 1, classes, height, width)
    input_size = (height * stride, width * stride)
    crop = (max(1, round(cut[0] * input_size[0])), max(1, round(cut[1] * input_size[1])))
    labels = upsample_argmax(logits, size, input_size=input_size, crop=crop, method=method)
    assert_exact(labels, logits, size, input_size=input_size, crop=crop)


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32),
    classes=st.integers(1, 40),
    levels=st.integers(1, 4),
    scale=st.sampled_from([1, 2, 4, 8]),
    method=st.sampled_from(METHODS),
)
def test_exact_ties_go_to_the_smallest_index(seed, classes, levels, scale, method):
    """Small whole numbers at a scale of 2^n: every sum is exact, ties abound."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, levels, (2, classes, 6, 5), generator=generator).float()
    size = (6 * scale, 5 * scale)
    expected = resized(logits, size).argmax(dim=1)
    assert torch.equal(upsample_argmax(logits, size, method=method), expected)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    classes=st.integers(2, 70),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    method=st.sampled_from(METHODS),
)
def test_copies_of_a_class_never_win_over_the_first(seed, classes, size, method):
    """Equal maps stay equal whatever rounding does, wherever in memory they lie."""
    generator = torch.Generator().manual_seed(seed)
    originals = torch.randn(1, classes, 7, 6, generator=generator)
    logits = torch.cat([originals, originals.flip(1), originals], dim=1)
    labels = upsample_argmax(logits, size, method=method)
    assert labels.max() < classes
    assert_exact(labels, originals, size)


def test_by_hand():
    """Two classes over two positions, doubled: weights 1, 3/4, 1/4, 0 of the first position."""
    logits = torch.tensor([[[[4.0, -4.0]], [[0.0, 0.0]], [[1.0, 1.0]]]])  # (1, 3, 1, 2)
    # Class 0 is worth 4, 2, -2, -4; class 2 is worth 1 everywhere.
    for method in METHODS:
        assert upsample_argmax(logits, (1, 4), method=method).tolist() == [[[0, 0, 2, 2]]]


def test_a_class_that_wins_no_position_can_win_between():
    """Classes 0 and 1 win the ends with 10 and are 0 in the middle, where class 2 has 8."""
    logits = torch.tensor([[[[10.0, -10.0]], [[-10.0, 10.0]], [[8.0, 8.0]]]])
    for method in METHODS:
        labels = upsample_argmax(logits, (1, 8), method=method)[0, 0]
        # Class 0 along the outputs: 10, 10, 7.5, 2.5, -2.5, ...; above 8 in the first two.
        assert labels.tolist() == [0, 0, 2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize("classes", [256, 257, 32768, 32769])
@pytest.mark.parametrize("method", METHODS)
def test_the_last_of_many_classes_keeps_its_id(classes, method):
    """Ids are held in one, two or four bytes until the end."""
    logits = torch.zeros(1, classes, 2, 3)
    logits[:, -1, :, 0] = 1.0  # the last class on the left
    logits[:, -2, :, 2] = 1.0  # the one before it on the right
    found = upsample_argmax(logits, (4, 12), method=method)
    assert found[:, :, 0].unique().tolist() == [classes - 1]
    assert found[:, :, -1].unique().tolist() == [classes - 2]
    assert_exact(found, logits, (4, 12))


@pytest.mark.parametrize("method", METHODS)
def test_a_winner_that_rounding_puts_below_the_mean_stays(method):
    """The float32 mean of nine equal values can lie above them: 13.046993 is such a value."""
    x = 13.046993255615234
    logits = torch.full((1, 2, 8, 8), x)
    logits[:, 1] -= 5
    logits[:, 1, 4, 3] = torch.tensor(x).nextafter(torch.tensor(99.0))  # wins here, by a hair
    steps = {"input_size": (64, 64), "size": (50, 50)}
    assert_exact(upsample_argmax(logits, method=method, **steps), logits, **steps)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    classes=st.integers(2, 30),
    share=st.floats(0.05, 0.95),
    stride=st.integers(2, 8),
    size=st.tuples(st.integers(20, 60), st.integers(20, 60)),
    method=st.sampled_from(METHODS),
)
def test_two_values_one_rounding_apart(seed, classes, share, stride, size, method):
    """Every class has one of two neighbouring numbers everywhere, or is far below."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(1, generator=generator) * 7 + 8
    high = low.nextafter(torch.tensor(99.0))
    drawn = torch.rand(1, classes, 5, 6, generator=generator)
    logits = torch.where(drawn < share, low, torch.where(drawn < 0.98, high, low - 5))
    steps = {"input_size": (5 * stride, 6 * stride), "size": size}
    assert_exact(upsample_argmax(logits, method=method, **steps), logits, **steps)


def test_strides_and_batches_make_no_difference():
    logits = random_logits("regions", 3, 4, 21, 9, 11)
    expected = torch.stack([upsample_argmax(one[None], (70, 81))[0] for one in logits])
    for same in (logits, logits.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(upsample_argmax(same, (70, 81)), expected)
    wide = random_logits("regions", 3, 4, 21, 9, 22)
    part = wide[..., ::2]
    assert torch.equal(upsample_argmax(part, (70, 81)), upsample_argmax(part.clone(), (70, 81)))


def test_input_is_left_alone_and_no_gradient_is_recorded():
    logits = random_logits("noise", 0, 1, 9, 5, 5).requires_grad_()
    before = logits.detach().clone()
    for channels_last in (False, True):
        given_logits = logits
        if channels_last:
            given_logits = logits.contiguous(memory_format=torch.channels_last)
        labels = upsample_argmax(given_logits, (31, 33))
        _, confidence = upsample_confidence(given_logits, (31, 33))
        assert not labels.requires_grad and not confidence.requires_grad
        assert torch.equal(given_logits.detach(), before)


def test_real_labels_smoothed(shared_data):
    """A realistic map: most of it decided without arithmetic, all of it exact."""
    files = sorted((shared_data / "ade20k_samples" / "annotations").glob("*/*.png"))
    assert files
    label = cv2.imread(str(files[0]), cv2.IMREAD_UNCHANGED)
    assert label is not None
    label = cv2.resize(label, (256, 256), interpolation=cv2.INTER_NEAREST)
    one_hot = np.eye(151, dtype=np.float32)[label][:, :, 1:]
    smooth = one_hot.reshape(32, 8, 32, 8, 150).mean((1, 3)).transpose(2, 0, 1)
    noise = np.random.default_rng(0).standard_normal(smooth.shape)
    logits = torch.from_numpy((10 * smooth + 0.3 * noise).astype(np.float32))[None]
    assert len(upsample_argmax(logits, (256, 256)).unique()) > 5
    for method in METHODS:
        assert_exact(upsample_argmax(logits, (256, 256), method=method), logits, (256, 256))
        steps = {"input_size": (256, 256), "crop": (192, 256)}
        labels = upsample_argmax(logits, (213, 284), method=method, **steps)
        assert_exact(labels, logits, (213, 284), **steps)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    classes=st.integers(1, 60),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    magnitude=st.sampled_from([0.1, 1.0, 10.0]),
    data=st.data(),
)
def test_probabilities(seed, classes, size, magnitude, data):
    logits = magnitude * random_logits("noise", seed, 2, classes, 6, 7)
    logits = logits.clamp(-30, 30)
    expected = resized(logits, size).softmax(dim=1)
    labels, confidence = upsample_confidence(logits, size)
    assert_exact(labels, logits, size)
    assert torch.allclose(confidence.double(), expected.amax(dim=1), rtol=2e-5, atol=0)
    k = data.draw(st.integers(1, classes))
    top_labels, top = upsample_topk(logits, size, k)
    assert torch.allclose(top.double(), expected.topk(k, dim=1).values, rtol=5e-5, atol=1e-12)
    at_labels = expected.gather(1, top_labels)
    assert torch.allclose(top.double(), at_labels, rtol=5e-5, atol=1e-12)
    assert torch.equal(top[:, 0], confidence)
    device_labels, on_device = topk_on_device(logits, size, k)
    assert_exact(device_labels[:, 0], logits, size)
    assert torch.allclose(on_device, top, rtol=5e-5, atol=1e-12)
    assert all(len(set(column)) == k for column in top_labels[0].flatten(1).T.tolist())


def test_confidence_by_hand():
    # In the middle of (0, ln 9) the second class has ln 3: 3 against 1.
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 1] = np.log(9)
    labels, confidence = upsample_confidence(logits, (1, 1))
    assert labels.tolist() == [[[1]]]
    assert confidence.item() == pytest.approx(0.75, rel=1e-6)


def test_reference_is_the_plain_definition():
    logits = random_logits("noise", 5, 2, 11, 6, 7)
    steps = {"input_size": (24, 28), "crop": (20, 28)}
    expected = resized(logits, (33, 41), **steps).argmax(dim=1)
    assert torch.equal(upsample_argmax_reference(logits.double(), (33, 41), **steps), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_value_that_is_not_finite_is_refused(value, channels_last):
    logits = torch.zeros(1, 5, 4, 4)
    logits[0, 3, 2, 1] = value
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    for function in (upsample_argmax, upsample_confidence):
        with pytest.raises(DataError, match=r"1\.25 % of the logits"):
            function(logits, (8, 8))
    with pytest.raises(DataError, match="NaN or infinite"):
        upsample_topk(logits, (8, 8), 2)


def test_large_finite_values_are_accepted():
    """Their sum overflows float32, which is not to be mistaken for infinity."""
    logits = torch.full((1, 2, 4, 4), 3e38)
    logits[:, 0] = -1e4
    assert (upsample_argmax(logits, (9, 9)) == 1).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "message"),
    [
        ((5, 4, 4), torch.float32, {}, "leading dimension"),
        ((1, 5, 4, 4), torch.int64, {}, "floating"),
        ((0, 5, 4, 4), torch.float32, {}, "none of them 0"),
        ((1, 5, 4, 4), torch.float32, {"size": (0, 8)}, r"size = \(0, 8\)"),
        ((1, 5, 4, 4), torch.float32, {"crop": (8, 8)}, "without input_size"),
        (
            (1, 5, 4, 4),
            torch.float32,
            {"input_size": (8, 8), "crop": (8, 9)},
            r"out of input_size = \(8, 8\)",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(shape, dtype, options, message):
    logits = torch.zeros(shape, dtype=dtype)
    arguments = {"size": (8, 8), **options}
    for function in (upsample_argmax, upsample_argmax_reference, upsample_confidence):
        with pytest.raises(DataError, match=message):
            function(logits, **arguments)


@pytest.mark.parametrize("k", [0, 6])
def test_topk_out_of_range_is_refused(k):
    with pytest.raises(DataError, match=f"k = {k} with 5 classes"):
        upsample_topk(torch.zeros(1, 5, 4, 4), (8, 8), k)


def test_inside_a_compiled_function():
    def decode(logits):
        return upsample_argmax(logits * 2, (40, 40)) + 1

    logits = random_logits("regions", 1, 1, 12, 5, 5)
    compiled = torch.compile(decode, backend="eager")
    assert torch.equal(compiled(logits), decode(logits))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["noise", "regions", "near ties", "third class"])
def test_on_a_gpu(kind):
    logits = random_logits(kind, 7, 2, 150, 16, 20)
    steps = {"input_size": (128, 160), "crop": (120, 160)}
    for method in METHODS:
        labels = upsample_argmax(logits.cuda(), (97, 131), method=method, **steps)
        assert labels.is_cuda
        assert_exact(labels.cpu(), logits, (97, 131), **steps)
