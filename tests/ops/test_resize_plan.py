"""The taps of one axis, by hand and against PyTorch's own resize."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrseg.ops.resize_plan import AxisPlan
from cgrseg.ops.windows import tensor_plan as axis_plan


def matrix(plan: AxisPlan[torch.Tensor], inputs: int) -> torch.Tensor:
    """The map as its taps tell it: (P, inputs)."""
    dense = plan.weights.new_zeros(plan.length, inputs)
    return dense.scatter_add_(1, plan.taps, plan.weights)


def grouped_matrix(plan: AxisPlan[torch.Tensor], inputs: int) -> torch.Tensor:
    """The map as the groups tell it: (P, inputs)."""
    groups, places, taps = plan.group_weights.shape
    dense = torch.zeros(groups, places, inputs, dtype=torch.float64)
    dense.scatter_add_(2, plan.group_taps[:, None].expand(groups, places, taps), plan.group_weights)
    return dense.flatten(0, 1)[plan.place_of]


def resize_of_identity(source: int, steps: list[int], kept: int | None) -> torch.Tensor:
    """PyTorch's matrix (target, source) of the same resizes, in float64."""
    rows = torch.eye(source, dtype=torch.float64)[None]
    for number, size in enumerate(steps):
        rows = F.interpolate(rows, size=size, mode="linear", align_corners=False)
        if number == 0 and kept is not None:
            rows = rows[..., :kept]
    return rows[0].T


def test_doubling_by_hand():
    # Output centres at -0.25, 0.25, 0.75, 1.25 of the inputs' axis; the ends are clamped.
    expected = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], dtype=torch.float64)
    assert torch.equal(matrix(axis_plan(2, 4), 2), expected)


def test_halving_by_hand():
    # Centres at 0.5 and 2.5: each output is the mean of two neighbours.
    expected = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], dtype=torch.float64)
    assert torch.equal(matrix(axis_plan(4, 2), 4), expected)


def test_two_steps_by_hand():
    # 2 -> 4 as above.  Of 4 -> 1 the centre is the mean of the middle two; with the last of the
    # four cut off first, 3 -> 1 is the second of them.
    whole = matrix(axis_plan(2, 1, between=4), 2)
    cropped = matrix(axis_plan(2, 1, between=4, kept=3), 2)
    assert torch.equal(whole, torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    assert torch.equal(cropped, torch.tensor([[0.75, 0.25]], dtype=torch.float64))


def group_of(plan):
    """Group of each output."""
    return plan.place_of // plan.group_outputs.shape[1]


def test_equal_size_is_the_identity():
    plan = axis_plan(7, 7)
    assert plan.taps.shape == (7, 1)
    assert torch.equal(matrix(plan, 7), torch.eye(7, dtype=torch.float64))


def test_cells_of_a_whole_scale_are_full():
    """8x: 63 groups of 8 between two inputs, and a half one at either end."""
    plan = axis_plan(64, 512)
    assert plan.group_outputs.shape == (65, 8)
    sizes = torch.bincount(group_of(plan))
    assert sizes.tolist() == [4, *[8] * 63, 4]


@settings(deadline=None, max_examples=150)
@given(
    source=st.integers(1, 70),
    target=st.integers(1, 200),
    between=st.none() | st.integers(1, 200),
    cut=st.floats(0, 1),
)
def test_equals_pytorch(source, target, between, cut):
    kept = None if between is None else max(1, round(cut * between))
    plan = axis_plan(source, target, between=between, kept=kept)
    steps = [target] if between is None else [between, target]
    expected = resize_of_identity(source, steps, kept)
    assert torch.allclose(matrix(plan, source), expected, rtol=0, atol=1e-12)
    assert torch.allclose(grouped_matrix(plan, source), expected, rtol=0, atol=1e-12)
    assert torch.equal(plan.group_outputs.flatten()[plan.place_of], torch.arange(target))
    assert (plan.weights >= 0).all() and (plan.group_weights >= 0).all()


def test_wide_gaps_are_split():
    """1 -> 40: no group of more than 16 places, each output still in one group."""
    plan = axis_plan(1, 40)
    assert torch.bincount(group_of(plan)).tolist() == [16, 16, 8]


@pytest.mark.parametrize("source", [1, 3])
def test_short_groups_repeat_their_last_output(source):
    plan = axis_plan(source, 13)
    for group, outputs in enumerate(plan.group_outputs):
        members = torch.nonzero(group_of(plan) == group).flatten()
        padding = members[-1:].expand(len(outputs) - len(members))
        assert torch.equal(outputs, torch.cat([members, padding]))
