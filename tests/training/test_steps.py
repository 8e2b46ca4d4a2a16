"""How the optimiser steps, how weights are averaged, and in which layout."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cgrseg.config.schema import Config
from cgrseg.models import create_model
from cgrseg.training.module import AveragedWeights, TrainingModule
from cgrseg.training.resuming import restore_optimizer

LAYOUTS = [torch.contiguous_format, torch.channels_last]


class ReadsNoValue(TorchDispatchMode):
    """Fails where the processor reads a value of a tensor: on a GPU it would wait for it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read"
        return func(*args, **(kwargs or {}))


def module_of(**train: Any) -> TrainingModule:
    config = Config.model_validate({"train": train})
    return TrainingModule(create_model("cgrseg_t", 3), config, 3)


@pytest.mark.parametrize(
    ("precision", "fused"), [("fp32", True), ("bf16", True), ("fp64", None)], ids=str
)
def test_the_optimiser_is_built_as_one_operation(precision: str, fused: bool | None) -> None:
    optimizer = module_of(precision=precision).configure_optimizers()
    assert {group["fused"] for group in optimizer.param_groups} == {fused}


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_come_in_the_layout_that_was_asked_for(channels_last: bool) -> None:
    module = module_of(channels_last=channels_last)
    batch = {"image": torch.rand(2, 3, 8, 8), "label": torch.zeros(2, 8, 8).long()}
    image = module.transfer_batch_to_device(batch, torch.device("cpu"), 0)["image"]
    assert image.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert torch.equal(image, batch["image"])


@pytest.mark.parametrize("after", LAYOUTS, ids=str)
@pytest.mark.parametrize("before", LAYOUTS, ids=str)
@pytest.mark.parametrize("fused", [True, None])
def test_moments_follow_their_weights_into_another_layout(
    fused: bool | None, before: torch.memory_format, after: torch.memory_format
) -> None:
    draws = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 5, 4, 3, 3, generator=draws)

    def optimiser_of(weight: nn.Parameter, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW([weight], lr=lr, fused=fused)

    def step(weight: nn.Parameter, optimizer: torch.optim.Optimizer, number: int) -> None:
        weight.grad = torch.empty_like(weight).copy_(gradients[number])
        optimizer.step()

    weight = nn.Parameter(torch.zeros(5, 4, 3, 3).contiguous(memory_format=before))
    optimizer = optimiser_of(weight, 0.1)
    for number in range(3):
        step(weight, optimizer, number)
    saved = copy.deepcopy(optimizer.state_dict())
    resumed = nn.Parameter(weight.detach().clone(memory_format=after))
    trainer = SimpleNamespace(
        optimizers=[optimiser_of(resumed, 0.05)], precision_plugin=SimpleNamespace()
    )
    restore_optimizer(trainer, {"training": {"optimizer": saved}})
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.05
    optimizer.param_groups[0]["lr"] = 0.05
    for number in range(3, 6):
        step(weight, optimizer, number)
        step(resumed, trainer.optimizers[0], number)
    assert torch.allclose(weight, resumed, rtol=1e-6, atol=1e-7)


def test_averages_by_hand_and_without_reading_a_value() -> None:
    model = nn.BatchNorm1d(1)
    average = AveragedWeights(model, decay=0.75)
    for value in (2.0, 6.0, 10.0):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(-value)
        with ReadsNoValue():
            average.update(model)
    # 2, then 0.75 * 2 + 0.25 * 6 = 3, then 0.75 * 3 + 0.25 * 10 = 4.75
    assert average.module.weight.item() == pytest.approx(4.75)
    assert average.module.running_mean.item() == -10.0
    assert average.updates == 3
    assert not average.module.weight.requires_grad and model.weight.requires_grad


def test_the_warm_up_limits_the_decay() -> None:
    model = nn.BatchNorm1d(1)
    average = AveragedWeights(model, decay=0.25, warmup=True)
    for value in (2.0, 6.0, 10.0, 14.0):
        nn.init.constant_(model.weight, value)
        average.update(model)
    # decays 2/11, 1/4 (3/12) and 1/4 (4/13 is more)
    expected = 2 / 11 * 2.0 + 9 / 11 * 6.0
    for value in (10.0, 14.0):
        expected = 0.25 * expected + 0.75 * value
    assert average.module.weight.item() == pytest.approx(expected)


def test_the_mean_of_the_last_iterations_by_hand() -> None:
    config = Config.model_validate({"schedule": {"max_iters": 6}, "train": {"average_last": 0.5}})
    module = TrainingModule(create_model("cgrseg_t", 3, context_blocks=1), config, 3)
    norm, averaged = "backbone.patch_embed.1.", module.evaluated_model
    means = []
    for value in (3.0, 5.0, 7.0, 1.0, 2.0, 6.0):
        with torch.no_grad():
            for name in ("weight", "running_var", "num_batches_tracked"):
                module.model.state_dict()[norm + name].fill_(value)
        module.finish_iteration()
        state = averaged.state_dict()
        means.append([state[norm + name].mean().item() for name in ("weight", "running_var")])
        assert int(state[norm + "num_batches_tracked"]) == value
    assert means == [[value, value] for value in (3.0, 5.0, 7.0, 1.0, 1.5, 3.0)]


_MEMORY = """
from cgrseg.devices import keeping_all_freed_memory
import torch
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20
before = resident()
with keeping_all_freed_memory():
    blocks = [torch.ones(50, 1 << 18) for _ in range(4)]  # 50 MiB each
    del blocks
    print(resident() - before)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_kept_during_training_only() -> None:
    done = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, check=True)
    during, after = map(int, done.stdout.split())
    assert during > 190
    assert after < 40
