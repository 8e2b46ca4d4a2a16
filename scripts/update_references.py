"""Write the generated parts of docs/configuration.md and docs/commands.md again."""

from __future__ import annotations

from pathlib import Path

from cgrseg.cli.reference import markdown_commands
from cgrseg.config.reference import markdown_reference
from cgrseg.files import atomic_write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN = "<!-- reference: begin -->\n"
END = "<!-- reference: end -->"


def main() -> None:
    """Replace what stands between the two markers of each page."""
    update(DOCS / "configuration.md", markdown_reference())
    update(DOCS / "commands.md", markdown_commands())


def update(page: Path, reference: str) -> None:
    """Replace the reference of one page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page}: the markers of the reference are missing")
    atomic_write_text(page, f"{before}{begin}\n{reference}\n{end}{after}")
    print(f"{page}: up to date")


if __name__ == "__main__":
    main()
