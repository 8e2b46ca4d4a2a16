"""The network as a file, one function per format; each writes to the path it is given."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import logging
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from cgrseg.deploy.graph import ExportForm
from cgrseg.errors import EnvironmentProblem
from cgrseg.extras import require
from cgrseg.inference.compiled_cache import missing_compiler
from cgrseg.inference.exported import Description, Size
from cgrseg.inference.exported.description import KEY
from cgrseg.inference.exported.openvino_file import file_digest
from cgrseg.inference.exported.program_file import DESCRIPTION_FILE, model_name
from cgrseg.inference.exported.seal import UNSEALED, sealed

_MAX_BATCH = 1024
_MAX_STRIDES = 256
"""Sides of a resizable network, in multiples of 32: enough for 8,192 pixels."""

_SCOPES = "pkg.torch.onnx.name_scopes"

Form = Callable[[Size | None], ExportForm]
"""Makes the network for a size, or for any."""


def write_onnx(
    form: ExportForm, size: Size | None, description: Description, path: Path, opset: int = 18
) -> None:
    """Write an ONNX file.

    Args:
        form: the network.
        size: of the input; None: any multiples of 32.
        description: goes into the file's metadata.
        path: of the file.
        opset: version of the operators.

    Raises:
        EnvironmentProblem: packages are missing.
    """
    write_onnx_model(onnx_model(form, size, description, opset), description, path)


def write_onnx_model(model: Any, description: Description, path: Path) -> None:
    """Write an `onnx.ModelProto` with its description, and no other metadata."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    told = description.model_copy(update={"file_digest": UNSEALED})
    entry.key, entry.value = KEY, told.model_dump_json()
    model.producer_name, model.producer_version = "cgrseg", description.version
    path.write_bytes(sealed(model.SerializeToString()))


def onnx_model(form: ExportForm, size: Size | None, description: Description, opset: int) -> Any:
    """An `onnx.ModelProto`, checked."""
    onnx = require("onnx", "export as onnx")
    require("onnxscript", "export as onnx")
    program = export_program(form, size, description.batch)
    with _quiet():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            external_data=False,
            verbose=False,
            input_names=["image"],
            output_names=[description.gives],
        )
    assert exported is not None
    model = exported.model_proto
    _fold_reshapes(onnx, model.graph)
    _separate_convolutions(onnx, model.graph)
    _tidy_onnx(model, description)
    onnx.checker.check_model(model)
    return model


def write_openvino(model: Any, description: Description, path: Path) -> None:
    """Write an OpenVINO model: `path` and the `.bin` beside it.

    Args:
        model: an `openvino.Model`.
        description: goes into the model's metadata.
        path: ends in `.xml`.
    """
    openvino = require("openvino", "export as openvino")
    openvino.save_model(model, path, compress_to_fp16=False)
    digest = file_digest(path.with_suffix(".bin"))
    told = description.model_copy(update={"weights_file_digest": digest, "file_digest": UNSEALED})
    model.set_rt_info(told.model_dump_json(), [KEY])
    openvino.save_model(model, path, compress_to_fp16=False)
    path.write_bytes(sealed(path.read_bytes()))


def openvino_model(form: ExportForm, size: Size | None, description: Description) -> Any:
    """An `openvino.Model` of the network, made from its ONNX form."""
    openvino = require("openvino", "export as openvino")
    proto = onnx_model(form, size, description, 18)
    model = openvino.Core().read_model(proto.SerializeToString(), b"")
    model.input(0).get_tensor().set_names({"image"})
    model.output(0).get_tensor().set_names({description.gives})
    return model


def write_program(
    form: ExportForm, size: Size | None, description: Description, path: Path
) -> None:
    """Write a portable program of `torch.export`.

    Exporting for any size settles some of what depends on it: the program says itself which
    sides it takes, and checks them.
    """
    program = export_program(form, size, description.batch)
    if size is None:
        smallest, largest = _sides(program, 1 if form.takes == "pixels" else 2)
        sides = {"smallest": smallest, "largest": largest}
        description = description.model_copy(update=sides)
    content = io.BytesIO()
    torch.export.save(
        program, content, extra_files={DESCRIPTION_FILE: description.model_dump_json()}
    )
    path.write_bytes(content.getbuffer())


def write_compiled(form: Form, sizes: Sequence[Size], description: Description, path: Path) -> None:
    """Compile for this machine (AOTInductor): one model per size in one package.

    Raises:
        EnvironmentProblem: there is no C++ compiler.
    """
    lacking = missing_compiler(torch.device("cpu"))
    if lacking:
        raise EnvironmentProblem(
            "export as aoti",
            found=lacking,
            expected="a C++ compiler, which this format is made with",
            remedy="install one, or choose another format",
        )
    package: Any = importlib.import_module("torch._inductor.package")
    models: dict[str, Any] = {}
    for size in sizes:
        network = form(size)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        example = example_input(network, size, description.batch or 1)
        with torch.no_grad(), _quiet():
            program = torch.export.export(network, (example,), strict=False)
            models[model_name(size)] = torch._inductor.aot_compile(
                program.module(),
                (example,),
                options={"freezing": True, "aot_inductor.package": True},
            )
    package.package_aoti(str(path), models)
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/extra/{DESCRIPTION_FILE}", description.model_dump_json())


def export_program(form: ExportForm, size: Size | None, batch: int | None) -> ExportedProgram:
    """The network as a graph of PyTorch's own operators.

    Args:
        form: the network.
        size: of the input; None: any multiples of 32.
        batch: images at once; None: any number.
    """
    # Sizes of an example must be general: an axis of length 1 would be taken for a constant.
    example = example_input(form, size or (96, 160), batch or 2)
    first = 1 if form.takes == "pixels" else 2
    free: dict[int, Any] = {}
    if batch is None:
        free[0] = Dim("batch", min=1, max=_MAX_BATCH)
    if size is None:
        free[first] = 32 * Dim("rows", min=1, max=_MAX_STRIDES)
        free[first + 1] = 32 * Dim("columns", min=1, max=_MAX_STRIDES)
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            form, (example,), dynamic_shapes={"image": free}, strict=False
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _sides(program: ExportedProgram, first: int) -> Size:
    """The smallest and the largest side in pixels that a program for any size takes."""
    name = program.graph_signature.user_inputs[0]
    image = next(node for node in program.graph.nodes if node.name == name)
    symbols = [
        symbol
        for side in image.meta["val"].shape[first : first + 2]
        for symbol in side.node.expr.free_symbols
    ]
    ranges = [program.range_constraints[symbol] for symbol in symbols]
    return 32 * max(int(r.lower) for r in ranges), 32 * min(int(r.upper) for r in ranges)


def example_input(form: ExportForm, size: Size, batch: int) -> Tensor:
    """An input of the kind that the network takes."""
    draws = torch.Generator().manual_seed(0)
    if form.takes == "pixels":
        return torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=draws)
    return torch.randn(batch, 3, *size, generator=draws)


def _fold_reshapes(onnx: Any, graph: Any) -> None:
    """Reshape stored weights here, in place of at every run; quantisers stumble over it too."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Reshape" and all(name in stored for name in node.input):
            values, shape = (onnx.numpy_helper.to_array(stored[name]) for name in node.input)
            reshaped = values.reshape(shape)
            graph.initializer.append(onnx.numpy_helper.from_array(reshaped, node.output[0]))
            graph.node.remove(node)


def _separate_convolutions(onnx: Any, graph: Any) -> None:
    """One convolution per output, in place of one whose channels are then split.

    PyTorch is faster with the merged form.  Runtimes keep channels innermost, where a split
    copies everything: a tenth of OpenVINO's time.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    for split in [node for node in graph.node if node.op_type == "Split"]:
        conv = makers.get(split.input[0])
        if conv is None or conv.op_type != "Conv" or readers[split.input[0]] != 1:
            continue
        weight, bias = (onnx.numpy_helper.to_array(stored[name]) for name in conv.input[1:3])
        first = 0
        for size, output in zip(
            onnx.numpy_helper.to_array(stored[split.input[1]]), split.output, strict=True
        ):
            part = onnx.NodeProto()
            part.CopyFrom(conv)
            for place, values in ((1, weight), (2, bias)):
                name = f"{conv.input[place]}_{first}"
                piece = onnx.numpy_helper.from_array(values[first : first + size].copy(), name)
                graph.initializer.append(piece)
                part.input[place] = name
            part.output[0] = output
            graph.node.insert(list(graph.node).index(conv), part)
            first += size
        graph.node.remove(conv)
        graph.node.remove(split)
    used = {name for node in graph.node for name in node.input}
    for tensor in list(graph.initializer):
        if tensor.name not in used:
            graph.initializer.remove(tensor)


def _tidy_onnx(model: Any, description: Description) -> None:
    """Names for the free axes, our description, and nothing that tells of this machine."""
    source, target = model.graph.input[0], model.graph.output[0]
    pixels = description.takes == "pixels"
    names = ["batch", "height", "width", ""] if pixels else ["batch", "", "height", "width"]
    behind = ["batch", "", "rows", "columns"] if description.gives == "logits" else names[:3]
    if description.gives == "labels" and not pixels:
        behind = ["batch", "height", "width"]
    for value, wanted in ((source, names), (target, behind)):
        for axis, name in zip(value.type.tensor_type.shape.dim, wanted, strict=True):
            if not axis.HasField("dim_value"):
                axis.dim_param = name
    if description.batch is None or description.sizes is None:
        del model.graph.value_info[:]  # shapes of intermediate results, in other names
    for number, node in enumerate(model.graph.node):
        # Named after the module that it belongs to, so that groups of layers can be found.
        told = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(told.get(_SCOPES, "['']"))
        node.name = f"{scopes[-2] if len(scopes) > 1 else ''}/{node.op_type}_{number}"
        del node.metadata_props[:]
        node.doc_string = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about packages that this network does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
