"""What this machine can compile and compute, told in words."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

import torch

from cgrseg.inference.backends import Precision


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
    if device.type != "cpu":
        return ""
    supported = {
        "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
        "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }[precision]
    if torch.backends.mkldnn.is_available() and supported():
        return ""
    return f"this CPU has no {precision} arithmetic: it is emulated, and slower than fp32"
