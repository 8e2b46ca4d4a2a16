"""For ExecuTorch, on phones and boards.

The description is in a ZIP archive behind the program, which ExecuTorch ignores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.console import native_output_hidden
from cgrseg.devices import cpu_threads
from cgrseg.extras import require
from cgrseg.formats.base import ExportJob, Inputs, QuantizableFormat, Run, matching_nodes
from cgrseg.formats.description import Description, append_description, damaged, read_appended
from cgrseg.formats.torch_program import exported_program, quiet_exporter
from cgrseg.precision import Precision

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph

_KIND = "an ExecuTorch program"


@dataclass(frozen=True)
class _Model:
    """A network as a graph of PyTorch."""

    program: ExportedProgram

    @cached_property
    def lowered(self) -> tuple[bytes, float]:
        """Content of a file, and the share 0..1 of the multiply-adds that XNNPACK computes."""
        with quiet_exporter(), native_output_hidden():
            exir = require("executorch.exir", "export as executorch")
            partitioners = require(
                "executorch.backends.xnnpack.partition.xnnpack_partitioner", "export as executorch"
            )
            total = _multiply_adds(self.program.run_decompositions().graph)
            made = exir.to_edge_transform_and_lower(
                self.program, partitioner=[partitioners.XnnpackPartitioner()]
            )
            share = 1 - _multiply_adds(made.exported_program().graph) / total
            return made.to_executorch().buffer, share


class ExecutorchFormat(QuantizableFormat):
    """ExecuTorch programs for XNNPACK's kernels."""

    suffix = ".pte"
    packages = ("executorch",)
    stored = ("fp32", "int8")
    needs_sizes = True
    one_size = True
    default_batch = 1

    def build(self, job: ExportJob) -> _Model:
        """The network as a graph."""
        return _Model(exported_program(job))

    def save(self, model: _Model, description: Description, path: Path) -> None:
        """Write a program with its description."""
        content, share = model.lowered
        path.write_bytes(content)
        append_description(path, description.model_copy(update={"delegated": share}))

    def quantize(self, model: _Model, inputs: Inputs, kept: Sequence[str]) -> _Model:
        """See :class:`QuantizableFormat`; XNNPACK's quantizer quantizes convolutions."""
        import torch

        subject = "quantization for executorch"
        with native_output_hidden():
            quantizers = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", subject)
            pt2e = require("torchao.quantization.pt2e.quantize_pt2e", subject)
        graph: Any = model.program.module(check_guards=False)
        names = _layer_names(graph.graph)
        ignored = {names[name] for name in matching_nodes(list(names), kept)}
        quantizer = quantizers.XNNPACKQuantizer().set_operator_type(
            torch.ops.aten.conv2d.default,
            quantizers.get_symmetric_quantization_config(is_per_channel=True),
        )
        quantizer.set_filter_function(lambda node: node.name not in ignored)
        with torch.no_grad(), quiet_exporter():
            prepared = pt2e.prepare_pt2e(graph, quantizer)
            for value in inputs:
                prepared(torch.from_numpy(value))
            converted = pt2e.convert_pt2e(prepared)
            (example,), _ = model.program.example_inputs
            return _Model(torch.export.export(converted, (example,), strict=False))

    def describe(self, path: Path) -> Description:
        """See :class:`ExportFormat`."""
        return read_appended(path, _KIND)[0]

    def open(self, path: Path, precision: Precision = "fp32") -> tuple[Description, Run]:
        """See :class:`ExportFormat`.

        ExecuTorch has one pool of threads for the process.  It gets as many as
        :func:`~cgrseg.devices.cpu_threads` says now.
        """
        import torch

        description, content = read_appended(path, _KIND)
        with quiet_exporter(), native_output_hidden():
            runtime = require("executorch.runtime", path)
            threads = require("executorch.extension.pybindings.portable_lib", path)
            if threads._threadpool_get_thread_count() != cpu_threads():
                threads._unsafe_reset_threadpool(cpu_threads())
            try:
                program = runtime.Runtime.get().load_program(content)
                method = program.load_method("forward")
            except RuntimeError as error:
                raise damaged(path, _KIND, error) from error

        def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
            assert program  # kept alive: the method reads its memory
            # The next result goes to the same memory.
            found: NDArray[np.generic] = method.execute([torch.from_numpy(array)])[0].numpy().copy()
            return found

        return description, run


def _layer_names(graph: Graph) -> dict[str, str]:
    """Names `MODULE/OPERATION_NUMBER`, as in ONNX files, to the graph's own names of nodes."""
    alike = {"conv2d": "Conv", "linear": "MatMul", "matmul": "MatMul", "softmax": "Softmax"}
    found = {}
    for number, node in enumerate(graph.nodes):
        modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        kind = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
        found[f"{modules[-1] if modules else ''}/{alike.get(kind, kind)}_{number}"] = node.name
    return found


def _multiply_adds(graph: Graph) -> int:
    """Twice the multiply-adds of the convolutions and products in a graph, delegates left out."""
    from torch._ops import OpOverload
    from torch.utils.flop_counter import flop_registry

    def value(argument: Any) -> Any:
        return getattr(argument, "meta", {}).get("val", argument)

    total = 0
    for node in graph.nodes:
        # An operator of ExecuTorch's graphs holds PyTorch's own.
        own = node.target if isinstance(node.target, OpOverload) else getattr(node.target, "_op", 0)
        count = flop_registry.get(own.overloadpacket) if isinstance(own, OpOverload) else None
        if count is not None:
            total += count(*map(value, node.args), **node.kwargs, out_val=node.meta["val"])
    return total


FORMAT = ExecutorchFormat()
