"""Write the tables of options and commands in docs/commands.md afresh from the command line."""

from __future__ import annotations

from pathlib import Path

from cgrseg.cli.reference import markdown_commands
from cgrseg.files import atomic_write_text

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
BEGIN = "<!-- reference: begin -->\n"
END = "<!-- reference: end -->"


def main() -> None:
    """Replace what stands between the two markers."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{DOCUMENT}: the markers of the reference are not there")
    atomic_write_text(DOCUMENT, f"{before}{begin}\n{markdown_commands()}\n{end}{after}")
    print(f"{DOCUMENT}: up to date")


if __name__ == "__main__":
    main()
