"""Export: write, open in the file's own runtime, compare, and only then keep."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cgrseg
from cgrseg.config.settings import build, merge
from cgrseg.data.color import MEAN, STD
from cgrseg.deploy.graph import ExportForm
from cgrseg.deploy.staging import parts_of, refuse_existing, staged
from cgrseg.deploy.verify import Check, Tolerance, verify
from cgrseg.deploy.writers import (
    openvino_model,
    write_compiled,
    write_onnx,
    write_openvino,
    write_program,
)
from cgrseg.errors import ConfigError
from cgrseg.inference.exported import Description, InputKind, OutputKind, Size
from cgrseg.inference.exported.description import Kind
from cgrseg.inference.exported.openvino_file import open_openvino
from cgrseg.inference.exported_backend import ExportedBackend, open_exported
from cgrseg.locks import locking
from cgrseg.models import CGRSeg, load_model
from cgrseg.models.digest import weights_digest

SUFFIXES: dict[Kind, str] = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "aoti": ".pt2"}
"""Formats, with the ending of their files."""

# Sizes on which a file for any size is tried out: square, wide, one whose smallest map has odd
# sides, and the smallest ones, whose maps have sides of 1 (a special case for exporters).
_SMALL = (96, 160)
_TRIED = ((512, 512), (512, 704), _SMALL, (32, 32), (64, 32), (32, 96))


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the file (for OpenVINO the `.xml`).
        megabytes: of all its files.
        checks: comparisons with the float32 network, all within tolerance.
        seconds: that it took, checks included.
    """

    path: Path
    megabytes: float
    checks: list[Check]
    seconds: float


@locking(lambda given: target_path(given["checkpoint"], given["kind"], given["out"]).parent)
def export(
    checkpoint: str | Path | CGRSeg,
    kind: Kind,
    out: str | Path | None = None,
    *,
    sizes: Sequence[Size] | None = None,
    batch: int | None = None,
    takes: InputKind = "normalised",
    gives: OutputKind = "logits",
    opset: int | None = None,
    tolerance: Tolerance | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> ExportResult:
    """Write a network as a file for a runtime, and prove it.

    The file is opened in its own runtime and compared with the float32 network on several
    pictures, sizes and batches; out of tolerance, no file is left.

    Args:
        checkpoint: a `.pth` file, a folder of `save_pretrained`, a hub id, or a network.
        kind: "onnx", "openvino", "pt2" (a portable program of `torch.export`) or "aoti"
            (compiled for this machine).
        out: the file; None: beside the checkpoint.
        sizes: heights and widths, multiples of 32.  One: all tables are resolved for it.
            Several: one file that is tried out on each.  None: any size; aoti needs some.
        batch: images at once; None: any number (aoti: 1).
        takes: "normalised" float32 (N, 3, H, W), or "pixels" uint8 RGB (N, H, W, 3).
        gives: "logits" at an eighth of the size, or "labels" at the input's.
        opset: of ONNX; None: 18.
        tolerance: None: the usual one.
        settings: `test.*` by dotted name, which the file keeps instead of the checkpoint's own.
        overwrite: replace a file of that name.
        tell: gets a line per step.

    Raises:
        ConfigError: settings that do not fit, or a file that is there already.
        EnvironmentProblem: a package or a compiler is missing, or the disk is full.
        WeightsError: a checkpoint that cannot be used, or an export out of tolerance.
    """
    began = time.perf_counter()
    sizes = checked_sizes(kind, sizes)
    if opset is not None and kind != "onnx":
        raise ConfigError(
            "--opset",
            found=f"{opset}, with the format {kind}",
            expected="a version of ONNX's operators for the format onnx only",
            remedy="leave it out, or export with --format onnx",
        )
    if kind == "aoti" and batch is None:
        batch = 1
    target = target_path(checkpoint, kind, out)
    refuse_existing(target, overwrite)
    model = checkpoint if isinstance(checkpoint, CGRSeg) else load_model(checkpoint, verbose=False)
    model = model.cpu().eval()
    description = describe_export(model, checkpoint, kind, sizes, batch, takes, gives)
    description = with_test_settings(description, settings or {})

    def form(size: Size | None) -> ExportForm:
        return ExportForm(model, size, takes, gives)

    with staged(target, overwrite) as draft:
        tell(f"writing {target.name}")
        one = sizes[0] if sizes is not None and len(sizes) == 1 else None
        if kind == "onnx":
            write_onnx(form(one), one, description, draft, opset or 18)
        elif kind == "openvino":
            write_openvino(openvino_model(form(one), one, description), description, draft)
        elif kind == "pt2":
            write_program(form(one), one, description, draft)
        else:
            write_compiled(form, sizes or [], description, draft)
        tell("comparing it with the float32 network")
        batches, allowed = [batch] if batch is not None else [1, 2], tolerance or Tolerance()
        opened = open_exported(draft, trust_code=True)  # written just now
        checks = verify(opened, model, sizes or _TRIED, batches, allowed, tell)
        if kind == "openvino" and sizes is None:
            tell("  and with tables that OpenVINO resizes, as in other programs:")
            told, run = open_openvino(draft, resize_tables=False)
            plain = ExportedBackend(told, run, draft.name)
            checks += verify(plain, model, [_SMALL], batches, allowed, tell)
        megabytes = sum(part.stat().st_size for part in parts_of(draft)) / 1e6
    return ExportResult(target, megabytes, checks, time.perf_counter() - began)


def checked_sizes(kind: Kind, sizes: Sequence[Size] | None) -> list[Size] | None:
    """Sizes without repeats.

    Raises:
        ConfigError: no multiples of 32, or none for a format that needs some.
    """
    if sizes is None:
        if kind != "aoti":
            return None
        raise ConfigError(
            "--size",
            found="any, with the format aoti",
            expected="one or more sizes: code is compiled for each",
            remedy="for example --size 512x512; the other formats take any size",
        )
    for height, width in sizes:
        if min(height, width) < 32 or height % 32 or width % 32:
            up = "x".join(str(max(32, -(-side // 32) * 32)) for side in (height, width))
            raise ConfigError(
                "--size",
                found=f"{height}x{width}",
                expected="height and width as multiples of 32, the network's largest stride",
                remedy=f"round up: {up}",
            )
    return list(dict.fromkeys((int(height), int(width)) for height, width in sizes))


def target_path(
    checkpoint: str | Path | CGRSeg, kind: Kind, out: str | Path | None, mark: str = ""
) -> Path:
    """Where the file goes.

    Raises:
        ConfigError: a name whose ending is not the format's, to the letter: files are
            recognised by it.
    """
    suffix = SUFFIXES[kind]
    if out is not None:
        if Path(out).suffix != suffix:
            named = (
                Path(out).with_suffix(suffix) if Path(out).name else Path(out) / f"model{suffix}"
            )
            raise ConfigError(
                "--out",
                found=str(out),
                expected=f"a name that ends in {suffix}, as files of the format {kind} do",
                remedy=f"for example {named}",
            )
        return Path(out)
    if kind == "aoti":
        mark += "-aoti"
    if isinstance(checkpoint, CGRSeg):
        return Path(f"{checkpoint.variant}{mark}{suffix}")
    source = Path(checkpoint)
    if not source.exists():  # a hub id
        return Path(f"{source.name}{mark}{suffix}")
    return source.parent / f"{source.stem if source.is_file() else source.name}{mark}{suffix}"


def with_test_settings(description: Description, settings: Mapping[str, Any]) -> Description:
    """A description whose test settings have `test.*` changes laid over them.

    Raises:
        ConfigError: a value that does not fit.
    """
    changes = {key: value for key, value in settings.items() if key.startswith("test.")}
    if not changes:
        return description
    test = build(merge({"test": dict(description.test or {})}, changes)).test
    return description.model_copy(update={"test": test.model_dump(mode="json")})


def describe_export(
    model: CGRSeg,
    checkpoint: str | Path | CGRSeg,
    kind: Kind,
    sizes: Sequence[Size] | None,
    batch: int | None,
    takes: InputKind,
    gives: OutputKind,
) -> Description:
    """What the file will say about itself."""
    named = not isinstance(checkpoint, CGRSeg)
    return Description(
        kind=kind,
        variant=model.variant,
        num_classes=model.num_classes,
        classes=list(model.classes) if model.classes is not None else None,
        palette=list(model.palette) if model.palette is not None else None,
        mean=MEAN,
        std=STD,
        test=model.preprocessing,
        sizes=list(sizes) if sizes is not None else None,
        batch=batch,
        takes=takes,
        gives=gives,
        precision="fp32",
        source=Path(str(checkpoint)).name if named else f"{model.variant} in memory",
        source_digest=weights_digest(model),
        version=cgrseg.__version__,
    )
