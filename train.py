"""The older form of tools/train.py, with the same arguments."""

from __future__ import annotations

import sys

from cgrseg.training.train_script import main

if __name__ == "__main__":
    sys.exit(main())
