"""What this machine can compile and compute, told in words."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys

import torch

from cgrseg.inference.precision import Precision


def missing_compiler(device: torch.device) -> str:
    """What compiling for a device lacks here, and what to do; empty if nothing."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "PyTorch compiles for GPUs through Triton, which is missing: pip install triton"
        return ""
    if device.type != "cpu":
        return f"compiling for {device.type} is not supported; cpu and cuda are"
    chosen = os.environ.get("CXX")
    names = [chosen] if chosen else ["cl"] if sys.platform == "win32" else ["g++", "clang++"]
    if any(shutil.which(name) for name in names):
        return ""
    wanted = f"CXX names {chosen!r}, which cannot be found" if chosen else "no C++ compiler found"
    return f"{wanted}: install g++ (Debian, Ubuntu: apt install g++), or set CXX to a compiler"


def slow_precision(device: torch.device, precision: Precision) -> str:
    """A warning where a reduced precision is not faster on this device; empty elsewhere."""
    if precision == "fp32":
        return ""
    if device.type == "cuda":
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return "this GPU has no bfloat16 arithmetic: use fp16, which is faster here"
        return ""
    if device.type != "cpu" or _computes_natively(precision):
        return ""
    return f"this CPU has no {precision} arithmetic: it is emulated, and slower than fp32"


def _computes_natively(precision: Precision) -> bool:
    """Whether the CPU itself multiplies in a reduced precision, and PyTorch uses it.

    oneDNN takes bfloat16 on any CPU with AVX-512, but converts it to float32 and back where
    the instructions for it are missing.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if not getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported")():
        return False
    if precision == "bf16" and platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return True
