"""Write the table of settings in docs/configuration.md afresh from the schema."""

from __future__ import annotations

from pathlib import Path

from cgrseg.config.reference import markdown_reference
from cgrseg.files import atomic_write_text

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
BEGIN = "<!-- reference: begin -->\n"
END = "<!-- reference: end -->"


def main() -> None:
    """Replace what stands between the two markers."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{DOCUMENT}: the markers of the reference are not there")
    atomic_write_text(DOCUMENT, f"{before}{begin}\n{markdown_reference()}\n{end}{after}")
    print(f"{DOCUMENT}: up to date")


if __name__ == "__main__":
    main()
