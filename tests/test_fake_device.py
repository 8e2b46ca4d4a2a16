"""No tensor stays on the wrong device: everything runs on a fake GPU (tests/fake_device.py).

The second half plants a mistake in a real function, place by place, and expects a refusal: what the
first half finds is shown to be found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgrseg import loss_terms
from cgrseg.evaluation import extra_metrics, loop
from cgrseg.inference import compiled_backend, device_decode, views
from cgrseg.inference.decode import Segmentation
from cgrseg.inference.fast import backbone
from cgrseg.models import dpg_head
from cgrseg.ops import cross_entropy, resize_plan, windows
from cgrseg.training import losses, module
from tests import device_runs
from tests.fake_device import CPU, CUDA, device_of, fake_cuda


@pytest.fixture(autouse=True)
def plans() -> Iterator[None]:
    """Plans of the fake GPU must not stay in the cache."""
    resize_plan._cached_plan.cache_clear()
    yield
    resize_plan._cached_plan.cache_clear()


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile` that gives the function itself, so that inputs and results are seen."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(compiled_backend, "missing_compiler", lambda device: "")


def test_the_fake_device_behaves_like_a_gpu() -> None:
    with fake_cuda() as gpu:
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert there.is_cuda and there.device == CUDA and here.device == CPU
        assert (there + 1).device == torch.zeros_like(there).device == CUDA
        assert (there * torch.tensor(2.0)).device == CUDA  # scalars of the CPU are accepted
        assert there[torch.tensor([0, 2])].device == CUDA  # and indices
        assert there.cpu().numpy().sum() == there.sum().item() == 3.0
        assert torch.nn.Linear(3, 3).to("cuda").weight.device == CUDA
        weight = torch.ones(3, requires_grad=True)
        (weight.to("cuda") * there).sum().backward()
        assert weight.grad is not None and weight.grad.device == CPU
        for refused in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: torch.stack([there, torch.tensor(1.0)[None].expand(3)]),
            lambda: here[torch.tensor([0], device="cuda")],
            lambda: torch.randn(3, device="cuda", generator=torch.Generator()),
            lambda: torch.nn.Linear(3, 3)(there),
        ):
            with pytest.raises(RuntimeError):
                refused()
        with pytest.raises(TypeError, match="to numpy"):
            there.numpy()
        assert len(gpu.mistakes) == 7
        gpu.mistakes.clear()
    caught = contextlib.suppress(RuntimeError)  # a mistake counts all the same
    with pytest.raises(AssertionError, match="same device"), fake_cuda(), caught:
        _ = here + there
    assert device_of(there) == CUDA and there.device == CPU  # outside nothing pretends


@pytest.mark.parametrize("name", device_runs.LOSSES)
def test_losses(name: str) -> None:
    with fake_cuda() as gpu:
        found = device_runs.losses("cuda", name)
    assert gpu.operations > 50
    expected = device_runs.losses("cpu", name)
    assert found.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(found[term], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("variant", "precision"),
    [("cgrseg_t", torch.bfloat16), ("cgrseg_b", None), ("cgrseg_l", None)],
)
def test_steps(variant: str, precision: torch.dtype | None) -> None:
    with fake_cuda() as gpu:
        found = device_runs.steps("cuda", variant, precision, count=2 if precision else 1)
    assert gpu.operations > 3000 and bool(found["losses"].isfinite().all())


def test_training(tmp_path: Path) -> None:
    """Lightning's loop with evaluation, checkpoints, averaging, accumulation, loss terms."""
    changes = {
        "train__precision": "bf16",
        "train__ema_decay": 0.9,
        "train__channels_last": True,
        "train__accumulate": 2,
        "loss__initial_weight": 0.4,
        "optimizer__clip_norm": 1.0,
    }
    with fake_cuda() as gpu:
        weights = device_runs.training("cuda", tmp_path, **changes)
    assert gpu.operations > 20_000 and len(weights) > 850


def test_module_step() -> None:
    with fake_cuda():
        found = device_runs.module_step("cuda")
    assert set(found) == {"loss", "loss_ce", "acc_seg"}


def test_evaluation() -> None:
    with fake_cuda() as gpu:
        found = device_runs.evaluation("cuda")
    assert gpu.operations > 500
    for name, value in device_runs.evaluation("cpu").items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)


def test_metrics_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda() as gpu:
        counts, boundary = _combine(monkeypatch)
    assert gpu.operations > 5 and counts.sum() == 2 * 64 and boundary.shape == (3,)


@pytest.mark.parametrize("mode", device_runs.MODES)
@pytest.mark.parametrize("form", ["eager", "folded"])
def test_prediction(form: str, mode: str) -> None:
    with fake_cuda() as gpu:
        found = device_runs.prediction("cuda", form, mode, confidence=mode != "whole")
    assert gpu.operations > 500
    expected = device_runs.prediction("cpu", form, mode, confidence=False)
    assert (found["labels"] == expected["labels"]).float().mean() > 0.999


def test_compiled_prediction(compiler: None) -> None:
    with fake_cuda() as gpu:
        found = device_runs.prediction("cuda", "compiled", "whole", confidence=True)
    assert gpu.operations > 500 and len(found["labels"].unique()) > 1


@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_decoding(sharpness: float) -> None:
    with fake_cuda() as gpu:
        found = device_runs.decoding("cuda", sharpness)
    assert gpu.operations > 300
    for name, value in device_runs.decoding("cpu", sharpness).items():
        torch.testing.assert_close(found[name], value)


# Planted mistakes.  Each returns a value on the CPU, or creates it without a device.

_Plant = Callable[[pytest.MonkeyPatch], None]
_PLANTED: dict[str, tuple[_Plant, Callable[[pytest.MonkeyPatch], object]]] = {}


def _plant(name: str, run: Callable[[pytest.MonkeyPatch], object]) -> Callable[[_Plant], _Plant]:
    def keep(plant: _Plant) -> _Plant:
        _PLANTED[name] = (plant, run)
        return plant

    return keep


def _on_cpu(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Let a function give its result on the CPU."""
    real = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **options: real(*args, **options).cpu())


def _forward(patch: pytest.MonkeyPatch) -> object:
    return device_runs.network().to("cuda")(device_runs.batch("cuda")[0])


def _combine(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """The tally of one of two processes that counted the same."""
    monkeypatch.setattr("torchmetrics.metric.gather_all_tensors", lambda value, group: [value] * 2)
    monkeypatch.setattr(loop, "gather_in_order", lambda rows, world_size: list(rows.values()))
    tally = loop.Tally(3, 255, ("mIoU", "mBoundaryIoU", "ECE"))
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    found = Segmentation(labels, np.full((8, 8), 0.5, dtype=np.float32))
    tally.add(0, {"label": labels.copy(), "stem": "0"}, found)
    for metric in (tally.confusion, tally.boundary, tally.calibration):
        assert metric is not None
        metric.distributed_available_fn = lambda: True
    result = tally.combined("abc", 2, torch.device("cuda", 0))
    assert result.boundary is not None
    return result.confusion, result.boundary


@_plant("network", _forward)
def _(patch: pytest.MonkeyPatch) -> None:
    _on_cpu(patch, dpg_head, "class_centers")


@_plant("loss term", lambda patch: device_runs.losses("cuda", "dice"))
def _(patch: pytest.MonkeyPatch) -> None:
    term = loss_terms.LossTerm(
        lambda logits, label, ignored: (logits.mean(dim=(0, 2, 3)) * torch.ones(5)).sum(), ""
    )
    patch.setitem(loss_terms.TERMS, "dice", term)


@_plant("inside the fused loss", lambda patch: device_runs.losses("cuda", "published"))
def _(patch: pytest.MonkeyPatch) -> None:
    real = windows.tensor_plan
    patch.setattr(cross_entropy, "tensor_plan", lambda *sizes, device: real(*sizes, device="cpu"))


@_plant("gradient of the fused loss", lambda patch: device_runs.losses("cuda", "published"))
def _(patch: pytest.MonkeyPatch) -> None:
    real = cross_entropy._sum_and_gradient
    patch.setattr(
        cross_entropy,
        "_sum_and_gradient",
        lambda *args: tuple(one.cpu() if one.dim() else one for one in real(*args)),
    )


@_plant("batch of the training step", lambda patch: device_runs.module_step("cuda"))
def _(patch: pytest.MonkeyPatch) -> None:
    def keeps_the_label(self: Any, batch: Any, device: Any, number: int) -> Any:
        return {**batch, "image": batch["image"].to(device)}

    patch.setattr(module.TrainingModule, "transfer_batch_to_device", keeps_the_label)


@_plant("weight averaging", lambda patch: device_runs.module_step("cuda"))
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module.TrainingModule, "on_fit_start", lambda self: None)


@_plant("accuracy during training", lambda patch: device_runs.module_step("cuda"))
def _(patch: pytest.MonkeyPatch) -> None:
    real = cross_entropy.upsample_accuracy
    patch.setattr(
        losses,
        "upsample_accuracy",
        lambda logits, label, **options: real(logits.cpu(), label, **options),
    )


@_plant("metrics of several processes", _combine)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loop, "boundary_scores", lambda counts: counts.numpy())
    patch.setattr(extra_metrics, "boundary_scores", lambda counts: counts.numpy())


@_plant("decoding by tiles", lambda patch: _predict("eager", "scales and flip"))
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(device_decode.TapMatrix, "to", lambda self, device: self)


@_plant("fused decoding", lambda patch: device_runs.decoding("cuda", 1.0))
def _(patch: pytest.MonkeyPatch) -> None:
    def without_device(self: windows.Windows) -> torch.Tensor:
        count = self.batch * len(self.rows.group_taps) * len(self.columns.group_taps)
        return torch.arange(count)

    patch.setattr(windows.Windows, "all_numbers", without_device)


@_plant("sliding windows", lambda patch: _predict("eager", "slide"))
def _(patch: pytest.MonkeyPatch) -> None:
    _on_cpu(patch, views.SlidingView, "_run_row")


@_plant("fast path", lambda patch: _predict("folded", "whole"))
def _(patch: pytest.MonkeyPatch) -> None:
    _on_cpu(patch, backbone.StoredBias, "compute")


@_plant("input of the compiled network", lambda patch: _predict("compiled", "whole"))
def _(patch: pytest.MonkeyPatch) -> None:
    def without_move(self: compiled_backend.CompiledBackend, batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self._runners[(len(batch), *batch.shape[2:])](batch)

    patch.setattr(compiled_backend.CompiledBackend, "logits", without_move)


def _predict(form: str, mode: str) -> object:
    return device_runs.prediction("cuda", form, mode, confidence=False)


@pytest.mark.parametrize("place", _PLANTED)
def test_a_planted_mistake_is_found(
    place: str, monkeypatch: pytest.MonkeyPatch, compiler: None
) -> None:
    plant, run = _PLANTED[place]
    plant(monkeypatch)
    with pytest.raises((RuntimeError, TypeError, AssertionError)), fake_cuda() as gpu:
        run(monkeypatch)
    assert gpu.mistakes  # the error is that of a device, and not another one
