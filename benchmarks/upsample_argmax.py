"""Labels from low-resolution logits: the fused way beside the plain one, in one run.

Maps: real label maps at 512x512 (what nobody labelled counts as class 0), averaged to 1/8,
smoothed, times 10, plus Gaussian noise of 0.3 (`realistic`); the same with noise of 1 (`rough`);
Gaussian noise alone (`noise`).
Resizes: 64x64 to 512x512 in one step, and the test path's two steps (512x512, then 427x500).
Memory layouts: as a convolution leaves them by default (`nchw`) and in channels-last.

    python benchmarks/upsample_argmax.py --labels data/ade/ADEChallengeData2016/annotations
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from ops_timing import cells, check, compare, introduce, keep, machine, parser, say, take_turns

from cgrseg.ops import upsample_argmax, upsample_argmax_reference, upsample_confidence

CLASSES, LOW, HIGH = 150, 64, 512
ONE_STEP = {"size": (HIGH, HIGH)}
TWO_STEPS = {"size": (427, 500), "input_size": (HIGH, HIGH)}


def logits_from_labels(path: Path, noise: float, seed: int) -> torch.Tensor:
    """Float32 (1, 150, 64, 64) from a label PNG whose ids 1..150 are the classes."""
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if label is None or label.ndim != 2 or label.max() > CLASSES:
        raise SystemExit(f"{path}: expected a label PNG with ids 0..{CLASSES}")
    scale = HIGH / min(label.shape)
    label = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    label = np.maximum(label[:HIGH, :HIGH], 1) - 1
    share = np.zeros((CLASSES, LOW, LOW), np.float32)
    for index in np.unique(label):
        mask = (label == index).astype(np.float32)
        small = cv2.resize(mask, (LOW, LOW), interpolation=cv2.INTER_AREA)
        share[index] = cv2.GaussianBlur(small, (0, 0), 0.8)
    generator = np.random.default_rng(seed)
    values = 10 * share + noise * generator.standard_normal((CLASSES, LOW, LOW))
    return torch.from_numpy(values.astype(np.float32))[None]


def plain_confidence(logits: torch.Tensor, size: tuple[int, int]) -> object:
    """Labels and winning probability by the definition."""
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return full.softmax(dim=1).max(dim=1)


def agreement(logits: torch.Tensor, options: dict[str, tuple[int, int]]) -> float:
    """Share of pixels labelled as in float64."""
    exact = upsample_argmax_reference(logits.double(), **options)
    return float((upsample_argmax(logits, **options) == exact).double().mean())


def main() -> None:
    """Measure and print."""
    options = parser(__doc__.split("\n\n")[0], rounds=15)
    beside = Path(__file__).resolve().parents[2] / "shared/data/ade20k_samples/annotations"
    options.add_argument("--labels", type=Path, default=beside, help="folder with ADE20K labels")
    options.add_argument("--maps", type=int, default=5, help="how many label maps")
    arguments = options.parse_args()
    check(arguments)
    files = sorted(arguments.labels.rglob("*.png"))[: arguments.maps]
    if not files:
        raise SystemExit(f"{arguments.labels}: no label PNGs; pass --labels FOLDER")
    maps = {
        f"{name} {number}": logits_from_labels(file, noise, seed=number)
        for name, noise in (("realistic", 0.3), ("rough", 1.0))
        for number, file in enumerate(files)
    }
    maps["noise"] = torch.randn(1, CLASSES, LOW, LOW, generator=torch.Generator().manual_seed(0))
    layouts = {"nchw": torch.contiguous_format, "channels-last": torch.channels_last}
    about = machine(arguments)
    introduce(about)
    say("| map | layout | resize | plain, ms | fused, ms | times faster | equal to float64 |")
    say("|---|---|---|---|---|---|---|")
    rows = []
    for name, values in maps.items():
        for layout, memory_format in layouts.items():
            logits = values.contiguous(memory_format=memory_format)
            for resize, steps in (("one step", ONE_STEP), ("two steps", TWO_STEPS)):
                times = take_turns(
                    {
                        "plain": lambda x=logits, s=steps: upsample_argmax_reference(x, **s),
                        "fused": lambda x=logits, s=steps: upsample_argmax(x, **s),
                    },
                    arguments.rounds,
                    arguments.clock,
                )
                result = compare(times, "plain")
                equal = agreement(logits, steps)
                rows.append(
                    {"map": name, "layout": layout, "resize": resize, "equal": equal, **result}
                )
                say(
                    f"| {name} | {layout} | {resize} | {result['plain']['milliseconds']:.1f} | "
                    f"{cells(result['fused'])} | {100 * equal:.4f} % |"
                )
    logits = maps["realistic 0"]
    times = take_turns(
        {
            "plain": lambda: plain_confidence(logits, (HIGH, HIGH)),
            "fused": lambda: upsample_confidence(logits, (HIGH, HIGH)),
        },
        arguments.rounds,
        arguments.clock,
    )
    result = compare(times, "plain")
    rows.append({"map": "realistic 0, with confidence", "layout": "nchw", **result})
    say(
        f"| realistic 0, with confidence | nchw | one step | "
        f"{result['plain']['milliseconds']:.1f} | {cells(result['fused'])} | |"
    )
    keep({"machine": about, "rows": rows}, arguments.json)


if __name__ == "__main__":
    main()
