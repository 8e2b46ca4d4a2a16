"""Post-training quantisation to 8-bit integers: NNCF for OpenVINO, ONNX Runtime for ONNX.

Both watch a float network on calibration inputs, then give every layer that is worth it
8-bit weights (one scale per output channel) and 8-bit activations.  Layers of a group that
is kept back stay as they are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import EnvironmentProblem
from cgrseg.extras import require
from cgrseg.progress import Progress

Inputs = Sequence[NDArray[np.generic]]

CLASSIFIER = r"network\.head\.guide.*"
ATTENTION = r".*/(MatMul|Softmax)_\d+"
"""Groups of layers that can be kept back, as patterns of their nodes' names."""


def quantise_openvino(
    model: Any, inputs: Inputs, kept: Sequence[str], progress: Progress | None
) -> Any:
    """An `openvino.Model` in 8 bits.

    Args:
        model: in float32, with inputs of one size.
        inputs: calibration inputs, each a whole batch.
        kept: patterns of nodes that stay in float32.
        progress: called with inputs done and inputs in all.

    Raises:
        EnvironmentProblem: NNCF is not installed, or a pattern has no node.
    """
    nncf = _nncf()

    def watched() -> Iterator[NDArray[np.generic]]:
        for number, one in enumerate(inputs):
            yield one
            if progress is not None:
                progress(number + 1, len(inputs))

    ignored = matching([node.get_friendly_name() for node in model.get_ops()], kept)
    return nncf.quantize(
        model,
        nncf.Dataset(_Once(watched)),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(inputs),
        fast_bias_correction=True,
        ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
    )


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names of nodes that belong to one of the groups.

    Raises:
        EnvironmentProblem: a group is empty, which the network's never are.
    """
    found: set[str] = set()
    for pattern in patterns:
        group = {name for name in names if re.fullmatch(pattern, name)}
        if not group:
            raise EnvironmentProblem(
                "quantisation",
                found=f"no node of the exported graph is called like {pattern}",
                expected="the nodes that stay in float32 under their modules' names",
                remedy="install the versions of torch and onnxscript that cgrseg was tried "
                "with (constraints.txt)",
            )
        found |= group
    return sorted(found)


class _Once:
    """Calls its function for a new iterator each time it is iterated."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return self._make()


def quantise_onnx(
    model: Any, inputs: Inputs, kept: Sequence[str], progress: Progress | None
) -> Any:
    """An `onnx.ModelProto` in 8 bits (QDQ form, convolutions and matrix products).

    Args:
        model: in float32, with inputs of one size.
        inputs: calibration inputs, each a whole batch.
        kept: patterns of nodes that stay in float32.
        progress: called with inputs done and inputs in all.

    Raises:
        EnvironmentProblem: ONNX Runtime is not installed, or a pattern has no node.
    """
    onnx = require("onnx", "quantization for onnx")
    quantization = require("onnxruntime.quantization", "quantization for onnx")
    name = model.graph.input[0].name

    reader = _Reader(name, inputs, progress)
    with tempfile.TemporaryDirectory() as folder, _no_remarks():
        source, ready, target = (Path(folder) / f"{n}.onnx" for n in ("float", "ready", "int8"))
        onnx.save(model, source)
        quantization.quant_pre_process(source, ready, skip_symbolic_shape=True)
        # Only now: preparing merges nodes and gives them other names.
        ignored = matching([node.name for node in onnx.load(ready).graph.node], kept)
        quantization.quantize_static(
            ready,
            target,
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=ignored,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        return onnx.load(target)


class _Reader:
    """Calibration inputs as ONNX Runtime asks for them (its `CalibrationDataReader`)."""

    def __init__(self, name: str, inputs: Inputs, progress: Progress | None) -> None:
        self._name = name
        self._inputs = inputs
        self._progress = progress
        self._next = 0

    def get_next(self) -> dict[str, Any] | None:
        """The next inputs by name; None after the last."""
        if self._next >= len(self._inputs):
            return None
        self._next += 1
        if self._progress is not None:
            self._progress(self._next, len(self._inputs))
        return {self._name: self._inputs[self._next - 1]}


def _nncf() -> Any:
    """NNCF, without the usage statistics that it would send by itself."""
    if "nncf" not in sys.modules:
        os.environ["NNCF_CI"] = "1"  # its own switch, read at import
        blocked = "openvino_telemetry"
        before = sys.modules.get(blocked)
        sys.modules[blocked] = None  # type: ignore[assignment]  # an import fails, nothing is sent
        try:
            require("nncf", "quantization for openvino")
        finally:
            if before is None:
                del sys.modules[blocked]
            else:
                sys.modules[blocked] = before
    nncf = require("nncf", "quantization for openvino")
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextlib.contextmanager
def _no_remarks() -> Iterator[None]:
    """Without the advice that the quantiser writes to the log."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
