"""`python -m cgrseg`: the same as the command `cgrseg`."""

from __future__ import annotations

from cgrseg.cli.main import main

if __name__ == "__main__":
    main()
