"""Networks as graphs of PyTorch's own operators, and the description inside `.pt2` packages."""

from __future__ import annotations

import contextlib
import logging
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgrseg.formats.base import ExportJob
from cgrseg.formats.description import Description, Size, damaged

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

DESCRIPTION_FILE = "cgrseg.json"
_LARGEST_DESCRIPTION = 16 << 20

_MAX_BATCH = 1024
_MAX_STRIDES = 256
"""Sides of a network for any size, in multiples of 32: enough for 8,192 pixels."""


def exported_program(job: ExportJob) -> ExportedProgram:
    """The network as a graph, for one input size and batch size or for any."""
    import torch
    from torch.export import Dim

    description = job.description
    # Sizes of an example must be general: an axis of length 1 would be taken for a constant.
    example = example_input(description, job.size or (96, 160), description.batch or 2)
    free: dict[int, Any] = {}
    if description.batch is None:
        free[0] = Dim("batch", min=1, max=_MAX_BATCH)
    if job.size is None:
        for axis, name in enumerate(("rows", "columns"), description.first_side):
            free[axis] = 32 * Dim(name, min=1, max=_MAX_STRIDES)
    with torch.no_grad(), quiet_exporter():
        program = torch.export.export(
            job.graph(job.size), (example,), dynamic_shapes={"image": free}, strict=False
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def example_input(description: Description, size: Size, batch: int) -> Tensor:
    """A random input of the kind that the file takes."""
    import torch

    draws = torch.Generator().manual_seed(0)
    if description.takes == "pixels":
        return torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=draws)
    return torch.randn(batch, description.in_channels, *size, generator=draws)


def read_package_description(path: Path) -> Description:
    """The description in a `.pt2` package; nothing else is read.

    Raises:
        WeightsError: a damaged file, or one that is not an export.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if entries and min(entry.header_offset for entry in entries) > 0:
                # What is found is an archive inside this one: the outer one's end is missing.
                raise zipfile.BadZipFile("its end is missing")
            names = [n for n in archive.namelist() if n.rpartition("/")[2] == DESCRIPTION_FILE]
            if names and archive.getinfo(names[0]).file_size > _LARGEST_DESCRIPTION:
                raise zipfile.BadZipFile("its description is too large")
            text = archive.read(names[0]).decode() if names else None
    except Exception as error:  # damaged bytes can fail in any of a dozen ways
        raise damaged(path, "a .pt2 package of PyTorch", error) from error
    return Description.read(text, path)


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hide the exporter's messages about packages that this network does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
