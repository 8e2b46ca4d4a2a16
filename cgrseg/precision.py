"""Arithmetic precision of a network, and which one a device computes in hardware.

bfloat16 without hardware support is emulated: same results, slower than float32 (9 times with
AVX2 alone).
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from cgrseg.errors import ConfigError

if TYPE_CHECKING:
    import torch

    Device: TypeAlias = torch.device | Literal["cpu"]

Precision = Literal["fp32", "bf16", "fp16"]
AnyPrecision = Literal["auto", "fp32", "bf16", "fp16"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_CPU_FLAGS = Path("/proc/cpuinfo")

# Values of ONEDNN_MAX_CPU_ISA that hide the bfloat16 instructions of an x86 processor.
_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_ISAS_WITHOUT_BF16 = [
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
]

# CGRSeg-T, crops of 128x128; the instructions were hidden by ONEDNN_MAX_CPU_ISA; docs/training.md.
_MEASURED = (
    "Measured in training on an AMD EPYC: 9 times as long as fp32 with AVX2 alone, "
    "1.1 to 1.3 times with AVX-512. fp32 or auto is faster here"
)


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision and its reason, e.g. "bf16 (this CPU computes bf16 in hardware)".

    Attributes:
        precision: what the network computes in.
        reason: why "auto" means it on this device; empty: it was given by name.
    """

    precision: Precision
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.precision} ({self.reason})" if self.reason else self.precision

    def record(self) -> dict[str, str]:
        """Reason of the choice, for the record of a result; empty if there was no choice."""
        return {"precision_reason": self.reason} if self.reason else {}


def dtype_of(precision: Precision) -> torch.dtype:
    """PyTorch's type of a precision's numbers."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def check_precision(name: str, setting: str = "precision") -> AnyPrecision:
    """The name of a precision, or "auto", checked.

    Args:
        name: value of the setting.
        setting: name of the setting, for the message.

    Raises:
        ConfigError: another name.
    """
    if name != "auto" and name not in PRECISIONS:
        raise ConfigError(
            setting,
            found=repr(name),
            expected="auto, fp32, bf16 or fp16",
            remedy="choose one of these, or leave it out for fp32",
        )
    return cast(AnyPrecision, name)


def resolve_precision(name: str, device: Device, setting: str = "precision") -> Precision:
    """The precision that a setting means on a device; see :func:`choose_precision`."""
    return choose_precision(device, name, setting).precision


def choose_precision(
    device: Device, name: str = "auto", setting: str = "precision"
) -> PrecisionChoice:
    """The precision that a setting means on a device, and why.

    Args:
        device: where the network runs.
        name: "auto" means bf16 where the device computes it in hardware, else fp32; the names of
            precisions mean themselves.
        setting: name of the setting, for the message.

    Raises:
        ConfigError: another name.
    """
    chosen = check_precision(name, setting)
    if chosen != "auto":
        return PrecisionChoice(chosen)
    native, reason = bf16_in_hardware(device)
    return PrecisionChoice("bf16" if native else "fp32", reason)


def bf16_in_hardware(device: Device) -> tuple[bool, str]:
    """Whether a device computes bfloat16 in hardware and PyTorch uses it, and the reason.

    x86 processors: the instructions avx512_bf16 or amx_bf16, unless ONEDNN_MAX_CPU_ISA hides
    them.  ARM processors: no, because oneDNN lacks some of their bfloat16 kernels, depthwise
    convolutions among them, and its reference code takes over a hundred times as long (oneDNN
    pull requests 3441 and 4007).  NVIDIA GPUs: compute capability 8.0 or newer.  Apple GPUs: no,
    because nothing was measured there.
    """
    kind = device if isinstance(device, str) else device.type
    if kind == "cuda":
        import torch

        if torch.version.hip is not None:
            return True, "this GPU computes bf16 in hardware"
        major, minor = torch.cuda.get_device_capability(device)
        has = "computes bf16 in hardware" if major >= 8 else "has no bf16 arithmetic"
        return major >= 8, f"this GPU, compute capability {major}.{minor}, {has}"
    if kind != "cpu":
        return False, f"bf16 was not measured on {kind}"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False, "PyTorch lacks some bf16 kernels for this kind of CPU"
    torch_module = sys.modules.get("torch")
    if torch_module is not None and not torch_module.backends.mkldnn.is_available():
        return False, "this PyTorch has no oneDNN, which computes bf16 on a CPU"
    flags = _bf16_instructions()
    if not flags:
        return False, "this CPU has no bf16 instructions"
    hiding = next((name for name in _ISA_VARIABLES if os.environ.get(name)), None)
    if hiding is not None and os.environ[hiding].upper() in _ISAS_WITHOUT_BF16:
        return False, f"{hiding}={os.environ[hiding]} hides the bf16 instructions of this CPU"
    return True, f"this CPU computes bf16 in hardware: {', '.join(flags)}"


def _bf16_instructions() -> list[str]:
    """Instructions of this x86 processor for bfloat16.

    Asks PyTorch where it is loaded, else Linux, so that a file of another runtime needs no PyTorch.
    """
    if sys.modules.get("torch") is None and _CPU_FLAGS.is_file():
        text = _CPU_FLAGS.read_text()
        flags = text.partition("\nflags")[2].partition("\n")[0].split()
        return [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    import torch

    supported = {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
    }
    return [name for name, found in supported.items() if found]


def slow_precision(device: Device, precision: str) -> str:
    """A warning where a reduced precision is not faster on this device; empty elsewhere."""
    kind = device if isinstance(device, str) else device.type
    if precision == "bf16":
        native, reason = bf16_in_hardware(device)
        if native or kind not in ("cpu", "cuda"):
            return ""
        if kind == "cuda":
            return f"bf16 is emulated ({reason}); fp16 is faster here"
        return f"bf16 is slower than fp32 ({reason}). {_MEASURED}"
    if precision == "fp16" and kind == "cpu":
        import torch

        mkldnn = torch.backends.mkldnn.is_available()
        if not (mkldnn and torch.ops.mkldnn._is_mkldnn_fp16_supported()):
            return "fp16 is slower than fp32 (this CPU has no fp16 instructions)"
    return ""
