"""Convert the raw COCO-Stuff-10k download, as `cgrseg data convert coco-stuff10k` does.

Usage: python tools/convert_datasets/coco_stuff10k.py data/coco_stuff10k --nproc 8
"""

from __future__ import annotations

import sys
from pathlib import Path

# A checkout runs its own code, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cgrseg.cli.data_convert import convert_script

if __name__ == "__main__":
    sys.exit(convert_script("coco-stuff10k"))
