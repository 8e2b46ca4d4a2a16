"""Directive `error-messages`: all error messages of the package, grouped by its parts."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from docutils import nodes
from messages import HOLE, Message, collect
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import cgrseg

_TITLES = {
    "": "Machine, files and class names",
    "bench": "Speed measurements",
    "cli": "Command line",
    "config": "Settings",
    "data": "Images and labels",
    "datasets": "Datasets",
    "deploy": "Export and web page",
    "evaluation": "Evaluation",
    "formats": "Export formats",
    "inference": "Prediction",
    "models": "Networks and weights",
    "ops": "Fused operations",
    "reporting": "Reports",
    "training": "Training",
    "visual": "Charts and overlays",
}


class ErrorMessages(SphinxDirective):
    """A section for each part of the package, with a definition list of its messages."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        package = Path(cgrseg.__file__).parent
        for path in package.rglob("*.py"):
            self.env.note_dependency(str(path))
        sections: list[nodes.Node] = []
        for part, messages in groupby(sorted(collect(package), key=_order), key=_part):
            title = _TITLES.get(part, part)
            section = nodes.section("", nodes.title("", title), ids=[nodes.make_id(f"in-{title}")])
            section["names"] = [title.lower()]
            section += nodes.definition_list("", *(_entry(each) for each in messages))
            sections.append(section)
        return sections


def _part(message: Message) -> str:
    return message.file.rpartition("/")[0].partition("/")[0]


def _order(message: Message) -> tuple[str, str, int]:
    return _part(message), message.file, message.line


def _entry(message: Message) -> nodes.definition_list_item:
    title = message.found
    if len(message.where) == 1 and message.where[0] != HOLE:
        title = f"{message.where[0]}: {title}"
    definition = nodes.definition()
    for label, texts in (("Expected", message.expected), ("What to do", message.remedy)):
        words = (nodes.emphasis("", f"{label}: "), *_text(texts))
        definition += nodes.paragraph("", "", *words, support_smartquotes=False)
    kind = [nodes.literal("", message.kind), nodes.Text(", ")] if message.kind[0].isupper() else []
    definition += nodes.paragraph("", "", *kind, nodes.literal("", f"cgrseg/{message.file}"))
    # Quotes and the hyphens of options stay as the terminal shows them.
    term = nodes.term("", "", *_text((title,)), support_smartquotes=False)
    return nodes.definition_list_item("", term, definition)


def _text(alternatives: tuple[str, ...]) -> list[nodes.Node]:
    """Text in which words between backquotes are code."""
    if alternatives == (HOLE,):
        return [nodes.Text("as the message says")]
    pieces = " | ".join(alternatives).split("`")
    return [nodes.literal("", p) if i % 2 else nodes.Text(p) for i, p in enumerate(pieces) if p]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("error-messages", ErrorMessages)
    return {"parallel_read_safe": True}
