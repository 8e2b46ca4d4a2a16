"""OpenVINO models (an `.xml` file with its `.bin`), run on the CPU."""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ElementTree
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cgrseg.errors import WeightsError
from cgrseg.extras import require
from cgrseg.inference.exported.damage import damaged
from cgrseg.inference.exported.description import KEY, Description, Run
from cgrseg.inference.exported.seal import refuse_damage
from cgrseg.input_files import open_input, read_input
from cgrseg.precision import Precision, check_precision

_MAX_SHAPES = 4
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def open_openvino(
    path: Path, precision: Precision = "fp32", *, resize_tables: bool = True
) -> tuple[Description, Run]:
    """Description of a model, and the model as a function.

    Every input shape is compiled once, when it first comes, with all free axes fixed: tables
    that depend on the size are then computed once.  It uses as many threads as PyTorch does now.

    Args:
        path: the `.xml` file.
        precision: that the runtime may compute in; the file's weights stay as they are.
        resize_tables: resize the tables of a model for any size here, which is far faster;
            False: leave them to OpenVINO, as other programs do.

    Raises:
        ConfigError: unknown precision.
        EnvironmentProblem: OpenVINO is not installed.
        WeightsError: a damaged file, one without its `.bin`, or one of other origin.
    """
    check_precision(precision)
    openvino = require("openvino", path)
    weights = path.with_suffix(".bin")
    core = openvino.Core()
    if not weights.is_file():
        raise WeightsError(
            path,
            found=f"no {weights.name} beside it",
            expected="both files of the model in one folder, with the same name",
            remedy="copy the .bin file too",
        )
    content = read_input(path)
    text = _description_in(content, path)
    description = Description.read(text, path)
    refuse_damage(content, description, path, "an OpenVINO model")
    if file_digest(weights) != description.weights_file_digest:
        raise WeightsError(
            damaged(weights, f"the weights that belong to {path.name}", "another content")
        )
    try:
        model = core.read_model(path, weights)
    except Exception as error:  # the runtime raises RuntimeError for everything
        raise WeightsError(damaged(path, "an OpenVINO model", error)) from error
    if model.get_rt_info([KEY]).astype(str) != text:
        raise WeightsError(damaged(path, "an OpenVINO model", "it holds two descriptions"))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
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
            request = core.compile_model(fixed, "CPU", settings).create_infer_request()
            requests[array.shape] = request
            if len(requests) > _MAX_SHAPES:
                requests.popitem(last=False)
        requests.move_to_end(array.shape)
        request.infer([array], share_inputs=True)
        # The runtime writes its next result to the same memory.
        found = np.array(request.get_output_tensor(0).data)
        return found.transpose(0, 3, 1, 2) if found.ndim == 4 else found

    return description, run


def _description_in(content: bytes, path: Path) -> str | None:
    """The description in a model's metadata, found without the runtime; None: there is none."""
    try:
        if b"<!" in content:
            raise ValueError("a document type, which OpenVINO does not write")
        entry = ElementTree.fromstring(content).find(f"rt_info/{KEY}")
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise WeightsError(damaged(path, "an OpenVINO model", error)) from error
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

    They are the attention biases of a model for any size.  OpenVINO would compute them as well
    while it compiles, but with its reference code: a minute per input shape where this takes a
    tenth of a second.
    """
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "Interpolate":
            continue
        source = operation.input(0).get_source_output().get_node()
        is_stored = (
            source.get_type_name() == "Constant" and source.get_element_type() == openvino.Type.f32
        )
        if is_stored and operation.get_attributes()["mode"] == "cubic":
            table = torch.from_numpy(np.array(source.data))
            *_, height, width = operation.get_output_shape(0)
            resized = F.interpolate(table, (height, width), mode="bicubic").numpy()
            operation.output(0).replace(openvino.op.Constant(resized).output(0))


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open_input(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
