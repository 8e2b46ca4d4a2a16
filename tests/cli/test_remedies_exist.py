"""No message names an option, a setting, a command or an extra that does not exist there.

The texts are read from the source.  What a remedy leaves to a person (look at a file, free some
space, choose another name) cannot be held by a test; everything that can be typed is.
`test_remedies_help.py` provokes messages and does what they say.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from cgrseg.cli.reference import commands, option_uses
from cgrseg.config import load_config
from cgrseg.config.reference import flatten
from cgrseg.config.schema import Config, find_setting
from cgrseg.config.settings import NUM_CLASSES
from cgrseg.config.suggestions import MEANINGS
from cgrseg.errors import FrontEnd, option, speaking_as
from cgrseg.evaluation import eval_script
from cgrseg.extras import EXTRAS
from cgrseg.training import single_gpu, train_script
from tests.remedies import CONTEXTS, SCRIPTS, Text, spoken_options, texts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GROUPS = {"config", "data", "data convert"}


@pytest.fixture(scope="module")
def package(repository: Path) -> Path:
    return repository / "cgrseg"


@pytest.fixture(scope="module")
def said(package: Path) -> list[Text]:
    found = list(texts(package))
    assert len(found) > 3000
    return found


@pytest.fixture(scope="module")
def offered() -> dict[str, set[str]]:
    """Options of every command and script."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, _ in commands():
        found[name].add("--help")
    for use in option_uses():
        found[use.command] |= set(use.name.split("/"))
    found["run_cgrseg.py"] = set(single_gpu.build_parser({}).flags())
    found["tools/train.py"] = set(train_script.build_parser().flags())
    found["tools/test.py"] = set(eval_script.build_parser().flags())
    return found


def test_contexts_are_commands_and_places_that_exist(
    package: Path, offered: dict[str, set[str]]
) -> None:
    for place, where in CONTEXTS:
        assert (package / place).exists(), place
        assert set(where) <= set(offered), place


def test_every_option_that_is_named_exists_where_it_can_be_read(
    said: list[Text], offered: dict[str, set[str]]
) -> None:
    wrong, named = [], 0
    for text in said:
        for name, command in text.options:
            if re.search(r"\{--|\.oninput=", text.words):
                continue  # style sheets and scripts of pages
            places = (command,) if command is not None else text.context
            if command in GROUPS:
                places = tuple(each for each in offered if each.startswith(f"{command} "))
            lacking = [place for place in places if name not in offered.get(place, set())]
            if lacking or not places:
                wrong.append((text.file, text.line, name, lacking or "which command?"))
            named += 1
    assert wrong == []
    assert named > 30


def test_every_option_spelt_for_its_front_end_exists_there(
    package: Path, offered: dict[str, set[str]]
) -> None:
    spoken = list(spoken_options(package))
    assert len(spoken) > 15
    for text, name in spoken:
        assert text.context, text
        for place in text.context:
            speaker = FrontEnd.SCRIPT if place in SCRIPTS else FrontEnd.CGRSEG
            with speaking_as(speaker):
                assert option(name) in offered[place], (text, place)


def test_every_command_that_is_named_exists(said: list[Text], offered: dict[str, set[str]]) -> None:
    prose = {"cannot", "writes", "was", "for", "with"}
    named = {(text.file, command) for text in said for command in text.commands}
    unknown = {
        (file, command)
        for file, command in named
        if command not in offered and command not in GROUPS | prose
    }
    assert unknown == set()
    assert len(named) > 25


def test_every_setting_that_is_named_exists_and_takes_the_value(said: list[Text]) -> None:
    wrong, named, given = [], 0, 0
    for text in said:
        for name, value in text.settings:
            named += 1
            if find_setting(name) is None and name != NUM_CLASSES:
                wrong.append((text.file, text.line, name))
            elif value and not re.search(r"[{A-Z]|NAME|\.\.\.", value):
                given += 1
                load_config("cgrseg-t_custom", [name + value.rstrip(".:'\"")])
    assert wrong == []
    assert named > 80 and given > 5


def test_every_extra_that_is_named_exists(said: list[Text], repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(project["project"]["optional-dependencies"])
    named = {
        extra
        for text in said
        for extra in re.findall(r"cgrseg\[(\w+)\]|extra [`\[](\w+)", text.words)
        for extra in extra
        if extra
    }
    assert named <= extras


def test_every_extra_installs_the_packages_that_are_missed(repository: Path) -> None:
    """`require` says which extra brings a package."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    for extra, packages in EXTRAS.items():
        requirements = project["project"]["optional-dependencies"][extra]
        brought = {re.split(r"[\[<>=!~; ]", each)[0] for each in requirements}
        assert set(packages.values()) <= brought


@pytest.mark.parametrize("front_end", list(FrontEnd))
def test_front_ends_write_options_in_their_own_way(front_end: FrontEnd) -> None:
    with speaking_as(front_end):
        told = option("--resume"), option("--overwrite"), option("--resume-from", "a.pth")
    assert (
        told
        == {
            FrontEnd.CGRSEG: ("--resume", "--overwrite", "--resume-from a.pth"),
            FrontEnd.DEMO: ("the same command", "--overwrite", "--resume-from a.pth"),
            FrontEnd.SCRIPT: ("--auto-resume", "--overwrite", "--resume-from a.pth"),
            FrontEnd.PYTHON: ("auto_resume=True", "overwrite=True", "resume_from='a.pth'"),
        }[front_end]
    )
    assert option("--resume") == "auto_resume=True"  # outside of the block


def test_names_of_other_tools_lead_to_settings_of_ours() -> None:
    defaults = flatten(Config())
    for name, meaning in MEANINGS.items():
        if " " in meaning:
            continue
        assert find_setting(name) is None, f"{name} is a setting of ours"
        load_config("cgrseg-t_custom", [f"{meaning}={defaults[meaning]}"])
