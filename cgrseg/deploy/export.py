"""Export: write a file, open it in its own runtime, compare it with the network, then keep it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import cgrseg
from cgrseg.config.settings import changed_test_settings, stored_test_settings
from cgrseg.console import native_output_hidden
from cgrseg.data.color import MEAN, STD, mean_and_std
from cgrseg.deploy.graph import ExportGraph
from cgrseg.deploy.int8 import Int8Options, Int8Report, quantizable, write_int8
from cgrseg.deploy.staging import refuse_existing, staged
from cgrseg.deploy.verify import HALF_PRECISION, Check, Tolerance, verify
from cgrseg.errors import ConfigError, EnvironmentProblem, check_choice
from cgrseg.extras import require
from cgrseg.formats import load_format
from cgrseg.formats.base import ExportFormat, ExportJob, InMemoryFormat
from cgrseg.formats.description import Description, InputKind, OutputKind, Size, StoredPrecision
from cgrseg.formats.names import format_names
from cgrseg.inference.compiled_cache import missing_compiler
from cgrseg.inference.exported_backend import ExportedBackend, open_exported
from cgrseg.locks import locking
from cgrseg.models import CGRSeg, load_model
from cgrseg.models.digest import weights_digest

_INPUTS: dict[str, InputKind] = {"normalized": "normalised", "pixels": "pixels"}
_OUTPUTS: tuple[OutputKind, ...] = ("logits", "labels")

_LOG = logging.getLogger("cgrseg.deploy")

# Sizes on which a file for any size is compared: square, wide, one whose smallest map has odd
# sides, and the smallest ones, whose maps have sides of 1 (a special case for exporters).
_SMALL = (96, 160)
_COMPARED_SIZES = ((512, 512), (512, 704), _SMALL, (32, 32), (64, 32), (32, 96))


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the file (for OpenVINO the `.xml`).
        megabytes: size of all its files.
        checks: comparisons with the float32 network, all within tolerance; none in 8 bits.
        seconds: duration of the export, checks included.
        int8: measurements of an 8-bit export.
    """

    path: Path
    megabytes: float
    checks: list[Check]
    seconds: float
    int8: Int8Report | None = None


@locking(lambda given: target_path(given["checkpoint"], given["kind"], given["out"]).parent)
def export(
    checkpoint: str | Path | CGRSeg,
    kind: str,
    out: str | Path | None = None,
    *,
    sizes: Sequence[Size] | None = None,
    batch: int | None = None,
    takes: str = "normalized",
    gives: str = "logits",
    opset: int | None = None,
    precision: str = "fp32",
    int8: Int8Options | None = None,
    tolerance: Tolerance | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> ExportResult:
    """Write a network as a file for a runtime, and compare it with the float32 network.

    The file is opened in its own runtime and compared on several images, sizes and batch sizes;
    in 8 bits its label maps and mIoU are measured.  If it is out of tolerance, no file is left.

    Args:
        checkpoint: a `.pth` file, a folder of `save_pretrained`, a hub id, a name, or a
            network.
        kind: export format: "onnx", "openvino", "pt2" (a portable program of `torch.export`),
            "aoti" (compiled for this machine), or another module of :mod:`cgrseg.formats`.
        out: the file (the folder for "web"); None: beside the checkpoint.
        sizes: heights and widths, multiples of 32.  One: all tables are resolved for it.
            Several: one file that is compared on each.  None: any size; aoti needs sizes,
            coreml, executorch, litert and ncnn one size, and 8 bits take the most common one of the
            calibration images.
        batch: batch size; None: any (formats that need sizes: 1).
        takes: "normalized" float32 (N, 3, H, W), or "pixels" uint8 RGB (N, H, W, 3).
        gives: "logits" at 1/8 of the input size, or "labels" at the input size.
        opset: version of the ONNX operators; None: 18.
        precision: "fp32", or "fp16": float16 weights, half the size; see
            :attr:`~cgrseg.formats.base.ExportFormat.stored`.
        int8: quantize to 8 bits, with these options.
        tolerance: None: the default one.
        settings: `test.*` by dotted name, which the file keeps instead of the checkpoint's own;
            `data.*` as well for measuring in 8 bits.
        overwrite: replace an existing file.
        tell: called with a line of text per step.

    Raises:
        ConfigError: settings that do not fit, or a file that exists already.
        EnvironmentProblem: a package or a compiler is missing, or the disk is full.
        WeightsError: a checkpoint that cannot be used, or an export out of tolerance.
    """
    began = time.perf_counter()
    export_format = load_format(kind)
    if int8 is not None:
        quantized_format = quantizable(export_format, sizes, gives, opset)
    if sizes is not None or int8 is None:  # 8 bits take the size of the calibration images
        sizes = checked_sizes(export_format, sizes)
    input_kind, output_kind = _input_kind(takes), check_choice("--output", gives, _OUTPUTS)
    _check_kinds(export_format, input_kind, output_kind, batch)
    if opset is not None and "opset" not in export_format.options:
        raise ConfigError(
            "--opset",
            found=f"{opset}, with the format {kind}",
            expected="a version of ONNX's operators for the format onnx only",
            remedy="leave it out, or export with --format onnx",
        )
    stored = _stored_precision(export_format, precision, int8)
    target = target_path(checkpoint, kind, out, "" if stored == "fp32" else f"-{stored}")
    refuse_existing(export_format.files(target), overwrite)
    _require_tools(export_format)
    if batch is None:
        batch = export_format.default_batch
    model = checkpoint if isinstance(checkpoint, CGRSeg) else load_model(checkpoint, verbose=False)
    model = model.cpu().eval()
    description = describe_export(model, checkpoint, kind, sizes, batch, input_kind, output_kind)
    description = with_test_settings(description, settings or {})
    description = description.model_copy(update={"precision": stored})
    export_format.prepare(description)

    def graph(size: Size | None) -> ExportGraph:
        return ExportGraph(model, size, input_kind, output_kind)

    job = ExportJob(model, graph, description, opset or 18)
    checks: list[Check] = []
    report = None
    with staged(export_format.files(target), overwrite) as draft:
        if int8 is not None:
            report = write_int8(
                quantized_format, checkpoint, job, int8, settings or {}, draft, tell
            )
        else:
            tell(f"writing {(target.parent if export_format.main_file else target).name}")
            if stored == "fp16":
                assert isinstance(export_format, InMemoryFormat)
                made = export_format.build(job)
                export_format.save(made, description, draft)
            else:
                export_format.write(job, draft)
            if export_format.compared:
                tell("comparing it with the float32 network")
                batches = [batch] if batch is not None else [1, 2]
                allowed = tolerance or (HALF_PRECISION if stored == "fp16" else Tolerance())
                opened = open_exported(draft, trust_code=True)  # written just now
                if opened.description.delegated is not None:
                    share = 100 * opened.description.delegated
                    tell(f"  {share:.1f} % of the multiply-adds run in the runtime's fast kernels")
                checks += verify(opened, model, sizes or _COMPARED_SIZES, batches, allowed, tell)
                if sizes is None:
                    for title, other, run in export_format.other_runs(draft):
                        tell(f"  and {title}:")
                        backend = ExportedBackend(other, run, draft.name)
                        checks += verify(backend, model, [_SMALL], batches, allowed, tell)
            else:
                tell("not compared with the float32 network: this machine does not run the file")
            if stored == "fp16":
                assert isinstance(export_format, InMemoryFormat)
                equal = min(check.labels for check in checks)
                described = description.model_copy(update={"agreement": equal})
                export_format.save(made, described, draft)
        megabytes = sum(_size(part) for part in export_format.files(draft)) / 1e6
    return ExportResult(target, megabytes, checks, time.perf_counter() - began, report)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in (path, *path.rglob("*")) if part.is_file())


def _require_tools(export_format: ExportFormat) -> None:
    """Fail before long work if a package or the compiler is missing."""
    with native_output_hidden():
        for package in export_format.packages:
            require(package, f"export as {export_format.name}")
    lacking = missing_compiler(torch.device("cpu")) if export_format.needs_compiler else ""
    if lacking:
        raise EnvironmentProblem(
            f"export as {export_format.name}",
            found=lacking,
            expected="a C++ compiler, which this format is made with",
            remedy="install one, or choose another format",
        )


def checked_sizes(export_format: ExportFormat, sizes: Sequence[Size] | None) -> list[Size] | None:
    """Sizes without repeats.

    Raises:
        ConfigError: no multiples of 32, or no sizes for a format that needs some.
    """
    if sizes is None:
        if not export_format.needs_sizes:
            return None
        raise ConfigError(
            "--size",
            found=f"any, with the format {export_format.name}",
            expected="one size, for which everything is resolved"
            if export_format.one_size
            else "one or more sizes: code is compiled for each",
            remedy="for example --size 512x512; onnx, openvino and pt2 take any size",
        )
    if export_format.one_size and len(set(sizes)) > 1:
        raise ConfigError(
            "--size",
            found=f"{len(sizes)} sizes, with the format {export_format.name}",
            expected="one size",
            remedy="export one file per size",
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


def _check_kinds(
    export_format: ExportFormat, takes: InputKind, gives: OutputKind, batch: int | None
) -> None:
    """Refuse an input, an output or a batch size that files of a format cannot have."""
    problem = ""
    if takes not in export_format.inputs:
        problem = f"--input {takes}"
    elif gives not in export_format.outputs:
        problem = f"--output {gives}"
    elif batch is not None and export_format.one_image and batch != 1:
        problem = f"--batch-size {batch}"
    if problem:
        raise ConfigError(
            problem,
            found=f"the format {export_format.name}, whose files cannot have it",
            expected="normalized images, one at a time, and logits",
            remedy="leave it out, or choose another format",
        )


def _stored_precision(
    export_format: ExportFormat, precision: str, int8: Int8Options | None
) -> StoredPrecision:
    """The precision of the file's weights.

    Raises:
        ConfigError: a precision that the format does not have, or two of them.
    """
    if int8 is not None and precision == "fp32":
        return "int8"
    if int8 is None and precision in ("fp32", "fp16") and precision in export_format.stored:
        return precision
    able = [name for name in format_names() if "fp16" in load_format(name).stored]
    raise ConfigError(
        "--precision",
        found=f"{precision}, with --int8"
        if int8 is not None
        else f"{precision}, with the format {export_format.name}",
        expected=f"fp32; or fp16, with the format {' or '.join(able)} and without --int8",
        remedy="leave it out, or choose another format",
    )


def _input_kind(takes: str) -> InputKind:
    """The input of a file as its description spells it."""
    if takes == "normalised":
        _LOG.warning("the input 'normalised' is now called 'normalized'")
        takes = "normalized"
    return _INPUTS[check_choice("--input", takes, _INPUTS)]


def target_path(
    checkpoint: str | Path | CGRSeg, kind: str, out: str | Path | None, stem_ending: str = ""
) -> Path:
    """Path of the exported file.

    Raises:
        ConfigError: an unknown format, or a name whose suffix is not the format's, to the
            letter: files are recognized by it.
    """
    export_format = load_format(kind)
    suffix = export_format.suffix
    if out is not None:
        if export_format.main_file:
            return Path(out) / export_format.main_file
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
    ending = f"{stem_ending}{export_format.stem_ending}"
    ending += f"/{export_format.main_file}" if export_format.main_file else suffix
    if isinstance(checkpoint, CGRSeg):
        return Path(f"{checkpoint.variant}{ending}")
    source = Path(checkpoint)
    if not source.exists():  # a hub id or a name
        return Path(f"{source.name}{ending}")
    return source.parent / f"{source.stem if source.is_file() else source.name}{ending}"


def with_test_settings(description: Description, settings: Mapping[str, Any]) -> Description:
    """A description with changes of `test.*` in its test settings.

    Raises:
        ConfigError: a value that does not fit.
    """
    changes = {key: value for key, value in settings.items() if key.startswith("test.")}
    if not changes:
        return description
    stored = stored_test_settings(description.test or {}, description.source)
    test = changed_test_settings(stored, changes)
    return description.model_copy(update={"test": test.model_dump(mode="json")})


def describe_export(
    model: CGRSeg,
    checkpoint: str | Path | CGRSeg,
    kind: str,
    sizes: Sequence[Size] | None,
    batch: int | None,
    takes: InputKind,
    gives: OutputKind,
) -> Description:
    """The description that the file will hold."""
    named = not isinstance(checkpoint, CGRSeg)
    mean, std = list(MEAN), list(STD)
    stored = stored_test_settings(model.preprocessing or {}, str(checkpoint))
    if (channels := stored.image_channels) is not None:
        if takes != "normalised":
            raise ConfigError(
                "--input",
                found=f"pixels, for a network that takes {', '.join(channels.names or [])}",
                expected="normalized, for images of other channels than 8-bit RGB",
                remedy="leave it out",
            )
        mean, std = (values.tolist() for values in mean_and_std(channels))
    return Description(
        kind=kind,
        variant=model.variant,
        head=model.head,
        num_classes=model.num_classes,
        classes=list(model.classes) if model.classes is not None else None,
        palette=list(model.palette) if model.palette is not None else None,
        mean=mean,
        std=std,
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
