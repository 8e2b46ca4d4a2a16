"""For ONNX Runtime and other programs that read ONNX."""

from __future__ import annotations

import ast
import contextlib
import graphlib
import logging
import re
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.devices import cpu_threads
from cgrseg.errors import WeightsError
from cgrseg.extras import require
from cgrseg.formats.base import ExportJob, Inputs, QuantizableFormat, Run, matching_nodes
from cgrseg.formats.description import KEY, Description, check_digest, damaged, sealed
from cgrseg.formats.torch_program import exported_program, quiet_exporter
from cgrseg.input_files import read_input
from cgrseg.precision import Precision

_KIND = "an ONNX model"
# Each input shape has a session of its own, with its own copy of the weights.
_MAX_SESSIONS = 4
_INPUT = "image"
_FREE_AXES = ("batch", "height", "width")
_SCOPES = "pkg.torch.onnx.name_scopes"

# Nodes that compute in float32 in half precision too.  The class centers sum over all positions:
# from 2048x2048 pixels on such a sum can exceed the largest float16.  Nodes outside the network
# normalize pixels, and compare upsampled logits.
_WIDE = r"network\.head\.guide.*|/.*"


class OnnxFormat(QuantizableFormat):
    """ONNX files, run by ONNX Runtime on the CPU."""

    suffix = ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    stored = ("fp32", "fp16", "int8")
    options = ("opset",)

    def build(self, job: ExportJob) -> Any:
        """An `onnx.ModelProto`, checked."""
        import torch

        onnx = require("onnx", "export as onnx")
        require("onnxscript", "export as onnx")
        program = exported_program(job)
        with quiet_exporter():
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=job.opset,
                external_data=False,
                verbose=False,
                input_names=[_INPUT],
                output_names=[job.description.gives],
            )
        assert exported is not None
        model = exported.model_proto
        _fold_reshapes(onnx, model.graph)
        _separate_convolutions(onnx, model.graph)
        _name_axes_and_nodes(model, job.description)
        onnx.checker.check_model(model)
        return model

    def save(self, model: Any, description: Description, path: Path) -> None:
        """Write an `onnx.ModelProto` with its description, and no other metadata."""
        if description.precision == "fp16":
            model = _in_half_precision(model)
        del model.metadata_props[:]
        entry = model.metadata_props.add()
        entry.key, entry.value = KEY, description.unsealed()
        model.producer_name, model.producer_version = "cgrseg", description.version
        path.write_bytes(sealed(model.SerializeToString()))

    def quantize(self, model: Any, inputs: Inputs, kept: Sequence[str]) -> Any:
        """See :class:`QuantizableFormat`; ONNX Runtime quantizes, in QDQ form."""
        onnx = require("onnx", "quantization for onnx")
        quantization = require("onnxruntime.quantization", "quantization for onnx")
        reader = _Reader(model.graph.input[0].name, inputs)
        with tempfile.TemporaryDirectory() as folder, _quiet_root_logger():
            source, ready, target = (Path(folder) / f"{n}.onnx" for n in ("float", "ready", "int8"))
            onnx.save(model, source)
            quantization.quant_pre_process(source, ready, skip_symbolic_shape=True)
            # Only now: the preparation merges nodes and renames them.
            ignored = matching_nodes([node.name for node in onnx.load(ready).graph.node], kept)
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
                # Weights of 7 bits: with more, kernels of processors without VNNI add two
                # products into 16 bits, which then overflow.
                reduce_range=True,
            )
            return onnx.load(target)

    def open(self, path: Path, precision: Precision = "fp32") -> tuple[Description, Run]:
        """See :class:`ExportFormat`.

        A free input shape is fixed when it first comes: the runtime then computes resized tables
        once, when it loads.  It uses as many threads as
        :func:`~cgrseg.devices.cpu_threads` says now.
        """
        onnxruntime = require("onnxruntime", path)
        content = read_input(path)
        text = _description_in(content, path)
        description = Description.read(text, path)
        check_digest(content, description, path, _KIND)
        _refuse_external_tensors(content, text, path)
        threads, axis = cpu_threads(), description.first_side
        sessions: OrderedDict[tuple[int, ...], Any] = OrderedDict()

        def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
            session = sessions.get(array.shape)
            if session is None:
                # Names of free axes; a file has them as far as it was exported for any size.
                sides = (array.shape[0], *array.shape[axis : axis + 2])
                known = dict(zip(_FREE_AXES, sides, strict=True))
                session = _session(onnxruntime, content, known, path, threads)
                sessions[array.shape] = session
                if len(sessions) > _MAX_SESSIONS:
                    sessions.popitem(last=False)
            sessions.move_to_end(array.shape)
            result: NDArray[np.generic] = session.run(None, {_INPUT: array})[0]
            return result

        return description, run


def _description_in(content: bytes, path: Path) -> str | None:
    """The description in a file's metadata, found without a runtime; None: there is none.

    A metadata entry is a message of two texts: field 1 the key, field 2 the value, each after
    its length in groups of 7 bits.

    Raises:
        WeightsError: there are two.
    """
    key = KEY.encode()
    marker = b"\x0a" + bytes([len(key)]) + key + b"\x12"
    start = content.rfind(marker)
    if start < 0:
        return None
    if content.find(marker) != start:
        raise damaged(path, _KIND, "it holds two descriptions")
    start += len(marker)
    length = shift = 0
    for byte in content[start : start + 5]:
        start += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return content[start : start + length].decode("utf-8", "replace")


def _refuse_external_tensors(content: bytes, text: str | None, path: Path) -> None:
    """Refuse tensors in other files: a foreign file could name any file, or memory.

    Such a tensor has an entry with the key `location`, which only the description of our own
    files can contain as well.
    """
    if content.count(b"location") > (text or "").encode().count(b"location"):
        raise WeightsError(
            path,
            found="an ONNX model whose tensors lie in other files",
            expected="one file that holds everything, as cgrseg export writes it",
            remedy="export the checkpoint again with cgrseg export",
        )


def _session(
    onnxruntime: Any,
    content: bytes,
    known: dict[str, int],
    path: Path,
    threads: int,
) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about its own optimization
    options.intra_op_num_threads = threads
    for axis, side in known.items():
        options.add_free_dimension_override_by_name(axis, side)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has many classes of its own
        raise damaged(path, _KIND, error) from error


def _fold_reshapes(onnx: Any, graph: Any) -> None:
    """Reshape stored weights now, not at every run; quantizers fail on such nodes too."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Reshape" and all(name in stored for name in node.input):
            values, shape = (onnx.numpy_helper.to_array(stored[name]) for name in node.input)
            reshaped = values.reshape(shape)
            graph.initializer.append(onnx.numpy_helper.from_array(reshaped, node.output[0]))
            graph.node.remove(node)


def _separate_convolutions(onnx: Any, graph: Any) -> None:
    """Replace a convolution whose channels are then split by one convolution per output.

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


def _in_half_precision(model: Any) -> Any:
    """A copy that computes in float16, but for some nodes; input and output stay as they are."""
    onnx = require("onnx", "half precision for onnx")
    converter = require("onnxruntime.transformers.float16", "half precision for onnx")
    source = onnx.ModelProto()
    source.CopyFrom(model)
    del source.graph.value_info[:]  # those of weights would be taken for results
    made = converter.convert_float_to_float16(
        source,
        keep_io_types=True,
        node_block_list=[node.name for node in model.graph.node if re.fullmatch(_WIDE, node.name)],
    )
    # The converter appends its casts, some of them twice.
    nodes = {node.name: node for node in made.graph.node}
    makers = {output: name for name, node in nodes.items() for output in node.output}
    needed = {
        name: [makers[source] for source in node.input if source in makers]
        for name, node in nodes.items()
    }
    ordered = [nodes[name] for name in graphlib.TopologicalSorter(needed).static_order()]
    del made.graph.node[:], made.graph.value_info[:]
    made.graph.node.extend(ordered)
    onnx.checker.check_model(made)
    return made


def _name_axes_and_nodes(model: Any, description: Description) -> None:
    """Names for the free axes and for nodes; nothing that identifies this machine."""
    source, target = model.graph.input[0], model.graph.output[0]
    pixels = description.takes == "pixels"
    batch, height, width = _FREE_AXES
    names = [batch, height, width, ""] if pixels else [batch, "", height, width]
    behind = [batch, "", "rows", "columns"] if description.gives == "logits" else [*_FREE_AXES]
    for value, wanted in ((source, names), (target, behind)):
        for axis, name in zip(value.type.tensor_type.shape.dim, wanted, strict=True):
            if not axis.HasField("dim_value"):
                axis.dim_param = name
    if description.batch is None or description.sizes is None:
        del model.graph.value_info[:]  # shapes of intermediate results, in other names
    for number, node in enumerate(model.graph.node):
        # Named after its module, so that groups of layers can be found.
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(metadata.get(_SCOPES, "['']"))
        node.name = f"{scopes[-2] if len(scopes) > 1 else ''}/{node.op_type}_{number}"
        del node.metadata_props[:]
        node.doc_string = ""


class _Reader:
    """Calibration inputs as ONNX Runtime asks for them (its `CalibrationDataReader`)."""

    def __init__(self, name: str, inputs: Inputs) -> None:
        self._named = ({name: value} for value in inputs)

    def get_next(self) -> dict[str, Any] | None:
        """The next inputs by name; None after the last."""
        return next(self._named, None)


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Hide the advice that the quantizer writes to the log."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


FORMAT = OnnxFormat()
