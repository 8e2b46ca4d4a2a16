"""The older form of tools/test.py, with the same arguments."""

from __future__ import annotations

import sys

from cgrseg.evaluation.eval_script import main

if __name__ == "__main__":
    sys.exit(main())
