"""Which files are exported networks, and what runs them."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from cgrseg.errors import ConfigError, EnvironmentProblem, WeightsError
from cgrseg.inference.allocator import keep_freed_memory
from cgrseg.inference.exported.backend import ExportedBackend
from cgrseg.inference.exported.description import Description
from cgrseg.inference.precision import AnyPrecision, Precision, resolve_precision
from cgrseg.input_files import refuse_special

_SUFFIXES = (".onnx", ".xml", ".pt2")


def is_exported(path: str | Path) -> bool:
    """Whether a path is one of the formats that `cgrseg export` writes, told by its ending."""
    return Path(path).suffix.lower() in _SUFFIXES


def open_exported(
    path: str | Path,
    device: str | torch.device | None = None,
    precision: AnyPrecision = "fp32",
    *,
    trust_code: bool = False,
    keep_memory: bool = True,
) -> ExportedBackend:
    """What runs an exported file.

    Args:
        path: ends in `.onnx`, `.xml` (OpenVINO) or `.pt2`.
        device: None, "auto" or "cpu".
        precision: "bf16" or "fp16" let OpenVINO compute in it; the other formats compute in
            what the file holds.  "auto" is bf16 for OpenVINO where the CPU computes it in
            hardware, else what the file holds.
        trust_code: run the machine code of a compiled package (`--format aoti`), which can do
            whatever the user can; no other format holds code.
        keep_memory: let the C library keep freed memory for the next image (Linux, whole
            process; see :func:`~cgrseg.inference.allocator.keep_freed_memory`).

    Raises:
        ConfigError: a precision that the format does not have, or a compiled package without
            `trust_code`.
        EnvironmentProblem: its runtime is not installed, or another device was asked for.
        WeightsError: no such file, a damaged one, or one of other origin.
    """
    file = _existing(Path(path))
    if device is not None and str(device) not in ("auto", "cpu"):
        raise EnvironmentProblem(
            f"device {device}",
            found=f"{file.name}, an exported file, which is run on the CPU",
            expected="cpu",
            remedy="leave the device out, or predict with the checkpoint itself",
        )
    suffix = file.suffix.lower()
    if precision == "auto":
        on_cpu = torch.device("cpu")
        precision = resolve_precision("auto", on_cpu) if suffix == ".xml" else "fp32"
    if precision != "fp32" and suffix != ".xml":
        raise ConfigError(
            f"precision {precision}",
            found=f"{file.name}, which computes in the precision that it was exported with",
            expected="fp32",
            remedy="leave the precision out; OpenVINO models take bf16 and fp16",
        )
    if suffix == ".onnx":
        from cgrseg.inference.exported.onnx_file import open_onnx

        description, run = open_onnx(file)
    elif suffix == ".xml":
        from cgrseg.inference.exported.openvino_file import open_openvino

        description, run = open_openvino(file, precision)
    else:
        from cgrseg.inference.exported.program_file import open_program

        description, run = open_program(file, trust_code=trust_code)
    if keep_memory:
        keep_freed_memory()
    return ExportedBackend(
        description,
        run,
        file.name,
        has_threads=suffix in (".onnx", ".xml"),
        reopen=functools.partial(_reopen, str(file.absolute()), precision, trust_code, keep_memory),
    )


def _reopen(
    path: str, precision: Precision, trust_code: bool, keep_memory: bool, description: Description
) -> ExportedBackend:
    """Open the file that a pickled backend ran."""
    backend = open_exported(
        path, precision=precision, trust_code=trust_code, keep_memory=keep_memory
    )
    if backend.description != description:
        raise WeightsError(
            path,
            found="another export than the Predictor had opened before it was pickled",
            expected="the same file",
            remedy="open the present file with Predictor.from_pretrained",
        )
    return backend


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
    return open_exported(file, keep_memory=False).description


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
