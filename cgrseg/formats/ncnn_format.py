"""For ncnn, on phones and boards.

A model is a `.param` file with a `.bin` file of the same name beside it.  The description is in a
ZIP archive behind the weights, which ncnn ignores.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cgrseg.devices import cpu_threads
from cgrseg.errors import EnvironmentProblem
from cgrseg.extras import require
from cgrseg.formats.base import ExportJob, InMemoryFormat, Run
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

_KIND = "an ncnn model"
_INPUT, _OUTPUT = "in0", "out0"


class NcnnFormat(InMemoryFormat):
    """ncnn models, run on the CPU."""

    suffix = ".param"
    packages = ("pnnx", "ncnn")
    stored = ("fp32", "fp16")
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

    def build(self, job: ExportJob) -> tuple[bytes, bytes]:
        """Graph and weights; pnnx converts a trace in which all sizes are numbers."""
        import torch

        pnnx = require("pnnx", "export as ncnn")
        assert job.size is not None and job.description.batch == 1
        example = example_input(job.description, job.size, 1)
        halved = int(job.description.precision == "fp16")
        program = exported_program(job).module(check_guards=False)
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
            return read_input(graph), read_input(weights)

    def save(self, model: tuple[bytes, bytes], description: Description, path: Path) -> None:
        """Write graph and weights, with the description behind the weights."""
        graph, weights = model
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
        ncnn = require("ncnn", path)
        description = self.describe(path)
        network = ncnn.Net()
        network.opt.num_threads = cpu_threads()
        # ncnn would store 16 bits where the processor computes in them.
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(network.opt, option, False)
        network.opt.use_bf16_storage = False
        weights = str(path.with_suffix(".bin"))
        if network.load_param(str(path)) or network.load_model(weights):
            raise damaged(path, _KIND, "ncnn does not load it")

        def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
            extractor = network.create_extractor()
            extractor.input(_INPUT, ncnn.Mat(array[0]).clone())
            status, found = extractor.extract(_OUTPUT)
            if status:
                raise RuntimeError(f"ncnn: status {status}")
            return np.array(found)[None]

        return description, run


FORMAT = NcnnFormat()
