"""The fast form computes what the network and the published code compute."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cgrseg.errors import ConfigError
from cgrseg.inference.fast.backbone import StoredBias
from cgrseg.inference.fast.network import fast_form
from cgrseg.models import CGRSeg, create_model
from cgrseg.models.attention_bias import AttentionBias, offset_index
from tests.golden_weights import golden_input, set_golden_weights

FORMS = {"t": ("cgrseg_t", 5), "b5": ("cgrseg_b", 5), "b6": ("cgrseg_b", 6), "l": ("cgrseg_l", 5)}
CASES = [
    ("t", 512, 512),
    ("t", 512, 704),
    ("t", 352, 480),
    ("b5", 512, 512),
    ("b6", 512, 512),
    ("l", 512, 512),
    ("l", 384, 640),
]


@pytest.fixture(scope="module")
def networks() -> dict[str, CGRSeg]:
    built = {}
    for form, (name, blocks) in FORMS.items():
        built[form] = create_model(name, context_blocks=blocks).eval()
        set_golden_weights(built[form])
    return built


@pytest.fixture(scope="module")
def arrays(golden_dir: Path) -> Any:
    return np.load(golden_dir / "official.npz")


@pytest.fixture
def small() -> CGRSeg:
    model = create_model("cgrseg_t", num_classes=7).eval()
    set_golden_weights(model)
    return model


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


@pytest.mark.parametrize(("form", "height", "width"), CASES)
def test_equals_the_network_and_the_published_code(
    form: str, height: int, width: int, arrays: Any, networks: dict[str, CGRSeg]
) -> None:
    x = golden_input(f"input_{height}x{width}", (1, 3, height, width))
    with torch.inference_mode():
        expected = networks[form](x)
        found = fast_form(networks[form])(x)
    assert relative(found, expected) < 1e-5
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.9999
    stored = torch.from_numpy(arrays[f"{form}_{height}x{width}_logits"])
    assert relative(found[0, ::7, ::2, ::2], stored) < 1e-4


def test_a_batch_predicts_as_its_images_do(small: CGRSeg) -> None:
    fast = fast_form(small)
    x = golden_input("input_batch", (3, 3, 96, 64))
    with torch.inference_mode():
        together = fast(x)
        assert relative(together, small(x)) < 1e-5
        for number in range(3):
            assert relative(fast(x[number : number + 1]), together[number : number + 1]) < 1e-5


def test_is_a_snapshot_that_changes_nothing(small: CGRSeg) -> None:
    small.train()
    before = copy.deepcopy(small.state_dict())
    fast = fast_form(small)
    assert small.training and not fast.training
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())
    assert all(p.requires_grad for p in small.parameters())
    assert not any(p.requires_grad for p in fast.parameters())
    x = golden_input("input_64x64", (1, 3, 64, 64))
    with torch.inference_mode():
        first = fast(x)
        assert relative(first, small.eval()(x)) < 1e-5
    with torch.no_grad():
        for value in small.state_dict().values():
            value.zero_()
    with torch.inference_mode():
        assert torch.equal(fast(x), first)


def test_channels_last_and_contiguous_inputs_agree(small: CGRSeg) -> None:
    fast = fast_form(small)
    x = golden_input("input_64x96", (2, 3, 64, 96))
    with torch.inference_mode():
        found = fast(x.to(memory_format=torch.channels_last))
        assert relative(found, fast(x)) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_close_and_answers_in_float32(precision: Any) -> None:
    model = create_model("cgrseg_t").eval()
    set_golden_weights(model)
    x = golden_input("input_256x256", (1, 3, 256, 256))
    with torch.inference_mode():
        found, expected = fast_form(model, precision=precision)(x), model(x)
    assert found.dtype == torch.float32
    # bfloat16 carries 8 bits, so 4e-3 for a single rounding; float16 carries 11.
    assert relative(found, expected) < {"bf16": 2e-2, "fp16": 3e-3}[precision]
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.98


def test_last_product_stays_in_float32_through_casts(small: CGRSeg) -> None:
    fast = fast_form(small)
    weight = small.decode_head.conv_seg.weight.detach().flatten(1)
    for cast in (fast.half, fast.bfloat16, fast.float):
        cast()
        final = fast.head.guide.get_buffer("final_weight")
        assert final.dtype == torch.float32
        assert torch.equal(final, weight)


def test_sizes_in_turn_do_not_disturb_each_other(small: CGRSeg) -> None:
    fast = fast_form(small)
    with torch.inference_mode():
        for height, width in [(64, 64), (96, 64), (64, 64), (32, 128), (64, 96)]:
            x = golden_input(f"input_{height}x{width}", (1, 3, height, width))
            assert relative(fast(x), small(x)) < 1e-5


def test_unknown_precision_is_explained(small: CGRSeg) -> None:
    with pytest.raises(ConfigError, match="fp32, bf16 or fp16"):
        fast_form(small, precision="int8")  # type: ignore[arg-type]


def test_odd_sizes_of_the_smallest_map(small: CGRSeg) -> None:
    """160 pixels make 5 cells at stride 32 and 10 at stride 16: pooled windows overlap."""
    x = golden_input("input_160x96", (1, 3, 160, 96))
    with torch.inference_mode():
        assert relative(fast_form(small)(x), small(x)) < 1e-5


class TestStoredBias:
    table = torch.arange(16.0).view(1, 16)

    def test_mixes_heads_by_hand(self) -> None:
        table = torch.stack([torch.ones(4), torch.full((4,), 10.0)])
        mix = torch.tensor([[1.0, 2.0], [0.5, -1.0]])  # 1 + 2 * 10, 0.5 - 10
        found = StoredBias(table, 1, mix)(4, 4, torch.zeros(()))
        assert torch.equal(found[0], torch.full((4, 4), 21.0))
        assert torch.equal(found[1], torch.full((4, 4), -9.5))

    def test_equals_the_network_s_own_resizing(self) -> None:
        stored = StoredBias(self.table, 2, None)
        like = torch.zeros((), dtype=torch.float64)
        own = AttentionBias()(nn.Parameter(self.table, False), offset_index(4, 2), 6, 9, False)
        assert torch.equal(stored(6, 9, like), own.double())
        stored.prepare(6, 9, like)
        assert torch.equal(stored(6, 9, like), own.double())
        assert stored(6, 9, like) is stored(6, 9, like)

    def test_keeps_a_few_sizes_and_no_large_ones(self) -> None:
        stored = StoredBias(self.table, 1, None)
        like = torch.zeros(())
        for keys in range(1, 20):
            stored.prepare(4, keys, like)
        assert [name for name, _ in stored.named_buffers()] == [
            f"bias_4x{keys}" for keys in range(12, 20)
        ]
        stored.prepare(4096, 4097, like)  # 64 MiB and a little
        assert "bias_4096x4097" not in dict(stored.named_buffers())

    def test_is_no_part_of_the_state(self) -> None:
        stored = StoredBias(self.table, 1, None)
        stored.prepare(4, 4, torch.zeros(()))
        assert not stored.state_dict()
