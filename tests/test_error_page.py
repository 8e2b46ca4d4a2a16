"""The page of error messages in the documentation lists each message of the source."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def collector(repository: Path):
    """The module that reads the messages; it needs no Sphinx."""
    path = repository / "docs" / "_ext" / "messages.py"
    spec = importlib.util.spec_from_file_location("error_page_messages", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def messages(collector: ModuleType, repository: Path):
    return collector.collect(repository / "cgrseg")


@pytest.mark.parametrize(
    ("file", "found", "expected", "remedy"),
    [
        (  # a constant of the module, an argument of a helper's caller
            "data/image_files.py",
            "the file is empty",
            "an image",
            "fetch or copy this file again",
        ),
        (  # filled in at run time
            "distributed.py",
            "the environment lacks …",
            "the variables that torchrun sets for each process",
            "start with tools/dist_test.sh or torchrun, or leave the launcher out",
        ),
        (  # variables assigned together in one branch
            "models/weights.py",
            "tensors for which … has no place (… in all)",
            "nothing but the tensors of this network",
            "the file belongs to a network with more parts: build that one",
        ),
        (  # a row of a table
            "files.py",
            "the disk is full",
            "a place that can be written",
            "free some space, or choose another folder",
        ),
        (  # arguments of a helper function
            "data/resolve.py",
            "no class is left",
            "one class or more",
            "correct the setting; `cgrseg data list` prints the class lists",
        ),
    ],
)
def test_quoted_messages_are_found(messages, file, found, expected, remedy):
    (message,) = [each for each in messages if (each.file, each.found) == (file, found)]
    assert message.expected == (expected,)
    assert message.remedy == (remedy,)


def test_every_message_has_four_parts(messages):
    for each in messages:
        assert each.where and each.found and each.expected and each.remedy, each
        assert all((*each.where, *each.expected, *each.remedy)), each


def test_nearly_every_message_has_words_of_its_own(messages):
    parts = [(each.found, *each.where) for each in messages]
    silent = [each for each in parts if not any(c.isalnum() for text in each for c in text)]
    assert len(silent) <= 10, silent


def test_no_call_is_left_out(collector, messages, repository):
    """Every call that gives one of the parts gives all, and is in the list or passes them on."""
    listed = {(each.file, each.line) for each in messages}
    kinds = {each.kind for each in messages}
    for path in sorted((repository / "cgrseg").rglob("*.py")):
        name = path.relative_to(repository / "cgrseg").as_posix()
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or name == "errors.py":
                continue
            given = {each.arg: ast.unparse(each.value) for each in call.keywords}
            parts = {part: given[part] for part in collector.PARTS if part in given}
            if not parts or collector.called_name(call) not in kinds:
                continue
            passed_on = all(part == value for part, value in parts.items())
            assert len(parts) == 3 and call.args, f"{name}:{call.lineno} lacks a part"
            assert (name, call.lineno) in listed or passed_on, f"{name}:{call.lineno}"


def test_the_page_shows_them(messages, repository, tmp_path):
    """The directive alone, in a project of one page; `make docs` builds the whole site."""
    pytest.importorskip("sphinx", reason="the extra [docs] is not installed")
    extension = repository / "docs" / "_ext"
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path[:0] = [{str(extension)!r}, {str(repository)!r}]\n"
        "extensions = ['error_page']\n",
        encoding="utf-8",
    )
    (tmp_path / "index.rst").write_text("Messages\n========\n\n.. error-messages::\n", "utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "text", tmp_path, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = " ".join((tmp_path / "out" / "index.txt").read_text(encoding="utf-8").split())
    assert "Images and labels" in text
    assert "the environment lacks …" in text
    assert "round up: --size …" in text  # an option keeps its hyphens
    assert "such as 'cpu' or 'cuda:0'" in text
    assert "free some space, or choose another folder" in text
    assert text.count("What to do") == len(messages)
