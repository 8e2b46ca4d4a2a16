"""The training loss of low-resolution logits: the fused way beside the plain one, in one run.

Upsampling and cross-entropy, forward and backward, of batches at 512x512 with 150 classes and
logits at 1/8.  Time: both in turns.  Memory: each in a process of its own, how far the peak
lies above what was held before (arguments in memory, kernels warmed up on a small case).

    python benchmarks/upsample_cross_entropy.py --batch 4
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ops_timing import cells, check, compare, introduce, keep, machine, parser, say, take_turns

from cgrseg.ops import upsample_cross_entropy, upsample_cross_entropy_reference

CLASSES = 150
CONTESTANTS: dict[str, Callable[..., torch.Tensor]] = {
    "plain": upsample_cross_entropy_reference,
    "fused": upsample_cross_entropy,
}
CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, channels-last": {"channels_last": True},
    "bfloat16 logits": {"dtype": torch.bfloat16},
    "class weights, smoothing 0.1": {"weighted": True},
}


def make(
    batch: int,
    size: int,
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    weighted: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Logits, labels (a tenth ignored) and options of the loss."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, CLASSES, size // 8, size // 8, generator=generator)
    logits = logits.to(dtype)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, CLASSES, (batch, size, size), generator=generator)
    target[:, : size // 10] = 255
    options: dict[str, Any] = {}
    if weighted:
        weight = torch.rand(CLASSES, generator=generator) + 0.5
        options = {"weight": weight, "label_smoothing": 0.1, "average": "valid"}
    return logits.requires_grad_(), target, options


def step(name: str, data: tuple[torch.Tensor, torch.Tensor, dict[str, Any]]) -> torch.Tensor:
    """Forward and backward; the gradient of the logits."""
    logits, target, options = data
    logits.grad = None
    CONTESTANTS[name](logits, target, **options).backward()
    assert logits.grad is not None
    return logits.grad


def peak(name: str, arguments: argparse.Namespace) -> None:
    """Print by how many bytes one step raises the peak of this process."""
    import resource

    step(name, make(1, 64))
    data = make(arguments.batch, arguments.size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(name, data)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps((after - before) * unit))


def peak_elsewhere(name: str, arguments: argparse.Namespace) -> int:
    """The same, measured in a fresh process."""
    command = [sys.executable, __file__, "--peak-of", name]
    for option in ("batch", "size", "threads"):
        command += [f"--{option}", str(getattr(arguments, option))]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path.cwd())
    return int(json.loads(found.stdout))


def main() -> None:
    """Measure and print."""
    options = parser(__doc__.split("\n\n")[0], rounds=7)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--size", type=int, default=512, help="side of the labels in pixels")
    options.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options.add_argument("--peak-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    check(arguments)
    if arguments.peak_of:
        peak(arguments.peak_of, arguments)
        return
    about = machine(arguments)
    introduce(about)
    # Memory first, while this process is small: a child's peak starts from its parent's.
    memory = {name: peak_elsewhere(name, arguments) for name in CONTESTANTS}
    say("| extra peak memory, float32 | MB | share of plain |\n|---|---|---|")
    for name, extra in memory.items():
        say(f"| {name} | {extra / 1e6:.0f} | {100 * extra / memory['plain']:.1f} % |")
    say("\n| case | plain, ms | fused, ms | times faster | gradient differs by |")
    say("|---|---|---|---|---|")
    rows = []
    for case in arguments.cases:
        data = make(arguments.batch, arguments.size, **CASES[case])
        times = take_turns(
            {name: lambda n=name, d=data: step(n, d) for name in CONTESTANTS},
            arguments.rounds,
            arguments.clock,
        )
        plain, fused = (step(name, data).double() for name in CONTESTANTS)
        difference = float((plain - fused).abs().max() / plain.abs().max())
        result = compare(times, "plain")
        rows.append({"case": case, "difference": difference, **result})
        say(
            f"| {case} | {result['plain']['milliseconds']:.0f} | {cells(result['fused'])} | "
            f"{difference:.1e} |"
        )
    figures = {
        "machine": about,
        "batch": arguments.batch,
        "size": arguments.size,
        "rows": rows,
        "extra_peak_bytes": memory,
    }
    keep(figures, arguments.json)


if __name__ == "__main__":
    main()
