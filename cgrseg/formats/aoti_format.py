"""Compiled for this machine.

A package of AOTInductor: a ZIP archive with one compiled model per input size, and our
description.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import WeightsError
from cgrseg.formats.base import ExportFormat, ExportJob, Run
from cgrseg.formats.description import Description, Size, damaged
from cgrseg.formats.torch_program import (
    DESCRIPTION_FILE,
    example_input,
    quiet_exporter,
    read_package_description,
)
from cgrseg.precision import Precision

_PACKAGING = "torch._inductor.package"


class AotiFormat(ExportFormat):
    """Compiled packages, which run on a machine like the one that made them."""

    suffix = ".pt2"
    runs_code = True
    needs_compiler = True
    needs_sizes = True
    default_batch = 1
    stem_ending = "-aoti"

    def write(self, job: ExportJob, path: Path) -> None:
        """Compile one model per size into a new file."""
        import torch

        description = job.description
        models: dict[str, Any] = {}
        for size in description.sizes or []:
            network = job.graph(size)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            example = example_input(description, size, description.batch or 1)
            with torch.no_grad(), quiet_exporter():
                program = torch.export.export(network, (example,), strict=False)
                models[_model_name(size)] = torch._inductor.aot_compile(
                    program.module(),
                    (example,),
                    options={"freezing": True, "aot_inductor.package": True},
                )
        importlib.import_module(_PACKAGING).package_aoti(str(path), models)
        with zipfile.ZipFile(path, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/extra/{DESCRIPTION_FILE}", description.model_dump_json())

    def describe(self, path: Path) -> Description:
        """See :class:`ExportFormat`."""
        return read_package_description(path)

    def open(self, path: Path, precision: Precision = "fp32") -> tuple[Description, Run]:
        """See :class:`ExportFormat`; this loads the machine code."""
        import torch

        description = self.describe(path)
        try:
            with zipfile.ZipFile(path) as archive:  # PyTorch does not compare the checksums
                changed = archive.testzip()
        except Exception as error:  # of zlib, or of what an archive asks for
            raise damaged(path, "a compiled package", error) from error
        if changed is not None:
            raise damaged(path, "a compiled package", f"the checksum of {changed} is wrong")
        models: dict[Size, Callable[[Any], Any]] = {}

        def model_for(size: Size) -> Callable[[Any], Any]:
            if size not in models:
                try:
                    package: Any = importlib.import_module(_PACKAGING)
                    models[size] = package.load_package(str(path), _model_name(size))
                except Exception as error:
                    raise WeightsError(
                        path,
                        found=f"a compiled package that does not load here ({str(error)[:200]})",
                        expected=f"one compiled on such a machine with PyTorch {torch.__version__}",
                        remedy="export it again on this machine: cgrseg export CHECKPOINT "
                        "--format aoti; or use the portable formats pt2, onnx or openvino",
                    ) from error
            return models[size]

        def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
            height, width = array.shape[description.first_side :][:2]
            with torch.inference_mode():
                found = model_for((height, width))(torch.from_numpy(array)).numpy()
            return found  # type: ignore[no-any-return]

        for size in description.sizes or []:
            model_for(size)
        return description, run


def _model_name(size: Size) -> str:
    """Name of the model for one input size inside a package."""
    return f"size_{size[0]}x{size[1]}"


FORMAT = AotiFormat()
