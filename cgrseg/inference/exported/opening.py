"""Which files are exported networks, and opening them."""

from __future__ import annotations

from pathlib import Path

from cgrseg.errors import ConfigError, WeightsError
from cgrseg.inference.exported.description import Description, Run
from cgrseg.input_files import refuse_special
from cgrseg.precision import Precision

_SUFFIXES = (".onnx", ".xml", ".pt2")


def is_exported(path: str | Path) -> bool:
    """Whether a path is one of the formats that `cgrseg export` writes, told by its suffix."""
    return Path(path).suffix.lower() in _SUFFIXES


def open_file(
    path: str | Path, precision: Precision = "fp32", *, trust_code: bool = False
) -> tuple[Description, Run]:
    """Description of an exported file, and the file in its runtime as a function.

    Args:
        path: ends in `.onnx`, `.xml` (OpenVINO) or `.pt2`.
        precision: "bf16" or "fp16" let OpenVINO compute in it; the other formats compute in
            what the file holds.
        trust_code: run the machine code of a compiled package (`--format aoti`), which can do
            whatever the user can; no other format holds code.

    Raises:
        ConfigError: a precision that the format does not have, or a compiled package without
            `trust_code`.
        EnvironmentProblem: its runtime is not installed.
        WeightsError: no such file, a damaged one, or one of other origin.
    """
    file = _existing(Path(path))
    suffix = file.suffix.lower()
    if precision != "fp32" and suffix != ".xml":
        raise ConfigError(
            f"precision {precision}",
            found=f"{file.name}, which computes in the precision that it was exported with",
            expected="fp32",
            remedy="leave the precision out; OpenVINO models take bf16 and fp16",
        )
    if suffix == ".onnx":
        from cgrseg.inference.exported.onnx_file import open_onnx

        return open_onnx(file)
    if suffix == ".xml":
        from cgrseg.inference.exported.openvino_file import open_openvino

        return open_openvino(file, precision)
    from cgrseg.inference.exported.program_file import open_program

    return open_program(file, trust_code=trust_code)


def describe(path: str | Path) -> Description:
    """What an exported file says about itself; no code of it is run.

    Raises:
        EnvironmentProblem: its runtime is not installed.
        WeightsError: no such file, a damaged one, or one of other origin.
    """
    file = _existing(Path(path))
    if file.suffix.lower() == ".pt2":
        from cgrseg.inference.exported.program_file import read_description

        return read_description(file)
    return open_file(file)[0]


def _existing(file: Path) -> Path:
    try:
        refuse_special(file)
    except OSError as error:
        raise WeightsError(
            file,
            found=f"the file cannot be read ({error.strerror or error})",
            expected="a file written by cgrseg export",
            remedy="check the path and the permissions",
        ) from error
    return file
