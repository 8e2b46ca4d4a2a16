"""Taps against what PyTorch's own resizing and plain averaging give."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cgrseg.inference.decode import Taps, bilinear
from cgrseg.inference.device_decode import TapMatrix
from cgrseg.inference.views import averaged_windows, window_starts

lengths = st.integers(1, 60)


def dense(taps: Taps, inputs: int) -> NDArray[np.float64]:
    """The mapping as a matrix (outputs, inputs)."""
    matrix = np.zeros((len(taps), inputs))
    for output, (index, weight) in enumerate(zip(taps.index, taps.weight, strict=True)):
        for place, share in zip(index, weight, strict=True):
            matrix[output, place] += share
    return matrix


def resize(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """PyTorch's bilinear resize of one axis, in float64."""
    tensor = torch.from_numpy(values)[None, None, None]
    resized = F.interpolate(tensor, size=(1, length), mode="bilinear", align_corners=False)
    return np.asarray(resized[0, 0, 0].numpy())


def test_doubling_by_hand() -> None:
    # Centres of the outputs lie at -0.25 (clamped), 0.25, 0.75 and 1.25 (clamped) of the inputs.
    np.testing.assert_allclose(
        dense(bilinear(2, 4), 2), np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    )


@given(lengths, lengths, st.integers(0, 2**32 - 1))
def test_bilinear_is_what_pytorch_does(source: int, target: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal(source)
    np.testing.assert_allclose(
        dense(bilinear(source, target), source) @ values, resize(values, target), atol=1e-9
    )


@given(lengths, lengths, lengths, st.data())
def test_two_resizes_with_a_crop_between(
    cells: int, middle: int, target: int, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, middle))
    values = np.random.default_rng(cells).standard_normal(cells)
    taps = bilinear(kept, target).after(bilinear(cells, middle).crop(kept))
    expected = resize(resize(values, middle)[:kept], target)
    np.testing.assert_allclose(dense(taps, cells) @ values, expected, atol=1e-9)
    np.testing.assert_allclose(dense(taps.mirrored(), cells) @ values, expected[::-1], atol=1e-9)


def test_windows_of_the_published_example() -> None:
    assert window_starts(736, 512, 341) == [0, 224]
    assert window_starts(512, 512, 341) == [0]
    assert window_starts(300, 512, 341) == [0]
    assert window_starts(1536, 512, 341) == [0, 341, 682, 1023, 1024]


@given(st.integers(1, 200), st.integers(1, 80), st.data())
def test_windows_cover_everything_and_stay_inside(
    length: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    starts = window_starts(length, window, stride)
    covered = np.zeros(length, dtype=int)
    for start in starts:
        assert start >= 0 and (start + window <= length or start == 0)
        covered[start : start + window] += 1
    assert covered.min() >= 1
    # One window fewer would leave the end uncovered.
    assert len(starts) == 1 or starts[-2] + window < length


@given(st.integers(1, 120), st.integers(1, 50), st.data())
def test_averaged_windows_agree_with_adding_and_counting(
    length: int, crop: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, crop))
    window = min(crop, length)
    starts = window_starts(length, window, stride)
    cells = data.draw(st.integers(1, 9))
    fed = window + data.draw(st.integers(0, 5))
    values = np.random.default_rng(length).standard_normal((len(starts), cells))
    total, count = np.zeros(length), np.zeros(length)
    for start, of_window in zip(starts, values, strict=True):
        total[start : start + window] += resize(of_window, fed)[:window]
        count[start : start + window] += 1
    taps = averaged_windows(length, window, starts, bilinear(cells, fed), cells)
    found = dense(taps, values.size) @ values.ravel()
    np.testing.assert_allclose(found, total / count, atol=1e-9)


@given(st.integers(1, 40), st.integers(1, 60), st.data())
def test_a_part_is_the_rows_of_the_whole(source: int, target: int, data: st.DataObject) -> None:
    taps = bilinear(source, target)
    start = data.draw(st.integers(0, target - 1))
    stop = data.draw(st.integers(start + 1, target))
    part = TapMatrix.of(taps, start, stop)
    assert torch.equal(part.inputs, part.inputs.unique())
    whole = np.zeros((stop - start, source))
    whole[:, part.inputs.numpy()] = part.matrix.numpy()
    np.testing.assert_allclose(whole, dense(taps, source)[start:stop], atol=1e-6)
