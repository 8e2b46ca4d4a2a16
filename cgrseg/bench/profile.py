"""Profile of the compiled network: its largest costs, and the shortest possible time.

The network is compiled once more with instrumented kernels; times are the medians of several
forward passes.  The floor of a convolution or matrix product is its time at the device's measured
peaks: the longer of computing (operations over the peak of a matrix product) and moving (bytes of
input, weights and output over the bandwidth of a copy).  Data in a cache moves faster than that,
so a floor for moving can be beaten; the one for computing cannot.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch._inductor import config as inductor
from torch.profiler import ProfilerActivity, profile

from cgrseg.bench.machine import Peaks
from cgrseg.inference.fast.network import fast_form
from cgrseg.models import CGRSeg
from cgrseg.precision import Precision

_PASSES = 10
_SHORTEST = 1e-7  # seconds; shorter events are artifacts of the profiler
# Events that are added up as the time between kernels.
_OVERHEAD = ("## Call", "TorchDynamo", "Torch-Compiled", "aten::empty", "aten::resize_")


@dataclass(frozen=True)
class Cost:
    """Kernels of one kind and shape, all of their calls in one forward pass.

    Attributes:
        name: operation and shapes.
        calls: number of calls per forward pass.
        seconds: time of all calls together.
        operations: multiplications and additions; 0 where not counted.
        moved: bytes of inputs, weights and outputs; 0 where not counted.
        floor: seconds at the device's peaks; None where not counted.
    """

    name: str
    calls: int
    seconds: float
    operations: int
    moved: int
    floor: float | None


@dataclass(frozen=True)
class Profile:
    """Times of a forward pass.

    Attributes:
        costs: all costs, largest first.
        seconds: sum of all costs.
        operations: sum of the counted operations.
        moved: sum of the counted bytes.
        compute_floor: seconds for the operations at the peak.
        moving_floor: seconds for the bytes at the measured bandwidth.
    """

    costs: tuple[Cost, ...]
    seconds: float
    operations: int
    moved: int
    compute_floor: float
    moving_floor: float


def profile_network(
    model: CGRSeg, size: tuple[int, int], precision: Precision, peaks: Peaks
) -> Profile:
    """Profile the compiled network on the CPU, one image.

    Args:
        model: read, never changed.
        size: height and width in pixels, multiples of 32.
        precision: "fp32" or "bf16", one of those in `peaks`.
        peaks: peaks of the CPU.
    """
    # The profiler reports its own starts and stops on standard error below this level.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    network = fast_form(model, precision=precision)
    network.prepare(*size)
    example = torch.zeros(1, model.in_channels, *size).to(memory_format=torch.channels_last)
    compiled = torch.compile(network, fullgraph=True, dynamic=False)
    passes = []
    # Freezing has to be known while the graph is recorded, so it cannot be an option above.
    instrumented = inductor.patch({"freezing": True, "cpp.enable_kernel_profile": True})
    with torch.inference_mode(), instrumented:
        for _ in range(3):
            compiled(example)
        for _ in range(_PASSES):
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
                compiled(example)
            passes.append(list(recorded.events()))
    return summarize(passes, precision, peaks)


def summarize(passes: list[list[Any]], precision: Precision, peaks: Peaks) -> Profile:
    """Events of several equal forward passes as costs.

    Args:
        passes: the profiler's events of each pass.
        precision: precision of the operations.
        peaks: peaks of the device.
    """
    times: dict[str, list[float]] = defaultdict(list)
    facts: dict[str, tuple[int, int, int]] = {}
    item = 4 if precision == "fp32" else 2
    for events in passes:
        spent: dict[str, float] = defaultdict(float)
        calls: dict[str, int] = defaultdict(int)
        work: dict[str, tuple[int, int]] = {}
        for event in events:
            name, operations, moved = _describe(event, item)
            spent[name] += event.self_cpu_time_total * 1e-6
            calls[name] += 1
            work[name] = (operations, moved)
        for name, seconds in spent.items():
            times[name].append(seconds)
            facts[name] = (calls[name], *work[name])
    peak = peaks.flops["fp32" if precision == "fp32" else "bf16"]
    costs = []
    for name, values in times.items():
        count, operations, moved = facts[name]
        floor = max(operations / peak, moved / peaks.bandwidth) * count if moved else None
        costs.append(
            Cost(name, count, statistics.median(values), operations * count, moved * count, floor)
        )
    costs = [cost for cost in costs if cost.seconds > _SHORTEST]
    costs.sort(key=lambda cost: -cost.seconds)
    operations, moved = sum(c.operations for c in costs), sum(c.moved for c in costs)
    return Profile(
        tuple(costs),
        sum(cost.seconds for cost in costs),
        operations,
        moved,
        operations / peak,
        moved / peaks.bandwidth,
    )


def _describe(event: Any, item: int) -> tuple[str, int, int]:
    """Name, operations and bytes moved of one call.

    Args:
        event: event of the profiler, with shapes.
        item: bytes per number.
    """
    name: str = event.name
    shapes = [tuple(shape) for shape in event.input_shapes or ()]
    maps = [shape for shape in shapes if len(shape) == 4]
    if "_convolution_pointwise" in name and len(maps) >= 2:
        # With a sum: (sum, input, weight) in place, told by the underscore, else (input, sum,
        # weight).
        added = len(maps) >= 3
        source = maps[1] if name.endswith("_") else maps[0]
        weight = maps[2] if added else maps[1]
        stride = _stride(event)
        images, channels, height, width = source
        outputs, per_group, rows, columns = weight
        cells = images * -(-height // stride) * -(-width // stride)
        kind = "depthwise" if per_group == 1 and channels > 1 else "convolution"
        text = f"{kind} {rows}x{columns}, {channels} to {outputs}, {height}x{width}"
        text += f" stride {stride}" * (stride > 1) + " + sum" * added
        numbers = prod(source) + prod(weight) + cells * outputs * (2 if added else 1)
        return text, 2 * cells * outputs * per_group * rows * columns, numbers * item
    products = [shape for shape in shapes if len(shape) in (2, 3)][:2]  # a third is the result
    if name in ("aten::bmm", "aten::mm") and len(products) == 2:
        left, right = products
        result = prod(left[:-1]) * right[-1]
        text = f"product {'x'.join(map(str, left))} by {'x'.join(map(str, right))}"
        return text, 2 * result * left[-1], (prod(left) + prod(right) + result) * item
    if name.startswith(_OVERHEAD):
        return "between kernels", 0, 0
    if "cpp_fused" in name:
        return f"fused: {name.partition('cpp_fused_')[2]}", 0, 0
    return name, 0, 0


def _stride(event: Any) -> int:
    """Stride of a convolution call; 1 where the profiler does not give it."""
    values = [v for v in (getattr(event, "concrete_inputs", None) or ()) if isinstance(v, list)]
    pairs = [v for v in values if len(v) == 2 and all(isinstance(i, int) for i in v)]
    # Arguments come as padding, stride, dilation.
    return int(pairs[1][0]) if len(pairs) > 1 else 1
