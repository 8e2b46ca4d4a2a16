"""8-bit convolutions in ncnn's files: their bytes, by hand; what ncnn makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cgrseg.errors import EnvironmentProblem
from cgrseg.formats.ncnn_format import (
    FORMAT,
    _extracted,
    _Layer,
    _loaded,
    _Model,
    _parsed,
    _started,
)
from tests.deploy.device_packages import need_packages

CONV = "Convolution conv_1 1 1 in0 out0 0=2 1=1 11=1 12=1 13=1 14=0 2=1 3=1 4=0 5=1 6=6"
DEPTHWISE = "ConvolutionDepthWise dw 1 1 in0 out0 0=2 1=1 11=1 2=1 3=1 4=0 5=0 6=2 7=2"
KEPT = "MatMul product 2 1 a b c"


def whole(weights: NDArray[Any], bias: NDArray[Any] | None = None) -> bytes:
    """A convolution's part of the weights in float32."""
    tail = b"" if bias is None else bias.astype("<f4").tobytes()
    return b"\0\0\0\0" + weights.astype("<f4").tobytes() + tail


def model_of(line: str, weights: bytes, sizes: list[tuple[str, int]]) -> _Model:
    lines = ["7767517", "3 3", "Input in0 0 1 in0", line, KEPT, ""]
    return _Model("\n".join(lines).encode(), weights, sizes)


def test_bytes_of_a_convolution_by_hand() -> None:
    """Levels of 127 / largest per output channel, padding, bias, and the scales."""
    weights, bias = np.array([[1, -2, 0.5], [0.1, 0.2, -0.4]]), np.array([3.0, -4.0])
    layer = _Layer(CONV, whole(weights, bias))
    layer.quantize(5.08)
    levels = np.frombuffer(layer.weights, np.int8, 6, 4)
    assert layer.weights[:4] == bytes([0x38, 0x4B, 0x0D, 0x00])
    assert levels.tolist() == [64, -127, 32, 32, 64, -127]  # 63.5, 31.75; halves to even
    assert layer.weights[10:12] == b"\0\0"
    rest = np.frombuffer(layer.weights, "<f4", -1, 12)
    assert rest == pytest.approx([3.0, -4.0, 63.5, 317.5, 25.0])
    assert layer.line == f"{CONV} 8=2"


def test_a_channel_of_zeros_and_an_input_of_zeros_stay_finite() -> None:
    layer = _Layer(DEPTHWISE, whole(np.array([0.0, -8.0])))
    layer.quantize(0.0)
    assert np.frombuffer(layer.weights, np.int8, 2, 4).tolist() == [0, -127]
    assert np.frombuffer(layer.weights, "<f4", -1, 8) == pytest.approx([1.0, 127 / 8, 1.0])
    assert layer.line.endswith(" 8=1")


@given(arrays(np.float32, (2, 3), elements=st.floats(-1e3, 1e3, width=32)))
@example(np.full((2, 3), 1.8e-38, np.float32))  # 127 divided by it is beyond float32
def test_levels_are_within_half_a_step(weights: NDArray[np.float32]) -> None:
    layer = _Layer(CONV, whole(weights, np.zeros(2)))
    layer.quantize(1.0)
    levels = np.frombuffer(layer.weights, np.int8, 6, 4).reshape(2, 3).astype(np.float64)
    scales = np.frombuffer(layer.weights, "<f4", 2, 20)[:, None].astype(np.float64)
    assert np.abs(levels).max() <= 127
    assert (np.abs(levels / scales - weights) <= 0.501 / scales).all()


def test_weights_that_do_not_fit_the_graph_are_refused() -> None:
    content = whole(np.ones(6), np.zeros(2))
    assert [len(one.weights) for one in _parsed(model_of(CONV, content, []))] == [
        0,
        len(content),
        0,
    ]
    for damaged in (content[:-4], content + b"\0\0\0\0"):
        with pytest.raises(EnvironmentProblem, match="bytes of weights, where its layers load"):
            _parsed(model_of(CONV, damaged, []))


@pytest.mark.parametrize("line", [CONV, DEPTHWISE])
def test_ncnn_computes_what_the_file_says(line: str, tmp_path: Path) -> None:
    """Levels of weights and input multiplied as whole numbers, then scaled back."""
    need_packages("ncnn")
    is_full = line is CONV
    draws = np.random.default_rng(0)
    inputs = 3 if is_full else 2
    weights = draws.normal(size=(2, 3) if is_full else (2, 1))
    bias = draws.normal(size=2) if is_full else None
    image = draws.normal(size=(1, inputs, 4, 5)).astype(np.float32)
    model = model_of(line, whole(weights, bias), [("a", weights.size)])
    model = model._replace(graph=model.graph.replace(KEPT.encode() + b"\n", b""))
    model = model._replace(graph=model.graph.replace(b"3 3", b"2 2"))

    def calibration() -> Iterator[NDArray[Any]]:
        yield image
        yield image / 2

    made = FORMAT.quantize(model, list(calibration()), [])  # type: ignore[arg-type]
    path = tmp_path / "a.param"
    path.write_bytes(made.graph)
    path.with_suffix(".bin").write_bytes(made.weights)
    found = _extracted(_started(_loaded(path), image), "out0")
    scales = 127 / np.abs(weights).max(axis=1, keepdims=True)
    levels = np.rint(weights * scales)
    step = 127 / np.abs(image).max()
    seen = np.rint(image[0] * step)
    sums = np.einsum("oi,ihw->ohw", levels, seen) if is_full else levels[:, :, None] * seen
    wanted = sums / (scales[:, :, None] * step) + (0 if bias is None else bias[:, None, None])
    assert np.abs(found - wanted).max() < 1e-5
    exact = (
        np.einsum("oi,ihw->ohw", weights, image[0]) + bias[:, None, None]
        if bias is not None
        else weights[:, :, None] * image[0]
    )
    assert 1e-4 < np.abs(found - exact).max() < 0.05
