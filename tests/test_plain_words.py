"""Help texts, settings, messages and documents keep to plain technical English.

Descriptions begin with the noun or an imperative, use the field's terms and are spelled in
American English.  Code in documents and public names that must stay are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cgrseg.cli.reference import commands
from cgrseg.config import describe_fields
from cgrseg.evaluation import script as test_script
from cgrseg.training import single_gpu, train_script
from tests.remedies import texts

BRITISH = (
    r"\w*colour\w*|greys?|greyscale|centre\w*|"
    r"behaviours?|artefacts?|licence\w*|mould\w*|metres?|programmes?|dialogues|"
    r"neighbour\w*|favour\w*|honour\w*|labell\w+|cancell(?:ed|ing)|modell\w+|travell\w+|analys(?:e|ed|es|ing)|maths|"
    r"\w*(?:normal|optim|quant|initial|synchron|recogn|organ|serial|minim|maxim|visual|random|util|"
    r"summar|custom|categor|general|special|real|regular|parallel|final|equal|vector|memor)"
    r"is(?:e|ed|es|er|ers|ing|ation|ations)"
)
"""British spellings of words that this package uses or could use."""

RULED_OUT = {
    r"photos?|photographs?|pictures?": "image",
    r"maps? of labels|label images?": "label map",
    r"(?:is|are|was|were|be) no (?:finite )?numbers?": "non-finite, or not a number",
    r"told (?:by|from|apart)": "recognized by, read from",
    r"look(?:s|ed)? alike": "the difference that counts",
    r"groups of parameters": "parameter groups",
    r"statistical mode|points? of mIoU": "mIoU points",
    r"homely|sure of itself": "a term of the field",
}
"""Pattern to the wording that replaces it."""

OPENINGS = re.compile(r"(?:Of|So many|For one|Them|Those|These|It|They|Such|Ones?)\b")
"""Beginnings of descriptions that lack their noun."""

ALLOWED = {
    "augment.colour_only",  # a setting
    "colour_only",
    "--colours",  # a flag of older scripts
    "class centres",  # a row of `cgrseg info --json`
    "--no-pictures",
}
"""Public names that stay as they are."""

_WORD = re.compile(rf"\b(?:{BRITISH})\b", re.IGNORECASE)
_RULED_OUT = {
    re.compile(rf"\b(?:{words})\b", re.IGNORECASE): say for words, say in RULED_OUT.items()
}


def faults(text: str) -> list[str]:
    """Words of a text that are ruled out, each with its replacement; backticks hold names."""
    text = re.sub(r"`[^`]*`|\S+(?= is now )", "NAME", text)
    for name in sorted(ALLOWED, key=len, reverse=True):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "NAME", text)
    found = [f"{word[0]!r}: American spelling" for word in _WORD.finditer(text)]
    for pattern, replacement in _RULED_OUT.items():
        found += [f"{word[0]!r}: say {replacement}" for word in pattern.finditer(text)]
    return found


def descriptions() -> Iterator[tuple[str, str]]:
    """Where and what: help of every command, option, argument and flag, and every setting."""
    for name, command in commands():
        yield f"cgrseg {name}", (command.help or "").replace("\n", " ")
        for param in command.params:
            yield f"cgrseg {name} {param.name}", getattr(param, "help", None) or ""
    for script in (
        single_gpu.build_parser({}),
        train_script.build_parser(),
        test_script.build_parser(),
    ):
        for action in script._actions:
            help_text = str(action.help or "")
            yield f"{script.prog} {action.dest}", "" if help_text == "==SUPPRESS==" else help_text
    for field in describe_fields():
        yield field.path, field.description


def prose(document: str) -> Iterator[tuple[int, str]]:
    """Lines of a Markdown document without code, addresses and generated option tables."""
    fenced = False
    for number, line in enumerate(document.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>", " ", line)


def test_descriptions_begin_with_a_noun_or_an_imperative() -> None:
    every = list(descriptions())
    assert len(every) > 250
    assert [(where, text) for where, text in every if OPENINGS.match(text)] == []


def test_descriptions_use_the_words_of_the_field() -> None:
    wrong = [(where, faults(text)) for where, text in descriptions()]
    assert [each for each in wrong if each[1]] == []


def test_messages_use_the_words_of_the_field(repository: Path) -> None:
    """A text with a blank is prose; one without is a name, a key or a pattern."""
    said = [each for each in texts(repository / "cgrseg") if " " in each.words.strip()]
    assert len(said) > 1500
    wrong = [(f"{each.file}:{each.line}", faults(each.words)) for each in said]
    assert [each for each in wrong if each[1]] == []


def test_documents_use_the_words_of_the_field(repository: Path) -> None:
    pages = [*sorted((repository / "docs").glob("*.md")), repository / "README.md"]
    wrong = [
        (f"{page.name}:{number}", found)
        for page in pages
        for number, line in prose(page.read_text(encoding="utf-8"))
        if (found := faults(line))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Normalise the colours of photos.", 3),
        ("The loss is no number.", 1),
        ("Normalize the colors of images; augment.colour_only varies them.", 0),
        ("A precise, initial exercise with four colored labels.", 0),
    ],
)
def test_what_is_ruled_out(text: str, wrong: int) -> None:
    assert len(faults(text)) == wrong
