"""What this machine can compile, in words."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

import torch


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
