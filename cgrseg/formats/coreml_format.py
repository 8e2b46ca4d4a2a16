"""For Core ML, on Apple's systems; not compared.

A model is a folder, which macOS, iOS and Xcode show as one file.  coremltools writes it anywhere,
Apple's systems alone run it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cgrseg.console import native_output_hidden
from cgrseg.errors import EnvironmentProblem
from cgrseg.extras import require
from cgrseg.formats.base import ExportFormat, ExportJob, Run
from cgrseg.formats.description import KEY, Description, damaged
from cgrseg.formats.torch_program import exported_program, quiet_exporter
from cgrseg.precision import Precision


class CoremlFormat(ExportFormat):
    """Core ML packages, in float32."""

    suffix = ".mlpackage"
    packages = ("coremltools",)
    folder = True
    compared = False
    needs_sizes = True
    one_size = True
    default_batch = 1
    inputs = ("normalised",)
    outputs = ("logits",)

    def write(self, job: ExportJob, path: Path) -> None:
        """See :class:`ExportFormat`."""
        coremltools = _coremltools("export as coreml")
        with quiet_exporter(), native_output_hidden():
            model = coremltools.convert(
                exported_program(job).run_decompositions({}),
                outputs=[coremltools.TensorType(name=job.description.gives)],
                convert_to="mlprogram",
                compute_precision=coremltools.precision.FLOAT32,
                skip_model_load=True,
            )
            described = job.description.model_copy(update={"compared": False})
            model.user_defined_metadata[KEY] = described.model_dump_json()
            model.save(str(path))

    def describe(self, path: Path) -> Description:
        """See :class:`ExportFormat`."""
        utils = _coremltools(path).utils
        try:
            entries = utils.load_spec(str(path)).description.metadata.userDefined
        except Exception as error:  # a folder with other content fails in several ways
            raise damaged(path, "a Core ML package", error) from error
        return Description.read(entries.get(KEY), path)

    def open(self, path: Path, precision: Precision = "fp32") -> tuple[Description, Run]:
        """Core ML packages are not run by this package.

        Raises:
            EnvironmentProblem: always.
        """
        raise EnvironmentProblem(
            path,
            found="a Core ML package, which only Apple's systems run",
            expected="a checkpoint, or an exported file that runs here",
            remedy="use it in an app, or export the checkpoint as onnx: cgrseg export CHECKPOINT",
        )


def _coremltools(subject: object) -> Any:
    """The package, without its advice about versions and what only macOS has."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with native_output_hidden():
        return require("coremltools", subject)


FORMAT = CoremlFormat()
