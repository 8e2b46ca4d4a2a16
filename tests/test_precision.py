"""Which precision pays on a device, and what is said where it does not."""

from __future__ import annotations

import logging
import platform
import sys
from pathlib import Path

import pytest
import torch

from cgrseg.errors import ConfigError
from cgrseg.inference.backends import TorchBackend
from cgrseg.inference.ready_backend import make_backend
from cgrseg.models import create_model
from cgrseg.precision import (
    bf16_in_hardware,
    check_precision,
    choose_precision,
    resolve_precision,
    slow_precision,
)

CPU = torch.device("cpu")


@pytest.fixture
def bf16_cpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An x86 processor with AVX512-BF16, as PyTorch describes it."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_auto_is_bf16_where_the_cpu_computes_it(bf16_cpu: pytest.MonkeyPatch) -> None:
    assert str(choose_precision(CPU)).startswith("bf16 (this CPU computes bf16 in hardware: avx512")
    assert slow_precision(CPU, "bf16") == ""
    bf16_cpu.setattr(platform, "machine", lambda: "AMD64")
    bf16_cpu.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    bf16_cpu.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_precision(CPU).precision == "bf16"


@pytest.mark.parametrize(
    ("isa", "precision"),
    [
        ("AVX2", "fp32"),
        ("avx512_core", "fp32"),  # oneDNN reads the value in any case
        ("AVX512_CORE_VNNI", "fp32"),
        ("AVX512_CORE_BF16", "bf16"),
        ("AVX512_CORE_AMX", "bf16"),
        ("DEFAULT", "bf16"),
        ("no such value", "bf16"),  # oneDNN ignores it
    ],
)
def test_hidden_instructions_do_not_count(
    isa: str, precision: str, bf16_cpu: pytest.MonkeyPatch
) -> None:
    bf16_cpu.setenv("ONEDNN_MAX_CPU_ISA", isa)
    choice = choose_precision(CPU)
    assert choice.precision == precision
    assert (f"ONEDNN_MAX_CPU_ISA={isa} hides" in choice.reason) == (precision == "fp32")
    assert ("9 times as long" in slow_precision(CPU, "bf16")) == (precision == "fp32")


def test_auto_is_fp32_elsewhere(bf16_cpu: pytest.MonkeyPatch) -> None:
    bf16_cpu.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_precision(CPU).reason == "this CPU has no bf16 instructions"
    bf16_cpu.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "no oneDNN" in choose_precision(CPU).reason
    bf16_cpu.setattr(platform, "machine", lambda: "aarch64")
    assert "this kind of CPU" in choose_precision(CPU).reason
    assert choose_precision(torch.device("mps")).precision == "fp32"


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fpu avx2 avx512_bf16", "bf16"), ("fpu amx_bf16", "bf16"), ("fpu avx2 avx512f", "fp32")],
)
def test_linux_says_it_where_pytorch_is_not_loaded(
    flags: str, precision: str, bf16_cpu: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: avx512_bf16\n")
    bf16_cpu.setattr("cgrseg.precision._CPU_FLAGS", file)
    bf16_cpu.setitem(sys.modules, "torch", None)
    assert choose_precision("cpu").precision == precision


@pytest.mark.parametrize(
    ("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_gpus_are_told_by_their_compute_capability(
    capability: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda", 0)
    assert bf16_in_hardware(gpu)[0] == native
    assert ("fp16 is faster" in slow_precision(gpu, "bf16")) == (not native)
    assert slow_precision(gpu, "fp16") == ""


def test_a_backend_keeps_what_auto_stood_for_and_warns_of_emulation(
    bf16_cpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = create_model("cgrseg_t", num_classes=2)
    with caplog.at_level(logging.INFO, "cgrseg.inference"):
        chosen = TorchBackend(model, torch.device("cpu"), "auto")
    assert chosen.precision == "bf16" and "in hardware: avx512_bf16" in chosen.precision_reason
    assert f"precision: bf16 ({chosen.precision_reason})" in caplog.text
    caplog.clear()
    bf16_cpu.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    given = TorchBackend(model, torch.device("cpu"), "fp32")
    assert (given.precision, given.precision_reason) == ("fp32", "")
    assert TorchBackend(model, torch.device("cpu"), "auto").precision == "fp32"
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING, "cgrseg.inference"):
        make_backend(model, "cpu", "bf16")
    assert "bf16 is slower than fp32 (ONEDNN_MAX_CPU_ISA=AVX2 hides" in caplog.text


def test_other_names_are_refused() -> None:
    assert resolve_precision("fp16", CPU) == "fp16" and check_precision("auto") == "auto"
    for ask in (check_precision, lambda name: resolve_precision(name, CPU)):
        with pytest.raises(ConfigError, match="auto, fp32, bf16 or fp16"):
            ask("int8")
