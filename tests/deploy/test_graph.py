"""The form that is exported computes what the network computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cgrseg.deploy.graph import ExportGraph, averaging_matrix
from cgrseg.deploy.verify import as_input, sample_images
from cgrseg.errors import ConfigError
from cgrseg.models import CGRSeg, create_model
from cgrseg.ops import upsample_argmax


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@given(cells=st.integers(1, 60), target=st.integers(1, 60))
def test_averaging_matrix_is_adaptive_pooling(cells: int, target: int) -> None:
    values = torch.randn(3, cells, generator=torch.Generator().manual_seed(cells))
    wanted = F.adaptive_avg_pool1d(values, target)
    found = values @ averaging_matrix(cells, target, values).T
    assert torch.allclose(found, wanted, atol=1e-6)


def test_averaging_matrix_by_hand() -> None:
    found = averaging_matrix(3, 2, torch.zeros(1))
    assert found.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]


@pytest.mark.parametrize("size", [(64, 96), (96, 160)])
def test_form_for_one_size(network: CGRSeg, size: tuple[int, int]) -> None:
    """At 96x160 the smallest map is 3x5, which pooling does not divide evenly."""
    batch = as_input(sample_images(2, size))
    assert relative(ExportGraph(network, size)(batch), network(batch)) < 1e-5


def test_form_for_any_size(network: CGRSeg) -> None:
    form = ExportGraph(network, None)
    for size in ((64, 64), (96, 160), (160, 96)):
        batch = as_input(sample_images(1, size))
        assert relative(form(batch), network(batch)) < 1e-5, size


def test_biases_by_true_offsets_need_a_size() -> None:
    model = create_model("cgrseg_t", 3, context_blocks=1, attention_bias="geometric")
    with pytest.raises(ConfigError, match="--size 512x512"):
        ExportGraph(model, None)


def test_pixels_are_normalised_inside(network: CGRSeg) -> None:
    pictures = sample_images(1, (64, 96))
    found = ExportGraph(network, (64, 96), takes="pixels")(torch.from_numpy(pictures))
    assert relative(found, network(as_input(pictures))) < 1e-5


def test_labels_at_the_input_size(network: CGRSeg) -> None:
    batch = as_input(sample_images(2, (64, 96)))
    found = ExportGraph(network, (64, 96), gives="labels")(batch)
    assert found.dtype == torch.uint8 and found.shape == (2, 64, 96)
    wanted = upsample_argmax(network(batch), (64, 96))
    assert len(wanted.unique()) > 1
    assert float((found.long() == wanted).float().mean()) > 0.999
