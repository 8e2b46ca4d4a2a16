"""Parameter groups and learning rate, against the published code and by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cgrseg.config.schema import OptimizerConfig, ScheduleConfig
from cgrseg.models import create_model
from cgrseg.training.optimizer import (
    Muon,
    layer_multipliers,
    multipliers,
    orthogonal,
    parameter_groups,
    rate_factor,
)

VARIANTS = {
    "t": ("cgrseg_t", 5),
    "b5": ("cgrseg_b", 5),
    "b6": ("cgrseg_b", 6),
    "l": ("cgrseg_l", 5),
}


@pytest.fixture(scope="module")
def official(golden_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((golden_dir / "official.json").read_text())
    return content


@pytest.mark.parametrize("key", list(VARIANTS))
def test_every_parameter_has_the_published_factors(official: dict[str, Any], key: str) -> None:
    name, blocks = VARIANTS[key]
    model = create_model(name, 150, context_blocks=blocks)
    groups = parameter_groups(model, OptimizerConfig())
    found = {
        parameter: [group["lr_multiplier"], group["decay_multiplier"]]
        for group in groups
        for parameter in group["names"]
    }
    assert found == official[key]["optimizer"]
    for group in groups:
        assert group["lr"] == pytest.approx(1.2e-4 * group["lr_multiplier"], rel=1e-12)
        assert group["weight_decay"] == pytest.approx(0.01 * group["decay_multiplier"], rel=1e-12)
    values = {id(value) for group in groups for value in group["params"]}
    assert values == {id(value) for value in model.parameters()}


def test_the_first_rule_that_matches_wins() -> None:
    config = OptimizerConfig(head_multiplier=3.0)
    assert multipliers("decode_head.norm.weight", config) == (3.0, 1.0)
    assert multipliers("backbone.norm1.bias", config) == (1.0, 0.0)
    assert multipliers("backbone.conv.weight", config) == (1.0, 1.0)


def test_frozen_parameters_are_left_out() -> None:
    module = nn.ModuleDict({"head": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})
    module["head"].weight.requires_grad_(False)
    groups = parameter_groups(module, OptimizerConfig())
    assert [group["names"] for group in groups] == [["head.bias"], ["norm.weight", "norm.bias"]]


def test_layer_rates_fall_towards_the_stem() -> None:
    names = [
        "backbone.patch_embed.0.weight",
        "backbone.network.0.0.conv.weight",
        "backbone.network.0.1.conv.weight",
        "backbone.network.1.proj.weight",
        "backbone.network.10.0.conv.weight",
        "decode_head.conv_seg.weight",
    ]
    factors = layer_multipliers(names, 0.5)
    assert [factors[name] for name in names] == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0]


def test_layer_decay_multiplies_the_published_factors() -> None:
    groups = parameter_groups(create_model("cgrseg_t", 3), OptimizerConfig(layer_decay=0.9))
    rate = {name: group["lr_multiplier"] for group in groups for name in group["names"]}
    # T: stages of 3, 3, 9, 6 blocks with three downsampling steps between them, and the stem
    assert rate["backbone.patch_embed.0.weight"] == pytest.approx(0.9**25)
    assert rate["decode_head.conv_seg.weight"] == 10.0


def test_rates_are_those_of_the_published_code(golden_dir: Path) -> None:
    rows = json.loads((golden_dir / "official.json").read_text())["lr_schedule"]
    assert len(rows) == 12
    schedule = ScheduleConfig()
    for iteration, base, head in rows:
        assert 1.2e-4 * rate_factor(iteration, schedule) == pytest.approx(base, rel=1e-9, abs=0)
        assert 1.2e-3 * rate_factor(iteration, schedule) == pytest.approx(head, rel=1e-9, abs=0)


def test_factor_by_hand() -> None:
    schedule = ScheduleConfig(max_iters=100, warmup_iters=10, warmup_ratio=0.1, power=2.0)
    assert rate_factor(0, schedule) == pytest.approx(0.1)
    # half way through the warm-up: 0.55 of (1 - 5/100)^2
    assert rate_factor(5, schedule) == pytest.approx(0.55 * 0.9025)
    assert rate_factor(50, schedule) == pytest.approx(0.25)
    assert rate_factor(100, schedule) == 0.0
    assert rate_factor(101, schedule) == 0.0


def test_without_warm_up_the_first_rate_is_the_full_one() -> None:
    assert rate_factor(0, ScheduleConfig(max_iters=20, warmup_iters=0)) == 1.0


@pytest.mark.parametrize("curve", ["cosine", "one_cycle"])
def test_curves_are_those_of_pytorch(curve: str) -> None:
    steps, parameter = 40, nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedulers = torch.optim.lr_scheduler
    if curve == "cosine":
        reference: Any = schedulers.CosineAnnealingLR(optimizer, steps)
    else:
        reference = schedulers.OneCycleLR(
            optimizer, 1.0, total_steps=steps + 1, pct_start=13 / (steps + 1), final_div_factor=1e9,
            cycle_momentum=False,
        )  # fmt: skip
    schedule = ScheduleConfig.model_validate(
        {"curve": curve, "max_iters": steps, "warmup_iters": 0}
    )
    found, wanted = [], []
    for iteration in range(steps + 1):
        found.append(rate_factor(iteration, schedule))
        wanted.append(optimizer.param_groups[0]["lr"])
        if iteration < steps:
            optimizer.step()
            reference.step()
    # PyTorch turns after `pct_start * total_steps - 1` steps, here 12 of 40: 30 %.
    assert found == pytest.approx(wanted, abs=1e-6)
    assert found[-1] == pytest.approx(0, abs=1e-9) and max(found) == pytest.approx(1)


def test_the_warm_up_multiplies_every_curve() -> None:
    for curve in ("poly", "cosine", "one_cycle"):
        plain, warm = (
            ScheduleConfig.model_validate(
                {"curve": curve, "max_iters": 100, "warmup_iters": steps, "warmup_ratio": 0.0}
            )
            for steps in (0, 10)
        )
        assert rate_factor(5, warm) == pytest.approx(0.5 * rate_factor(5, plain))


def test_muon_takes_matrices_and_keeps_the_published_factors() -> None:
    model = create_model("cgrseg_t", 11)
    groups = parameter_groups(model, OptimizerConfig(name="muon"))
    assert len(groups) == 5  # the three published ones; two of them hold matrices
    plain = {
        name: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, OptimizerConfig())
        for name in group["names"]
    }
    matrices = {}
    for group in groups:
        for name, value in zip(group["names"], group["params"], strict=True):
            assert plain.pop(name) == (group["lr"], group["weight_decay"])
            if group["muon"]:
                matrices[name] = value
    assert not plain
    assert sum(value.numel() for value in matrices.values()) == 8_985_904  # 96 % of all
    modules = dict(model.named_modules())
    dense = {
        f"{name}.weight"
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.out_channels > 1
    }
    assert set(matrices) == dense - {"decode_head.conv_seg.weight"}
    ssa = parameter_groups(create_model("cgrseg_t", 11, head="ssa"), OptimizerConfig(name="muon"))
    taken = {name for group in ssa if group["muon"] for name in group["names"]}
    assert "decode_head.center_pos_proj.0.weight" in taken
    assert "decode_head.center_pos.weight" not in taken


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)], ids=str)
def test_singular_values_are_mapped_by_the_polynomial(shape: tuple[int, int]) -> None:
    left, values, right = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)).double(),
        full_matrices=False,
    )
    mapped = values / values.norm()
    for _ in range(5):
        mapped = 3.4445 * mapped - 4.7750 * mapped**3 + 2.0315 * mapped**5
    assert mapped.min() > 0.6 and mapped.max() < 1.3
    found = orthogonal(left @ values.diag() @ right)
    assert torch.allclose(found, left @ mapped.diag() @ right, rtol=1e-9, atol=1e-12)
    assert not orthogonal(torch.zeros(shape)).any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_steps_are_those_of_pytorchs_optimizers(layout: torch.memory_format) -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with PyTorch 2.9")
    draws = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 4, 3, 3, generator=draws), torch.randn(6, generator=draws)
    ours = [nn.Parameter(weight.clone(memory_format=layout)), nn.Parameter(bias.clone())]
    common: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
    optimizer = Muon(
        [
            {**common, "params": [ours[0]], "muon": True},
            {**common, "params": [ours[1]], "muon": False},
        ]
    )
    theirs = [nn.Parameter(weight.flatten(1).clone()), nn.Parameter(bias.clone())]
    matrices = torch.optim.Muon([theirs[0]], **common, adjust_lr_fn="match_rms_adamw")
    rest = torch.optim.AdamW([theirs[1]], **common)
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=draws)
            other.grad = one.grad.reshape(other.shape).clone()
        optimizer.step()
        matrices.step()
        rest.step()
    # PyTorch's own class multiplies in bfloat16.
    moved = theirs[0].detach() - weight.flatten(1)
    error = ours[0].detach().flatten(1) - theirs[0].detach()
    assert float(error.norm()) < 0.02 * float(moved.norm())
    assert float(moved.norm()) > 0.1
    assert torch.equal(ours[1], theirs[1])
    buffer = matrices.state[theirs[0]]["momentum_buffer"].view_as(weight)
    assert torch.allclose(optimizer.state[ours[0]]["momentum_buffer"], buffer, rtol=1e-6)


def test_a_copy_steps_as_its_original() -> None:
    values = [nn.Parameter(torch.eye(3)), nn.Parameter(torch.ones(3))]
    groups = [{"params": [v], "muon": k == 0, "weight_decay": 0.1} for k, v in enumerate(values)]
    optimizer = Muon([{**group, "lr": 0.01} for group in groups])
    for _ in range(2):
        twins, twin = copy.deepcopy((values, optimizer))
        for each, stepped in ((values, optimizer), (twins, twin)):
            for value in each:
                value.grad = torch.arange(value.numel()).reshape(value.shape) / 10
            stepped.step()
        for value, other in zip(values, twins, strict=True):
            assert value is not other and torch.equal(value, other)
