"""The network computes what the published code computes (tests/golden/official.*)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgrseg.models import CGRSeg, create_model
from tests.golden_weights import golden_input, set_golden_weights

FORMS: dict[str, tuple[str, int]] = {
    "t": ("cgrseg_t", 5),
    "b5": ("cgrseg_b", 5),
    "b6": ("cgrseg_b", 6),
    "l": ("cgrseg_l", 5),
}
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
def official(golden_dir: Path) -> dict[str, Any]:
    return json.loads((golden_dir / "official.json").read_text())


@pytest.fixture(scope="module")
def arrays(golden_dir: Path) -> Any:
    return np.load(golden_dir / "official.npz")


@pytest.fixture(scope="module")
def networks() -> dict[str, CGRSeg]:
    built = {}
    for form, (name, blocks) in FORMS.items():
        built[form] = create_model(name, context_blocks=blocks)
        set_golden_weights(built[form])
    return built


def relative(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours.numpy() - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("form", FORMS)
def test_names_shapes_and_types_of_the_state_dict(
    form: str, official: dict[str, Any], networks: dict[str, CGRSeg]
) -> None:
    ours = {
        name: [list(value.shape), str(value.dtype).removeprefix("torch.")]
        for name, value in networks[form].state_dict().items()
    }
    assert ours == official[form]["state_dict"]
    parameters = sum(p.numel() for p in networks[form].parameters())
    backbone = sum(p.numel() for p in networks[form].backbone.parameters())
    assert parameters == official[form]["parameters"]
    assert backbone == official[form]["backbone_parameters"]


@pytest.mark.parametrize(("form", "height", "width"), CASES)
def test_features_and_logits(
    form: str, height: int, width: int, arrays: Any, networks: dict[str, CGRSeg]
) -> None:
    model = networks[form].eval()
    x = golden_input(f"input_{height}x{width}", (1, 3, height, width))
    with torch.inference_mode():
        features, logits = model.backbone(x), model(x)
    case = f"{form}_{height}x{width}"
    for stage, feature in enumerate(features):
        assert relative(feature[0, ::8, ::8, ::8], arrays[f"{case}_stage{stage}"]) < 1e-4
    assert logits.shape == (1, 150, height // 8, width // 8)
    assert relative(logits[0, ::7, ::2, ::2], arrays[f"{case}_logits"]) < 1e-4


def test_every_golden_case_is_covered(arrays: Any) -> None:
    stored = {name.removesuffix("_logits") for name in arrays if name.endswith("_logits")}
    assert stored - {"train"} == {f"{form}_{height}x{width}" for form, height, width in CASES}


def test_initial_prediction_shares_the_classifier(networks: dict[str, CGRSeg]) -> None:
    model = networks["t"].eval()
    x = golden_input("input_64x96", (1, 3, 64, 96))
    with torch.no_grad():
        logits, initial = model.forward_with_initial(x)
        captured: list[torch.Tensor] = []
        handle = model.decode_head.linear_fuse.register_forward_hook(
            lambda module, inputs, output: captured.append(output)
        )
        assert torch.equal(model(x), logits)
        handle.remove()
        assert torch.equal(model.decode_head.conv_seg(captured[0]), initial)
    assert not torch.equal(logits, initial)


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((1, 3, 100, 64), torch.float32, "100x64"),
        ((1, 4, 64, 64), torch.float32, "(1, 4, 64, 64)"),
        ((3, 64, 64), torch.float32, "batch axis"),
        ((1, 3, 64, 64), torch.uint8, "torch.uint8"),
        ((1, 3, 0, 64), torch.float32, "0x64"),
    ],
)
def test_unusable_input_is_explained(
    shape: tuple[int, ...], dtype: torch.dtype, told: str, networks: dict[str, CGRSeg]
) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        networks["t"](torch.zeros(shape, dtype=dtype))
    assert told in str(caught.value)


def test_half_of_a_batch_predicts_as_the_batch_does(networks: dict[str, CGRSeg]) -> None:
    model = networks["t"].eval()
    x = golden_input("input_batch", (2, 3, 96, 64))
    with torch.inference_mode():
        together, alone = model(x), model(x[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_unknown_variant_and_wrong_class_list_are_explained() -> None:
    with pytest.raises(ValueError, match="cgrseg_t, cgrseg_b, cgrseg_l"):
        create_model("cgrseg_x")
    with pytest.raises(ValueError, match="got 2 entries, expected num_classes = 3"):
        create_model("cgrseg_t", 3, classes=["a", "b"])
