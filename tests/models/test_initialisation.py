"""How fresh networks start, and what is random in training (no golden covers it)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cgrseg.config.schema import OptimizerConfig
from cgrseg.models import CGRSeg, create_model
from cgrseg.models.layers import DropPath
from cgrseg.training.optimizer import parameter_groups

VARIANTS = ["cgrseg_t", "cgrseg_b", "cgrseg_l"]


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> CGRSeg:
    torch.manual_seed(0)
    return create_model(request.param)


def test_scales_and_zeros(model: CGRSeg) -> None:
    for name, value in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "gamma":
            assert torch.equal(value, torch.full_like(value, 1e-6)), name
        elif leaf.startswith("layer_scale"):
            assert torch.equal(value, torch.full_like(value, 1e-5)), name
        elif leaf == "attention_biases_seg":
            assert not value.any(), name
    last = model.decode_head.lgc.channel_mul_conv[3]
    assert not last.weight.any() and not last.bias.any()
    assert not model.decode_head.conv_seg.bias.any()


def test_classifier_is_normal_with_a_deviation_of_a_hundredth(model: CGRSeg) -> None:
    weight = model.decode_head.conv_seg.weight.detach()
    assert abs(float(weight.std()) - 0.01) < 3e-4
    assert abs(float(weight.mean())) < 3e-4
    # A uniform draw of the same deviation would end at 0.0173.
    assert float(weight.abs().max()) > 0.03


def test_mlp_convolutions_are_truncated_normal(model: CGRSeg) -> None:
    for module in model.backbone.modules():
        if hasattr(module, "fc1"):
            for layer in (module.fc1, module.fc2):
                assert abs(float(layer.weight.detach().std()) - 0.02) < 2e-3
                assert not layer.bias.any()


def test_fusion_convolutions_are_kaiming_normal_over_the_fan_out(model: CGRSeg) -> None:
    for fusion in model.decode_head.SIM:
        for branch in (fusion.fuse1, fusion.fuse2):
            expected = math.sqrt(2.0 / branch.conv.out_channels)
            assert abs(float(branch.conv.weight.detach().std()) / expected - 1) < 0.05


def test_batch_norms_start_as_identity(model: CGRSeg) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-5 and module.momentum == 0.1
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("name", "last"), [("cgrseg_t", 0.0), ("cgrseg_b", 0.02), ("cgrseg_l", 0.1)]
)
def test_stochastic_depth_rises_linearly_over_the_backbone(name: str, last: float) -> None:
    model = create_model(name)
    blocks = [b for stage in model.backbone.network[::2] for b in stage.children()]
    rates = [getattr(block.drop_path, "rate", 0.0) for block in blocks]
    expected = [last * i / (len(blocks) - 1) for i in range(len(blocks))]
    assert rates == pytest.approx(expected, abs=1e-12)
    assert not any(isinstance(m, DropPath) for m in model.decode_head.modules())


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(1)
    layer = DropPath(0.25).train()
    out = layer(torch.ones(4000, 2, 3))
    per_sample = out.flatten(1)
    assert torch.equal(per_sample.min(dim=1).values, per_sample.max(dim=1).values)
    values = per_sample[:, 0].unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.75]))
    assert abs(float(out.mean()) - 1.0) < 0.03
    assert torch.equal(layer.eval()(out), out)


def test_dropout_removes_whole_channels() -> None:
    dropout = create_model("cgrseg_t").decode_head.dropout
    assert isinstance(dropout, nn.Dropout2d) and dropout.p == 0.1
    torch.manual_seed(2)
    out = dropout.train()(torch.ones(50, 128, 2, 2)).flatten(2)
    assert torch.equal(out.min(dim=2).values, out.max(dim=2).values)
    assert abs(float((out[:, :, 0] == 0).float().mean()) - 0.1) < 0.02


def test_frozen_norms_stay_in_eval_mode_and_others_train() -> None:
    model = create_model("cgrseg_t", freeze_norm=True).train()
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    head = [m for m in model.decode_head.modules() if isinstance(m, nn.BatchNorm2d)]
    assert head and all(norm.training for norm in head)
    assert all(m.training for m in create_model("cgrseg_t").train().modules())


def test_a_frozen_backbone_does_not_train_and_the_head_does() -> None:
    model = create_model("cgrseg_t", num_classes=3, drop_path=0.5, freeze_backbone=True).train()
    assert model.options()["freeze_backbone"]
    assert not any(m.training for m in model.backbone.modules())
    assert all(m.training for m in model.decode_head.modules())
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.decode_head.parameters())
    after = model.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    groups = parameter_groups(model, OptimizerConfig())
    names = {name for group in groups for name in group["names"]}
    assert names == {name for name, _ in model.named_parameters() if name.startswith("decode_head")}
