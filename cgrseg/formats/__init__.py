"""Export formats: one module `NAME_format.py` each, found by its file name.

A format's module holds a subclass of :class:`~cgrseg.formats.base.ExportFormat` and one instance
of it, `FORMAT`.  Its file name is the name for `cgrseg export --format`, and the first line of its
docstring is the help text.  Nothing else has to know it: to add a format, add its file.
"""

from __future__ import annotations

import ast
import importlib.util
from importlib.abc import InspectLoader
from pathlib import Path
from typing import TYPE_CHECKING

from cgrseg.errors import ConfigError, WeightsError, check_choice, option
from cgrseg.formats.names import ENDING, format_names
from cgrseg.input_files import refuse_special

if TYPE_CHECKING:
    from cgrseg.formats.base import ExportFormat, Run
    from cgrseg.formats.description import Description
    from cgrseg.precision import Precision


def format_summaries() -> dict[str, str]:
    """Name to help text of all formats.

    Read from the source without an import, so that `--help` answers at once.
    """
    found = {}
    for name in format_names():
        spec = importlib.util.find_spec(f"{__name__}.{name}{ENDING}")
        assert spec is not None and isinstance(spec.loader, InspectLoader)
        module = ast.parse(spec.loader.get_source(spec.name) or "")
        line = (ast.get_docstring(module) or "").partition("\n")[0].rstrip(".")
        found[name] = line[:1].lower() + line[1:]
    return found


def load_format(name: str) -> ExportFormat:
    """The format of a name.

    Raises:
        ConfigError: there is no such format.
    """
    check_choice("export format", name, format_names())
    found: ExportFormat = importlib.import_module(f"{__name__}.{name}{ENDING}").FORMAT
    return found


def is_exported(path: str | Path) -> bool:
    """Whether a path has the suffix of an export format."""
    return bool(_formats_with(Path(path).suffix))


def format_of(path: Path) -> ExportFormat:
    """The format of an exported file; where formats share a suffix, the file's description decides.

    Raises:
        WeightsError: no such file, or one that is damaged or not an export.
    """
    formats = _formats_with(path.suffix)
    try:
        if not (path.is_dir() and any(each.folder for each in formats)):
            refuse_special(path)
    except OSError as error:
        raise WeightsError(
            path,
            found=f"the file cannot be read ({error.strerror or error})",
            expected="a file written by cgrseg export",
            remedy="check the path and the permissions",
        ) from error
    if not formats:
        raise WeightsError(
            path,
            found=f"a file name that ends in {path.suffix!r}",
            expected="the file name suffix of an export format",
            remedy="give a file that cgrseg export has written",
        )
    if len(formats) > 1:
        kind = formats[0].describe(path).kind
        formats = [each for each in formats if each.name == kind] or formats
    return formats[0]


def describe(path: str | Path) -> Description:
    """The description in an exported file; no code of the file is run.

    Raises:
        EnvironmentProblem: its runtime is not installed.
        WeightsError: no such file, or one that is damaged or not an export.
    """
    return format_of(Path(path)).describe(Path(path))


def open_file(
    path: Path, precision: Precision = "fp32", *, trust_code: bool = False
) -> tuple[Description, Run]:
    """Description of an exported file, and the function that runs it.

    Args:
        path: exported file.
        precision: one of the format's `precisions`.
        trust_code: run the machine code of a compiled package.

    Raises:
        ConfigError: a precision that the format does not compute in, or a compiled package
            without `trust_code`.
        EnvironmentProblem: its runtime is not installed.
        WeightsError: no such file, or one that is damaged or not an export.
    """
    export_format = format_of(path)
    if precision not in export_format.precisions:
        raise ConfigError(
            f"precision {precision}",
            found=f"{path.name}, which computes in the precision that it was exported with"
            if len(export_format.precisions) == 1
            else f"{path.name}, which does not compute in it",
            expected=" or ".join(export_format.precisions),
            remedy="leave the precision out; OpenVINO models take bf16 and fp16",
        )
    if export_format.runs_code and not trust_code:
        raise ConfigError(
            path,
            found="a compiled package: machine code, which can do whatever you can on this machine",
            expected="a file without code, or your word that you trust this one",
            remedy=f"only if you know where the file comes from: {option('--trust-code')}; the "
            "formats pt2, onnx and openvino hold no code",
        )
    return export_format.open(path, precision)


def _formats_with(suffix: str) -> list[ExportFormat]:
    formats = [load_format(name) for name in format_names()]
    # Formats that run code come last: describing a file must not run it.
    formats.sort(key=lambda each: each.runs_code)
    return [each for each in formats if each.suffix == suffix.lower()]
