"""`python -m cgrseg`: the same as the command `cgrseg`."""

from __future__ import annotations

from cgrseg.processes import ending_by_signals, quick_imports


def main() -> None:
    """Run the command line; signals are answered while it is imported, too."""
    with ending_by_signals():
        with quick_imports():
            from cgrseg.cli.main import main as run

        run()


if __name__ == "__main__":
    main()
