"""Convert LabelMe files, as `cgrseg data convert labelme` does.

Usage: python tools/convert_datasets/labelme.py annotated data/mine --background other
"""

from __future__ import annotations

import sys
from pathlib import Path

# A checkout runs its own code, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cgrseg.cli.data_convert import convert_script

if __name__ == "__main__":
    sys.exit(convert_script("labelme"))
