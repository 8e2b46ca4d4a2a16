"""Twelve folders as people have them, as docs/labels_as_they_lie.md walks through them.

The page is run as it stands: every line that begins with `$` is typed, what follows it is compared
with what is printed (`...` stands for lines left out).  A command must stand in the output before
it, so that nobody needs more than what is printed.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tests.data.folders import TWELVE

from .conftest import Run
from .test_ten_folders import SMALL

FIRST = "cgrseg data check mine"


@pytest.fixture(scope="module")
def page(repository: Path) -> dict[str, list[str]]:
    """Title of each section to the lines of its console."""
    text = (repository / "docs" / "labels_as_they_lie.md").read_text(encoding="utf-8")
    found = re.findall(r"^## \d+\. (.*?)\n.*?```console\n(.*?)```", text, re.M | re.S)
    return {title: block.splitlines() for title, block in found}


def walk(run: Run, lines: list[str], train: bool) -> None:
    """Type the commands of a section, and compare what they print."""
    printed = f"    {FIRST}\n"
    for place, line in enumerate(lines):
        if not line.startswith("$ "):
            continue
        typed = line.removeprefix("$ ")
        after = [k for k in range(place + 1, len(lines)) if lines[k].startswith("$ ")]
        expected = lines[place + 1 : after[0] if after else len(lines)]
        if typed.startswith("printf "):
            _, text, _, name = shlex.split(typed)
            Path(name).write_text(text.replace("\\n", "\n"))
            assert "write a text file of lines" in printed
            continue
        proposed = typed.replace(" ready", " OUT").removesuffix(" --colors colors.txt")
        proposed = proposed.replace(" photos ", " IMAGES... ").replace("check OUT", "check ready")
        assert proposed in printed, f"{proposed!r} is not proposed by:\n{printed}"
        training = typed.startswith("cgrseg train ")
        if training and not train:
            return
        result = run(*shlex.split(typed)[1:], *(SMALL.split() if training else ()))
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert not training or result.exit_code == 0, result.output
        compare(expected, result.output)
        printed += result.output


def compare(expected: list[str], printed: str) -> None:
    lines = [plain(line) for line in printed.splitlines()]
    place = 0
    for line in map(plain, expected):
        if line != "...":
            assert line in lines[place:], f"{line!r} is not in:\n" + "\n".join(lines[place:])
            place = lines.index(line, place) + 1


def plain(line: str) -> str:
    """A line without the time that something took."""
    return re.sub(r"\d+\.\d s$", "0.0 s", line.rstrip())


def test_the_page_has_all_twelve(page: dict[str, list[str]]) -> None:
    assert list(page) == list(TWELVE)
    for lines in page.values():
        assert lines[0] == f"$ {FIRST}"
        assert any(line.startswith("$ cgrseg train ") for line in lines)


@pytest.mark.parametrize("name", TWELVE)
def test_what_is_printed_is_what_to_type(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: dict[str, list[str]], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    TWELVE[name](Path("mine"))
    walk(run, page[name], train=False)


@pytest.mark.parametrize("name", TWELVE)
def test_from_nothing_to_a_trained_network(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: dict[str, list[str]], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    TWELVE[name](Path("mine"))
    Path("photos").mkdir()
    image = next(p for p in sorted(Path("mine").rglob("*")) if p.suffix.lower() == ".jpg")
    Image.open(image).save("photos/new.jpg")
    walk(run, page[name], train=True)
    assert list(Path("predictions").rglob("new.png"))
