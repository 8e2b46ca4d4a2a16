"""For ExecuTorch, on phones and boards.

The description is in a ZIP archive behind the program, which ExecuTorch ignores.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.console import native_output_hidden
from cgrseg.devices import cpu_threads
from cgrseg.extras import require
from cgrseg.formats.base import ExportFormat, ExportJob, Run
from cgrseg.formats.description import Description, append_description, damaged, read_appended
from cgrseg.formats.torch_program import exported_program, quiet_exporter
from cgrseg.precision import Precision

if TYPE_CHECKING:
    from torch.fx import Graph

_KIND = "an ExecuTorch program"


class ExecutorchFormat(ExportFormat):
    """ExecuTorch programs for XNNPACK's kernels."""

    suffix = ".pte"
    packages = ("executorch",)
    needs_sizes = True
    one_size = True
    default_batch = 1

    def write(self, job: ExportJob, path: Path) -> None:
        """See :class:`ExportFormat`."""
        with quiet_exporter(), native_output_hidden():
            exir = require("executorch.exir", "export as executorch")
            partitioners = require(
                "executorch.backends.xnnpack.partition.xnnpack_partitioner", "export as executorch"
            )
            program = exported_program(job)
            total = _multiply_adds(program.run_decompositions().graph)
            lowered = exir.to_edge_transform_and_lower(
                program, partitioner=[partitioners.XnnpackPartitioner()]
            )
            share = 1 - _multiply_adds(lowered.exported_program().graph) / total
            path.write_bytes(lowered.to_executorch().buffer)
        append_description(path, job.description.model_copy(update={"delegated": share}))

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
