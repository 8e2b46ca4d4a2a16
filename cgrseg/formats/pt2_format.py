"""Portable PyTorch program.

A package of `torch.export`: a ZIP archive with the graph, the weights and our description.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cgrseg.formats.base import ExportFormat, ExportJob, Run
from cgrseg.formats.description import Description, Size, damaged
from cgrseg.formats.torch_program import (
    DESCRIPTION_FILE,
    exported_program,
    read_package_description,
)
from cgrseg.precision import Precision

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class Pt2Format(ExportFormat):
    """Programs of `torch.export`, which PyTorch runs without the code of this package."""

    suffix = ".pt2"

    def write(self, job: ExportJob, path: Path) -> None:
        """Write a network to a new file.

        The export for any size turns some sizes into special cases: the description says which
        sides the program takes.
        """
        import torch

        program = exported_program(job)
        description = job.description
        if job.size is None:
            smallest, largest = _sides(program, description.first_side)
            sides = {"smallest": smallest, "largest": largest}
            description = description.model_copy(update=sides)
        content = io.BytesIO()
        torch.export.save(
            program, content, extra_files={DESCRIPTION_FILE: description.model_dump_json()}
        )
        path.write_bytes(content.getbuffer())

    def describe(self, path: Path) -> Description:
        """See :class:`ExportFormat`."""
        return read_package_description(path)

    def open(self, path: Path, precision: Precision = "fp32") -> tuple[Description, Run]:
        """See :class:`ExportFormat`; the file is checked before PyTorch reads it."""
        import torch

        from cgrseg.formats.program_check import checked_program

        description = self.describe(path)
        checked = checked_program(path)
        logger = logging.getLogger("torch.export")
        before, logger.disabled = logger.disabled, True  # its traces: the message says enough
        try:
            program = torch.export.load(checked).module()
        except Exception as error:  # a damaged archive can fail anywhere inside
            raise damaged(path, "a program of torch.export", error) from error
        finally:
            logger.disabled = before

        def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
            with torch.inference_mode():
                found: NDArray[np.generic] = program(torch.from_numpy(array)).numpy()
            return found

        return description, run


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


FORMAT = Pt2Format()
