"""For OpenVINO.

A model is an `.xml` file with a `.bin` file of the same name beside it, run on the CPU.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import sys
import threading
import warnings
import xml.etree.ElementTree as ElementTree
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.devices import cpu_threads
from cgrseg.extras import require
from cgrseg.formats.base import ExportJob, Inputs, QuantizableFormat, Run, matching_nodes
from cgrseg.formats.description import (
    KEY,
    Description,
    check_digest,
    damaged,
    sealed,
    weights_beside,
)
from cgrseg.formats.onnx_format import FORMAT as ONNX
from cgrseg.input_files import open_input, read_input
from cgrseg.precision import Precision

_KIND = "an OpenVINO model"
_MAX_SHAPES = 4
_CORE = threading.Lock()
_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenvinoFormat(QuantizableFormat):
    """OpenVINO models."""

    suffix = ".xml"
    packages = ("openvino", "onnx", "onnxscript")
    stored = ("fp32", "fp16", "int8")
    precisions = tuple(_HINTS)

    def files(self, path: Path) -> tuple[Path, ...]:
        """Weights, then the graph."""
        return path.with_suffix(".bin"), path

    def build(self, job: ExportJob) -> Any:
        """An `openvino.Model`, made from the ONNX form."""
        model = core("export as openvino").read_model(ONNX.build(job).SerializeToString(), b"")
        model.input(0).get_tensor().set_names({"image"})
        model.output(0).get_tensor().set_names({job.description.gives})
        return model

    def save(self, model: Any, description: Description, path: Path) -> None:
        """Write an `openvino.Model` with its description: `path` and the `.bin` beside it."""
        openvino = require("openvino", "export as openvino")
        halved = description.precision == "fp16"
        openvino.save_model(model, path, compress_to_fp16=halved)
        digest = _file_digest(path.with_suffix(".bin"))
        model.set_rt_info(description.unsealed(weights_file_digest=digest), [KEY])
        openvino.save_model(model, path, compress_to_fp16=halved)
        path.write_bytes(sealed(read_input(path)))

    def quantize(self, model: Any, inputs: Inputs, kept: Sequence[str]) -> Any:
        """See :class:`QuantizableFormat`; NNCF quantizes."""
        nncf = _import_nncf()
        ignored = matching_nodes([node.get_friendly_name() for node in model.get_ops()], kept)
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(inputs),
            fast_bias_correction=True,
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
            # Weights of 7 bits, as in ONNX: sums of two products stay within 16 bits.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE
            ),
        )

    def open(self, path: Path, precision: Precision = "fp32") -> tuple[Description, Run]:
        """See :class:`ExportFormat`.

        Every input shape is compiled once, when it first comes, with all free axes fixed: tables
        that depend on the size are then computed once.  It uses as many threads as
        :func:`~cgrseg.devices.cpu_threads` says now.
        """
        return _open(path, precision, resize_tables=True)

    def other_runs(self, path: Path) -> Iterator[tuple[str, Description, Run]]:
        """With tables that OpenVINO resizes."""
        title = "with tables that OpenVINO resizes, as in other programs"
        yield title, *_open(path, "fp32", resize_tables=False)


def core(subject: object) -> Any:
    """The `openvino.Core` of this process.

    One for all models: with each further one the CPU plugin sets another alternate stack for
    signals, and takes it away such that the next signal may end the process (2026.4).

    Args:
        subject: what needs OpenVINO, for the message where it is not installed.
    """
    openvino = require("openvino", subject)
    with _CORE:
        return _core(openvino)


@functools.cache
def _core(openvino: Any) -> Any:
    return openvino.Core()


def _open(path: Path, precision: Precision, *, resize_tables: bool) -> tuple[Description, Run]:
    """Open a model; `resize_tables`: resize its tables here, far faster than OpenVINO does."""
    openvino, runtime = require("openvino", path), core(path)
    weights = weights_beside(path)
    content = read_input(path)
    text = _description_in(content, path)
    description = Description.read(text, path)
    check_digest(content, description, path, _KIND)
    if _file_digest(weights) != description.weights_file_digest:
        raise damaged(weights, f"the weights that belong to {path.name}", "another content")
    try:
        model = runtime.read_model(path, weights)
    except Exception as error:  # the runtime raises RuntimeError for everything
        raise damaged(path, _KIND, error) from error
    if model.get_rt_info([KEY]).astype(str) != text:
        raise damaged(path, _KIND, "it holds two descriptions")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": cpu_threads(),
    }
    requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        request = requests.get(array.shape)
        if request is None:
            fixed = model.clone()
            if fixed.input(0).partial_shape.is_dynamic:
                fixed.reshape(list(array.shape))
                if resize_tables:
                    _resize_stored_tables(fixed, openvino)
            fixed = _with_classes_last(fixed, openvino)
            request = runtime.compile_model(fixed, "CPU", settings).create_infer_request()
            requests[array.shape] = request
            if len(requests) > _MAX_SHAPES:
                requests.popitem(last=False)
        requests.move_to_end(array.shape)
        request.infer([array], share_inputs=True)
        # The runtime writes its next result to the same memory.
        found = np.array(request.get_output_tensor(0).data)
        return found.transpose(0, 3, 1, 2) if found.ndim == 4 else found

    return description, run


def run_in_memory(program: Any, threads: int) -> Run:
    """A network converted to OpenVINO without a file, in float32.

    Args:
        program: a `torch.export.ExportedProgram` with one input of a fixed size.
        threads: number of threads of the runtime.

    Returns:
        Function from an input to logits (N, K, h, w).

    Raises:
        Exception: whatever the runtime raises about a program that it cannot convert.
    """
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    shape = list(program.example_inputs[0][0].shape)
    with _quiet_decoder():
        decoder = TorchFXPythonDecoder.from_exported_program(program)
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape(shape)
    model = _with_classes_last(model, openvino)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS["fp32"],
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core("a network").compile_model(model, "CPU", settings).create_infer_request()

    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        request.infer([array], share_inputs=True)
        found = np.array(request.get_output_tensor(0).data)
        return found.transpose(0, 3, 1, 2)

    return run


@contextlib.contextmanager
def _quiet_decoder() -> Iterator[None]:
    """Hide the decoder's messages about operations that PyTorch no longer has."""
    root, silent = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(silent)  # without any handler `logging.warning` would install one
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.removeHandler(silent)


def _description_in(content: bytes, path: Path) -> str | None:
    """The description in a model's metadata, found without the runtime; None: there is none.

    Only the metadata, at the end of the file, are parsed: all of the graph takes a tenth of a
    second.
    """
    start, end = content.rfind(b"<rt_info>"), content.rfind(b"</net>")
    if start < 0:
        return None
    try:
        if b"<!" in content:
            raise ValueError("a document type, which OpenVINO does not write")
        entry = ElementTree.fromstring(content[start:end]).find(KEY)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise damaged(path, _KIND, error) from error
    return None if entry is None else entry.get("value")


def _with_classes_last(model: Any, openvino: Any) -> Any:
    """The model with logits as (N, h, w, K), as it computes them and as decoding reads them."""
    logits = model.output(0)
    if logits.partial_shape.rank.get_length() != 4:
        return model  # label maps
    steps = openvino.preprocess.PrePostProcessor(model)
    steps.output().model().set_layout(openvino.Layout("NCHW"))
    steps.output().tensor().set_layout(openvino.Layout("NHWC"))
    return steps.build()


def _resize_stored_tables(model: Any, openvino: Any) -> None:
    """Replace every bicubic resize of a stored table by its result.

    The tables are the attention biases of a model for any size.  OpenVINO would resize them as
    well while it compiles, but with its reference code: a minute per input shape where this takes
    a tenth of a second.
    """
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "Interpolate":
            continue
        source = operation.input(0).get_source_output().get_node()
        if source.get_type_name() == "Convert":  # of float16 weights
            source = source.input(0).get_source_output().get_node()
        is_stored = source.get_type_name() == "Constant"
        if is_stored and operation.get_attributes()["mode"] == "cubic":
            *_, height, width = operation.get_output_shape(0)
            resized = resize_bicubic(np.array(source.data, np.float32), (height, width))
            operation.output(0).replace(openvino.op.Constant(resized).output(0))


def resize_bicubic(table: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize the last two axes as `torch.nn.functional.interpolate(mode="bicubic")` does."""
    for axis, target in ((-1, size[1]), (-2, size[0])):
        source = table.shape[axis]
        scale = float(np.float32(source / target))
        # As PyTorch rounds it: once, after the multiplication and the subtraction.
        center = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
        low = np.floor(center)
        total = np.zeros((), np.float32)
        for step in (-1, 0, 1, 2):
            index = np.clip(low.astype(np.int64) + step, 0, source - 1)
            weight = _cubic(np.abs(center - low - np.float32(step)))
            part = np.moveaxis(table.take(index, axis=axis), axis, -1) * weight
            total = total + np.moveaxis(part, -1, axis)
        table = total
    return np.ascontiguousarray(table)


def _cubic(distance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weight of an input in bicubic interpolation (a = -0.75)."""
    a = np.float32(-0.75)
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    found: NDArray[np.float32] = np.where(distance <= 1, near, far).astype(np.float32)
    return found


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open_input(path) as stream:
        for block in iter(functools.partial(stream.read, 1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _import_nncf() -> Any:
    """NNCF, without the usage statistics that it would send."""
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


FORMAT = OpenvinoFormat()
