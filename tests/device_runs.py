"""Training, evaluation and prediction in small, on any device.

The tests of the fake device run these on "cuda" without a GPU; the tests marked `gpu` run them on
a GPU and compare with the CPU.  Each function returns results on the CPU.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgrseg import train
from cgrseg.bench.random_weights import draw_weights
from cgrseg.config.schema import LossConfig, TestConfig
from cgrseg.evaluation.loop import evaluate_model
from cgrseg.inference.backends import Backend, TorchBackend
from cgrseg.inference.compiled_backend import CompiledBackend
from cgrseg.inference.fast.network import fast_form
from cgrseg.inference.segmenting import segment
from cgrseg.models import CGRSeg, create_model
from cgrseg.ops import upsample_argmax, upsample_confidence, upsample_topk
from cgrseg.training.losses import SegmentationLoss, pixel_accuracy
from cgrseg.training.module import AveragedWeights, TrainingModule
from cgrseg.training.optimizer import parameter_groups
from tests.inference.fixtures import photo
from tests.training.small_run import small_config, weights_of, write_dataset

CLASSES = 5

LOSSES: dict[str, dict[str, Any]] = {
    "published": {},
    "weights": {"class_weights": [1.0, 2.0, 0.5, 1.0, 3.0], "label_smoothing": 0.1},
    "valid": {"average": "valid", "initial_weight": 0.4},
    "dice": {"dice_weight": 0.5, "class_weights": [1.0, 2.0, 0.5, 1.0, 3.0]},
    "lovasz and focal": {"lovasz_weight": 0.5, "focal_weight": 0.5},
    "ohem": {"ohem_threshold": 0.7, "ohem_min_pixels": 100},
}

MODES: dict[str, dict[str, Any]] = {
    "whole": {"scale": (96, 64)},
    "pascal context": {"resize": "keep_ratio_divisible", "divisor": 32, "scale": (100, 70)},
    "scales and flip": {"scale": (96, 64), "ratios": [0.75, 1.0], "flip": True},
    "slide": {"scale": (160, 96), "mode": "slide", "crop_size": [64, 64], "stride": [42, 42]},
}


@functools.cache
def _network(variant: str) -> CGRSeg:
    torch.manual_seed(0)
    options: dict[str, Any] = {"dropout": 0.0, "drop_path": 0.0, "context_blocks": 1}
    return draw_weights(create_model(variant, CLASSES, **options))


def network(variant: str = "cgrseg_t") -> CGRSeg:
    """A network on the CPU with random weights, whose predictions have several classes."""
    return copy.deepcopy(_network(variant))


def batch(device: str, side: int = 64) -> tuple[Tensor, Tensor]:
    """Normalized images (2, 3, side, side) and labels, a part of them ignored."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, side, side, generator=generator)
    label = torch.randint(0, CLASSES, (2, side, side), generator=generator)
    label[:, :5] = 255
    return image.to(device), label.to(device)


def losses(device: str, name: str) -> dict[str, Tensor]:
    """Terms of a loss, and the gradient by the logits."""
    logits, initial = (
        torch.randn(2, CLASSES, 8, 8, generator=torch.Generator().manual_seed(seed))
        .to(device)
        .requires_grad_()
        for seed in (2, 3)
    )
    _, label = batch(device)
    loss = SegmentationLoss(LossConfig(**LOSSES[name]), CLASSES).to(device)
    terms = loss(logits, label, initial)
    terms["loss"].backward()
    assert logits.grad is not None
    terms["accuracy"] = pixel_accuracy(logits.detach(), label, 255)
    return {key: value.detach().cpu() for key, value in {**terms, "gradient": logits.grad}.items()}


def steps(
    device: str, variant: str, precision: torch.dtype | None = None, count: int = 1
) -> dict[str, Tensor]:
    """Optimizer steps with clipping and weight averaging: losses, averaged weights."""
    model = network(variant).to(device).train()
    averaged = AveragedWeights(model, 0.9)
    loss = SegmentationLoss(LossConfig(), CLASSES).to(device)
    settings = small_config(Path("."), Path(".")).optimizer
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), lr=1e-3, fused=True)
    image, label = batch(device)
    found: list[Tensor] = []
    for _ in range(count):
        with torch.autocast(device, dtype=precision, enabled=precision is not None):
            logits = model(image)
        assert precision is None or logits.dtype == precision
        terms = loss(logits, label)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        averaged.update(model)
        found.append(terms["loss"].detach())
    result = {"losses": torch.stack(found).cpu()}
    return {**result, **{k: v.cpu() for k, v in averaged.module.named_parameters()}}


def module_step(device: str) -> dict[str, Tensor]:
    """The step of the Lightning module on a batch from the CPU: its loss and the logged means."""
    config = small_config(Path("."), Path("."), train__ema_decay=0.9)
    module = TrainingModule(network(), config, CLASSES).to(device)
    module.on_fit_start()
    image, label = batch("cpu")
    given = {"image": image, "label": label, "index": torch.arange(2)}
    moved = module.transfer_batch_to_device(given, torch.device(device), 0)
    loss = module.training_step(moved, 0)
    loss.backward()
    module.finish_iteration()
    module.finish_iteration()
    assert module.first_bad_iteration is None
    return {name: value.detach().cpu() for name, value in module.take_report().items()}


def training(device: str, folder: Path, **changes: Any) -> dict[str, Tensor]:
    """A training by Lightning with evaluation: weights of the last checkpoint."""
    data = write_dataset(folder / "data", train=4, val=1)
    config = small_config(
        data,
        folder / "run",
        **{
            "train__evaluate": True,
            "train__eval_interval": 1,
            "schedule__max_iters": 2,
            "model__dropout": 0.0,
            "model__drop_path": 0.0,
            **changes,
        },
    )
    result = train(config, device=device)
    assert result.iterations == 2 and np.isfinite(result.metrics["mIoU"])
    return weights_of(result.latest)


class Photos:
    """Images of two sizes with labels."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        image = photo(64, 96 if index else 80, index)
        label = (image[..., 0] // 52).astype(np.uint8)
        label[:4] = 255
        return {"image": image, "label": label, "stem": str(index)}


def evaluation(device: str) -> dict[str, Tensor]:
    """Evaluation with all metrics: confusion matrix, boundary IoU, calibration."""
    metrics = ("mIoU", "mBoundaryIoU", "ECE")
    test = TestConfig(resize="none")
    found = evaluate_model(network(), Photos(), test, metrics=metrics, device=device, batch_size=2)
    assert found.boundary is not None and found.calibration is not None
    return {
        "confusion": torch.from_numpy(found.confusion),
        "boundary": torch.from_numpy(found.boundary),
        "calibration": torch.tensor(found.calibration.error),
    }


def backend(device: str, form: str) -> Backend:
    """A network on a device: "eager", "eager bf16", "folded" or "compiled"."""
    model = network().eval()
    if form == "folded":
        return TorchBackend(fast_form(model.to(device)), device, channels_last=True)
    if form == "compiled":
        ready = CompiledBackend(model, device, compile_after=1)
        ready.prepare(64, 96)
        return ready
    return TorchBackend(model, device, "bf16" if form == "eager bf16" else "fp32")


def prediction(device: str, form: str, mode: str, confidence: bool) -> dict[str, Tensor]:
    """Labels of an image, and their probabilities if asked for."""
    test = TestConfig(**MODES[mode])
    found = segment(backend(device, form), photo(70, 101), test, confidence=confidence)
    result = {"labels": torch.from_numpy(found.labels)}
    if found.confidence is not None:
        result["confidence"] = torch.from_numpy(found.confidence)
    return result


def decoding(device: str, sharpness: float) -> dict[str, Tensor]:
    """Fused upsampling of logits with few (sharp) or many (noise) candidates per pixel."""
    generator = torch.Generator().manual_seed(4)
    coarse = torch.randn(2, 40, 3, 4, generator=generator)
    logits = torch.nn.functional.interpolate(coarse, size=(9, 12), mode="bilinear") * sharpness
    logits += torch.randn(logits.shape, generator=generator)
    logits = logits.to(device)
    found = {
        method: upsample_argmax(logits, (60, 90), input_size=(72, 96), crop=(70, 95), method=method)  # type: ignore[arg-type]
        for method in ("auto", "boundary", "dense")
    }
    found["best"], found["probability"] = upsample_confidence(logits, (60, 90))
    found["top"], found["probabilities"] = upsample_topk(logits, (60, 90), 3)
    return {name: value.cpu() for name, value in found.items()}
