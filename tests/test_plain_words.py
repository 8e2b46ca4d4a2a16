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
from cgrseg.evaluation import eval_script as test_script
from cgrseg.training import single_gpu, train_script
from tests.remedies import texts

BRITISH = (
    r"\w*colour\w*|greys?|greyscale|centre\w*|"
    r"behaviours?|artefacts?|licence\w*|mould\w*|metres?|programmes?|dialogues|"
    r"neighbour\w*|favour\w*|honour\w*|labell\w+|cancell(?:ed|ing)|modell\w+|travell\w+|analys(?:e|ed|es|ing)|maths|"
    r"\w*(?:normal|optim|quant|initial|synchron|recogn|organ|serial|minim|maxim|visual|random|util|"
    r"summar|custom|categor|general|special|real|regular|parallel|final|equal|vector|memor|character|"
    r"local|penal|prior|emphas|stabil|factor|binar|discret|author|token|standard|central|rational)"
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
    r"run's folders?": "run folder",
}
"""Pattern to the wording that replaces it."""

OPENINGS = re.compile(r"(?:Of|So many|For one|Them|Those|These|This|That|It|Its|They|Such|Ones?)\b")
"""Beginnings of descriptions that lack their noun."""

INDIRECT = re.compile(r"(?:^|[.!?:;] )(?:Of|So many|Of them|For one) ")
"""Beginnings of sentences that lack their noun, wherever the sentence stands."""

ALLOWED = {
    "class centres",  # a row of `cgrseg info --json`
    "--no-pictures",  # a flag of `cgrseg report`
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
    found += [f"{start[0]!r}: say the noun first" for start in INDIRECT.finditer(text)]
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
    """Lines of a Markdown document without code and addresses; directives hold prose."""
    fence = ""
    for number, line in enumerate(document.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fence = "" if fence else line.strip()
        elif not fence or (fence.startswith("```{") and not fence.startswith("```{code")):
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


def test_glossary_has_each_term_once_in_order(repository: Path) -> None:
    lines = (repository / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    body = lines[lines.index("```{glossary}") + 1 : -1]
    terms = [line for line in body if line and not line.startswith(" ")]
    assert 30 <= len(terms) <= 50
    assert terms == sorted(set(terms), key=str.casefold)
    named = re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", "\n".join(body))
    assert len(named) > 5 and set(named) <= set(terms)


PLANTED = (
    *("Normalise it.", "The colour.", "A greyscale image.", "Label centres.", "The behaviour."),
    *("Artefacts.", "A licence.", "Neighbours.", "Labelled pixels.", "Cancelled.", "Analysed."),
    *("A photo.", "Pictures.", "A map of labels.", "The loss is no number.", "Told by count."),
    *(
        "They look alike.",
        "Two groups of parameters.",
        "Points of mIoU.",
        "Sure of itself.",
        "A run's folder.",
    ),
    *("Of them, at most 4.", "The images. So many are read.", "Limits: For one image 4 MB."),
)
"""Texts with one fault each."""


@pytest.mark.parametrize("text", PLANTED)
def test_each_form_is_found(text: str) -> None:
    assert len(faults(text)) == 1


def test_no_rule_is_without_a_planted_text() -> None:
    patterns = [*_RULED_OUT, _WORD, INDIRECT]
    assert [each.pattern for each in patterns if not any(map(each.search, PLANTED))] == []


@pytest.mark.parametrize(
    "text",
    [
        "Of the CPU.",
        "So many at most.",
        "Them too.",
        "It is read.",
        "Those of the config.",
        "Ones.",
    ],
)
def test_openings_without_a_noun_are_found(text: str) -> None:
    assert OPENINGS.match(text)


def test_prose_of_directives_is_read_and_code_is_not() -> None:
    page = "a\n```python\ncolour\n```\n```{glossary}\nterm\n    grey `colour`\n```\nb"
    assert [line.split() for _, line in prose(page)] == [["a"], ["term"], ["grey"], ["b"]]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Normalise the colours of photos.", 3),
        ("The loss is no number.", 1),
        ("Normalize the colors of images; cgrseg report --no-pictures leaves them out.", 0),
        ("A class of its own. Offsets of the map; for one image.", 0),
        ("A precise, initial exercise with four colored labels.", 0),
    ],
)
def test_what_is_ruled_out(text: str, wrong: int) -> None:
    assert len(faults(text)) == wrong
