"""Speed and memory of prediction beside the published arithmetic, as in docs/speed.md.

The same measurement as `cgrseg bench`, whose options it takes; without any, it measures
what benchmarks/results/inference_cpu.md shows:

    python benchmarks/inference.py --out inference.json
"""

from __future__ import annotations

import sys

from cgrseg.cli.main import main

DEFAULTS = (
    "cgrseg_t",
    "cgrseg_b",
    "cgrseg_l",
    "--batch-size=1",
    "--batch-size=4",
    "--rounds=21",
    "--profile",
)

if __name__ == "__main__":
    given = sys.argv[1:]
    named = any(not argument.startswith("-") for argument in given[:1])
    sys.argv = ["cgrseg", "bench", *(() if named else DEFAULTS), *given]
    main()
