"""PyTorch's own packages: portable programs (`torch.export`) and compiled ones (AOTInductor).

Both end in `.pt2` and are ZIP archives, with our description as one of their entries.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgrseg.errors import ConfigError, WeightsError, explain, option
from cgrseg.inference.exported.damage import damaged
from cgrseg.inference.exported.description import Description, Run
from cgrseg.inference.exported.program_check import checked_program

DESCRIPTION_FILE = "cgrseg.json"
_LARGEST_DESCRIPTION = 16 << 20


def read_description(path: Path) -> Description:
    """The description in a `.pt2` file, without loading anything else of it.

    Raises:
        WeightsError: a damaged file, or one of other origin.
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
        raise WeightsError(damaged(path, "a .pt2 package of PyTorch", error)) from error
    return Description.read(text, path)


def open_program(path: Path, *, trust_code: bool = False) -> tuple[Description, Run]:
    """Description of a package, and the package as a function.

    Args:
        path: a `.pt2` file.
        trust_code: run the machine code of a compiled package.

    Raises:
        ConfigError: a compiled package without `trust_code`.
        WeightsError: a damaged file, one of other origin, or one compiled for another machine.
    """
    description = read_description(path)
    if description.kind == "aoti":
        if not trust_code:
            raise ConfigError(_machine_code(path))
        return description, _compiled(path, description)
    checked = checked_program(path)
    try:
        with _quiet_torch():
            program = torch.export.load(checked).module()
    except Exception as error:  # a damaged archive can fail anywhere inside
        raise WeightsError(damaged(path, "a program of torch.export", error)) from error

    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        with torch.inference_mode():
            found: NDArray[np.generic] = program(torch.from_numpy(array)).numpy()
        return found

    return description, run


def _machine_code(path: Path) -> str:
    return explain(
        path,
        found="a compiled package: machine code, which can do whatever you can on this machine",
        expected="a file without code, or your word that you trust this one",
        remedy=f"only if you know where the file comes from: {option('--trust-code')}; the "
        "formats pt2, onnx and openvino hold no code",
    )


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Keep PyTorch's traces out of the log: what went wrong is in our message."""
    logger = logging.getLogger("torch.export")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _compiled(path: Path, description: Description) -> Run:
    """A compiled package: one model per size."""
    models: dict[tuple[int, int], Callable[[Any], Any]] = {}
    first_axis = 1 if description.takes == "pixels" else 2

    def load(size: tuple[int, int]) -> Callable[[Any], Any]:
        try:
            package: Any = importlib.import_module("torch._inductor.package")
            loaded: Callable[[Any], Any] = package.load_package(str(path), model_name(size))
            return loaded
        except Exception as error:
            raise WeightsError(
                path,
                found=f"a compiled package that does not load here ({str(error)[:200]})",
                expected=f"one compiled on such a machine with PyTorch {torch.__version__}",
                remedy="export it again on this machine: cgrseg export CHECKPOINT --format "
                "aoti; or use the portable formats pt2, onnx or openvino",
            ) from error

    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        size = (array.shape[first_axis], array.shape[first_axis + 1])
        if size not in models:
            models[size] = load(size)
        with torch.inference_mode():
            found: NDArray[np.generic] = models[size](torch.from_numpy(array)).numpy()
        return found

    for size in description.sizes or []:
        models[size] = load(size)
    return run


def model_name(size: tuple[int, int]) -> str:
    """Name of a size's model inside a compiled package."""
    return f"size_{size[0]}x{size[1]}"
