"""For ncnn, on phones and boards.

A model is a `.param` file with a `.bin` file of the same name beside it.  The description is in a
ZIP archive behind the weights, which ncnn ignores.

ncnn quantizes with programs that no package has, so 8-bit models are written here: the layout of
both files is that of ncnn's `modelbin.cpp` and of `load_param` and `load_model` of each layer.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cgrseg.devices import cpu_threads
from cgrseg.errors import EnvironmentProblem
from cgrseg.extras import require
from cgrseg.formats.base import ExportJob, Inputs, QuantizableFormat, Run, matching_nodes
from cgrseg.formats.description import (
    Description,
    append_description,
    damaged,
    read_appended,
    weights_beside,
)
from cgrseg.formats.torch_program import example_input, exported_program, quiet_exporter
from cgrseg.input_files import read_input
from cgrseg.precision import Precision

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_KIND = "an ncnn model"
_INPUT, _OUTPUT = "in0", "out0"
_CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")
_WHOLE, _INT8 = b"\0\0\0\0", (0x000D4B38).to_bytes(4, "little")  # begin float32 and 8-bit weights
_LARGEST = 127  # ncnn's 8-bit values are symmetric


class _Model(NamedTuple):
    """Graph and weights; the convolutions as the network has them: module, number of weights."""

    graph: bytes
    weights: bytes
    convolutions: list[tuple[str, int]]


class NcnnFormat(QuantizableFormat):
    """ncnn models, run on the CPU."""

    suffix = ".param"
    packages = ("pnnx", "ncnn")
    stored = ("fp32", "fp16", "int8")
    needs_sizes = True
    one_size = True
    one_image = True
    default_batch = 1
    inputs = ("normalised",)
    outputs = ("logits",)
    stem_ending = ".ncnn"

    def files(self, path: Path) -> tuple[Path, ...]:
        """Weights, then the graph."""
        return path.with_suffix(".bin"), path

    def build(self, job: ExportJob) -> _Model:
        """Graph and weights; pnnx converts a trace in which all sizes are numbers."""
        import torch

        pnnx = require("pnnx", "export as ncnn")
        assert job.size is not None and job.description.batch == 1
        example = example_input(job.description, job.size, 1)
        halved = int(job.description.precision == "fp16")
        exported = exported_program(job)
        program = exported.module(check_guards=False)
        with torch.no_grad(), quiet_exporter(), tempfile.TemporaryDirectory() as folder:
            traced = torch.jit.trace(program, example, check_trace=False)
            traced.save(f"{folder}/network.pt")
            shape = ",".join(map(str, example.shape))
            done = subprocess.run(
                [pnnx.EXEC_PATH, "network.pt", f"inputshape=[{shape}]", f"fp16={halved}"],
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            graph, weights = (Path(folder, f"network.ncnn{end}") for end in (".param", ".bin"))
            if done.returncode or not graph.is_file() or not weights.is_file():
                raise EnvironmentProblem(
                    "export as ncnn",
                    found=f"pnnx ended with status {done.returncode}: {done.stderr[-200:].strip()}",
                    expected="an ncnn model",
                    remedy="install the versions of torch and pnnx that cgrseg was tested with "
                    "(constraints-devices.txt)",
                )
            return _Model(read_input(graph), read_input(weights), _convolved(exported))

    def quantize(self, model: _Model, inputs: Inputs, kept: Sequence[str]) -> _Model:
        """See :class:`QuantizableFormat`; convolutions get 8 bits, matrix products stay.

        The scale of an input is that of its largest absolute value over all calibration inputs.
        """
        layers = _parsed(model)
        convolutions = [layer for layer in layers if layer.kind in _CONVOLUTIONS]
        names = _names(convolutions, model.convolutions)
        others = [layer for layer in layers if layer.kind not in _CONVOLUTIONS]
        alike = {"MemoryData": "{}", "MatMul": "{}/MatMul_0", "Softmax": "{}/Softmax_0"}
        named = [alike[one.kind].format(one.name) for one in others if one.kind in alike]
        ignored = set(matching_nodes([*names, *named], kept))
        chosen = [one for one, name in zip(convolutions, names, strict=True) if name not in ignored]
        largest = _largest_inputs(model, [one.source for one in chosen], inputs)
        for layer in chosen:
            layer.quantize(largest[layer.source])
        header, lines = model.graph.decode().split("\n", 2)[:2], [layer.line for layer in layers]
        graph = "\n".join([*header, *lines, ""]).encode()
        return _Model(graph, b"".join(layer.weights for layer in layers), model.convolutions)

    def save(self, model: _Model, description: Description, path: Path) -> None:
        """Write graph and weights, with the description behind the weights."""
        graph, weights, _ = model
        path.write_bytes(graph)
        path.with_suffix(".bin").write_bytes(weights)
        digest = hashlib.sha256(graph).hexdigest()
        described = description.model_copy(update={"weights_file_digest": digest})
        append_description(path.with_suffix(".bin"), described)

    def describe(self, path: Path) -> Description:
        """See :class:`ExportFormat`."""
        weights = weights_beside(path)
        description, _ = read_appended(weights, f"the weights that belong to {path.name}")
        if hashlib.sha256(read_input(path)).hexdigest() != description.weights_file_digest:
            raise damaged(path, _KIND, "its bytes are not those that were written")
        return description

    def open(self, path: Path, precision: Precision = "fp32") -> tuple[Description, Run]:
        """See :class:`ExportFormat`.

        It uses as many threads as :func:`~cgrseg.devices.cpu_threads` says now.
        """
        description = self.describe(path)
        network = _loaded(path)

        def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
            return _extracted(_started(network, array), _OUTPUT)[None]

        return description, run


@dataclass
class _Layer:
    """A layer: its line in the graph, and its part of the weights."""

    line: str
    weights: bytes

    @property
    def kind(self) -> str:
        return self.line.split()[0]

    @property
    def name(self) -> str:
        return self.line.split()[1]

    @property
    def source(self) -> str:
        """Name of the (first) input."""
        return self.line.split()[4]

    def parameter(self, key: int, default: int = 0) -> int:
        """A whole number of the layer's parameters."""
        fields = dict(field.split("=") for field in self.line.split() if "=" in field)
        return int(fields.get(str(key), default))

    @property
    def sizes(self) -> list[tuple[int, bool]]:
        """Numbers of values that it loads, and whether they begin with a tag."""
        match self.kind:
            case "Convolution" | "ConvolutionDepthWise":
                return [(self.parameter(6), True), (self.parameter(0) * self.parameter(5), False)]
            case "InnerProduct":
                return [(self.parameter(2), True), (self.parameter(0) * self.parameter(1), False)]
            case "LayerNorm" if self.parameter(2, 1):
                return 2 * [(self.parameter(0), False)]
            case "MemoryData":
                sides = [self.parameter(key) for key in (0, 1, 11, 2)]
                return [(prod(side for side in sides if side), self.parameter(21, 1) == 0)]
        return []

    def quantize(self, largest: float) -> None:
        """Give a convolution 8-bit weights, a scale per output channel, and that of its input."""
        (count, _), (biases, _) = self.sizes
        values = np.frombuffer(self.weights, np.float32, count, len(_WHOLE))
        values = values.reshape(self.parameter(0), -1)
        most = np.abs(values).max(axis=1)
        scales = (_LARGEST / np.where(most > 1e-30, most, _LARGEST)).astype(np.float32)
        levels = np.rint(values * scales[:, None]).astype(np.int8).tobytes()
        bias = self.weights[len(_WHOLE) + 4 * count :][: 4 * biases]
        own = np.float32(_LARGEST / largest if largest > 0 else 1).tobytes()
        filled = levels + bytes(-len(levels) % 4)
        self.weights = b"".join([_INT8, filled, bias, scales.tobytes(), own])
        # 1: a scale per group, which is an output channel; 2: a scale per output channel.
        self.line += f" 8={1 if self.kind == 'ConvolutionDepthWise' else 2}"


def _parsed(model: _Model) -> list[_Layer]:
    """The layers of a float32 model with their weights."""
    lines = [line for line in model.graph.decode().split("\n")[2:] if line.strip()]
    layers, place = [], 0
    for line in lines:
        layer = _Layer(line, b"")
        length = sum(4 * count + len(_WHOLE) * tagged for count, tagged in layer.sizes)
        layer.weights = model.weights[place : place + length]
        place += length
        layers.append(layer)
    if place != len(model.weights):
        raise _foreign(f"{len(model.weights)} bytes of weights, where its layers load {place}")
    return layers


def _convolved(program: ExportedProgram) -> list[tuple[str, int]]:
    """Modules of the convolutions of a graph, in order, and their numbers of weights."""
    return [
        ([path for path, _ in node.meta["nn_module_stack"].values()][-1], weights.numel())
        for node in program.graph.nodes
        if str(node.target).startswith("aten.conv2d")
        for weights in [node.args[1].meta["val"]]
    ]


def _names(layers: Sequence[_Layer], convolutions: Sequence[tuple[str, int]]) -> list[str]:
    """Names `MODULE/Conv_NUMBER` of convolutions, as in ONNX files.

    pnnx keeps their order, and merges those that do the same.
    """
    rest = iter(enumerate(convolutions))
    names = []
    for layer in layers:
        found = next((k for k in rest if k[1][1] == layer.parameter(6)), None)
        if found is None:
            raise _foreign(f"a convolution {layer.name} in an unknown place")
        names.append(f"{found[1][0]}/Conv_{found[0]}")
    return names


def _foreign(found: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        "quantization for ncnn",
        found=found,
        expected="a graph as the tested versions of torch and pnnx make it",
        remedy="install these versions (constraints-devices.txt)",
    )


def _largest_inputs(model: _Model, sources: Sequence[str], inputs: Inputs) -> dict[str, float]:
    """Largest absolute value of each named array over all calibration inputs."""
    largest = dict.fromkeys(sources, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.param")
        path.write_bytes(model.graph)
        path.with_suffix(".bin").write_bytes(model.weights)
        network = _loaded(path)
        for value in inputs:
            extractor = _started(network, value)
            extractor.set_light_mode(False)  # what was computed for one name serves the next
            for source in largest:
                found = float(np.abs(_extracted(extractor, source)).max())
                largest[source] = max(largest[source], found)
    return largest


def _loaded(path: Path) -> Any:
    """Ncnn's network of a `.param` file.

    Raises:
        WeightsError: ncnn does not load it.
    """
    ncnn = require("ncnn", path)
    network = ncnn.Net()
    network.opt.num_threads = cpu_threads()
    # ncnn would store 16 bits where the processor computes in them.
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(network.opt, option, False)
    network.opt.use_bf16_storage = False
    weights = str(path.with_suffix(".bin"))
    if network.load_param(str(path)) or network.load_model(weights):
        raise damaged(path, _KIND, "ncnn does not load it")
    return network


def _started(network: Any, array: NDArray[np.generic]) -> Any:
    """An extractor with its input (1, C, H, W)."""
    extractor = network.create_extractor()
    extractor.input(_INPUT, require("ncnn", _KIND).Mat(array[0]).clone())
    return extractor


def _extracted(extractor: Any, name: str) -> NDArray[np.generic]:
    """A copy of a named array."""
    status, found = extractor.extract(name)
    if status:
        raise RuntimeError(f"ncnn: status {status}")
    return np.array(found)


FORMAT = NcnnFormat()
