"""Convert Pascal Context, as `cgrseg data convert pascal-context` does.

Usage: python tools/convert_datasets/pascal_context.py data/VOCdevkit \
           data/VOCdevkit/VOC2010/trainval_merged.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# A checkout runs its own code, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cgrseg.cli.data_convert import convert_script


def choose_out(given: dict[str, Any]) -> None:
    """Put the result into the VOC2010 folder, unless --out-dir names another."""
    devkit = Path(given["devkit_path"])
    inner = devkit / "VOC2010"
    given["out"] = given["out"] or (inner if inner.is_dir() else devkit)


if __name__ == "__main__":
    first = {"devkit_path": "VOCdevkit, or the VOC2010 folder in it"}
    sys.exit(convert_script("pascal-context", first, choose_out))
