"""The same runs on an NVIDIA GPU as on the CPU: results agree (`make gpu-check`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgrseg.inference.compiled_backend import CompiledBackend
from cgrseg.models import create_model
from tests import device_runs
from tests.golden_weights import golden_input, set_golden_weights

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Convolutions without TF32, which PyTorch allows by default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("form", ["t", "b5", "l"])
def test_logits_are_those_of_the_published_code(form: str, golden_dir: Path) -> None:
    name = {"t": "cgrseg_t", "b5": "cgrseg_b", "l": "cgrseg_l"}[form]
    model = create_model(name, context_blocks=5)
    set_golden_weights(model)
    image = golden_input("input_512x512", (1, 3, 512, 512)).cuda()
    with torch.inference_mode():
        logits = model.eval().cuda()(image).cpu().numpy()[0, ::7, ::2, ::2]
    expected = np.load(golden_dir / "official.npz")[f"{form}_512x512_logits"]
    assert json.loads((golden_dir / "official.json").read_text())[form]
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 1e-4


@pytest.mark.parametrize("name", device_runs.LOSSES)
def test_losses(name: str) -> None:
    found, expected = device_runs.losses("cuda", name), device_runs.losses("cpu", name)
    for term, value in expected.items():
        torch.testing.assert_close(found[term], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", ["cgrseg_t", "cgrseg_b", "cgrseg_l"])
def test_steps(variant: str) -> None:
    found, expected = (device_runs.steps(device, variant, count=2) for device in ("cuda", "cpu"))
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_steps_in_16_bits(precision: torch.dtype) -> None:
    found = device_runs.steps("cuda", "cgrseg_t", precision, count=2)
    expected = device_runs.steps("cpu", "cgrseg_t", count=2)
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training(precision: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "train__precision": precision,
        "train__ema_decay": 0.9,
        "train__channels_last": precision != "fp32",
        "data__workers": 2,
    }
    weights = device_runs.training("cuda", tmp_path, **changes)
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_evaluation() -> None:
    found, expected = device_runs.evaluation("cuda"), device_runs.evaluation("cpu")
    moved = (found["confusion"] - expected["confusion"]).abs().sum()
    assert moved <= 0.002 * expected["confusion"].sum()
    torch.testing.assert_close(found["calibration"], expected["calibration"], rtol=0, atol=2e-3)


@pytest.mark.parametrize("mode", device_runs.MODES)
@pytest.mark.parametrize("form", ["eager", "folded"])
def test_prediction(form: str, mode: str) -> None:
    found = device_runs.prediction("cuda", form, mode, confidence=True)
    expected = device_runs.prediction("cpu", form, mode, confidence=True)
    assert (found["labels"] == expected["labels"]).float().mean() > 0.998
    assert (found["confidence"] - expected["confidence"]).abs().mean() < 1e-3


def test_compiled_network_with_cuda_graphs() -> None:
    model = device_runs.network().eval()
    compiled = CompiledBackend(model, "cuda", compile_after=0)
    assert compiled.prepare(64, 64, batch=2).how == "compiled"
    first, second = (device_runs.batch("cuda")[0] + offset for offset in (0.0, 1.0))
    ours = compiled.logits(first)
    kept = ours.clone()
    other = compiled.logits(second)
    assert torch.equal(ours, kept)  # the second image leaves the first one's logits alone
    with torch.inference_mode():
        for image, logits in ((first, ours), (second, other)):
            expected = model(image.cpu())
            error = (logits.cpu() - expected).norm() / expected.norm()
            assert error < 1e-3


@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_decoding(sharpness: float) -> None:
    found, expected = (device_runs.decoding(device, sharpness) for device in ("cuda", "cpu"))
    for name in ("auto", "boundary", "dense", "best"):
        assert (found[name] == expected[name]).float().mean() > 0.9999
    torch.testing.assert_close(found["probability"], expected["probability"], rtol=1e-4, atol=1e-5)
