"""Evaluate: `python tools/test.py CONFIG CHECKPOINT --eval mIoU`; `--help` lists the flags."""

from __future__ import annotations

import sys
from pathlib import Path

# A checkout runs its own code, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cgrseg.evaluation.eval_script import main

if __name__ == "__main__":
    sys.exit(main())
