"""Options agree in all commands, old names work on, and wrong usage is explained."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from cgrseg.cli.common import OLD_NAMES, present_names, with_compile_value
from cgrseg.cli.reference import OptionUse, commands, markdown_commands, option_uses

from .conftest import Run


@pytest.fixture(scope="module")
def uses() -> list[OptionUse]:
    return option_uses()


def test_one_option_is_the_same_in_every_command(uses: list[OptionUse]) -> None:
    forms: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for use in uses:
        forms[use.name].add((use.short, use.value, use.meaning))
    assert {name: form for name, form in forms.items() if len(form) > 1} == {}
    without = {"config translate"}
    assert {use.command for use in uses} | without == set(dict(commands()))


def test_other_options_mean_other_things_and_have_other_short_forms(uses: list[OptionUse]) -> None:
    by_meaning, by_short = defaultdict(set), defaultdict(set)
    for use in uses:
        by_meaning[use.meaning].add(use.name)
        for short in use.short:
            by_short[short].add(use.name)
    assert {meaning: names for meaning, names in by_meaning.items() if len(names) > 1} == {}
    assert {short: names for short, names in by_short.items() if len(names) > 1} == {}
    assert by_short == {"-o": {"--out"}, "-s": {"--set"}}


def test_every_option_says_what_it_is(uses: list[OptionUse]) -> None:
    for use in uses:
        assert use.meaning[:1].isupper() and use.meaning.endswith((".", ")")), use
        assert not use.meaning.startswith("Of "), use


def test_what_writes_takes_out_and_what_takes_json_prints(uses: list[OptionUse]) -> None:
    having = defaultdict(set)
    for use in uses:
        having[use.name].add(use.command)
    converters = {name for name, _ in commands() if name.startswith("data convert")}
    writing = {
        "predict",
        "autolabel",
        "evaluate",
        "export",
        "report",
        "demo",
        "bench",
        "data browse",
        "data fetch",
        "data rank",
        "publish",
    }
    assert having["--out"] == writing | converters
    assert having["--json"] >= {"evaluate", "info", "bench", "data check", "data list"} | converters
    assert having["--threads"] >= {"train", "evaluate", "predict", "bench", "demo"}
    assert having["--seed"] >= {"train", "demo", "data synth"}


def test_settings_are_taken_wherever_a_config_is_read() -> None:
    taking = {
        name
        for name, command in commands()
        if any("KEY=VALUE" in str(p.metavar) for p in command.params)
    }
    reading = {
        "train",
        "evaluate",
        "predict",
        "autolabel",
        "export",
        "bench",
        "info",
        "data rank",
        "web",
        "demo",
    }
    assert taking == reading | {"data check", "data browse"}


def test_page_is_as_the_commands_are_now(repository: Path) -> None:
    """Mend with: python scripts/update_references.py."""
    document = (repository / "docs" / "commands.md").read_text(encoding="utf-8")
    _, _, rest = document.partition("<!-- reference: begin -->\n")
    reference, end, _ = rest.partition("<!-- reference: end -->")
    assert end
    assert reference.strip() == markdown_commands().strip()


def test_old_names_lead_to_options_that_exist(uses: list[OptionUse]) -> None:
    own = defaultdict(set)
    for use in uses:
        own[use.command].add(use.name)
    for command, names in OLD_NAMES.items():
        assert set(names.values()) <= own[command], command
        assert not set(names) & own[command], command


@pytest.mark.parametrize(
    ("command", "typed", "meant", "note"),
    [
        ("bench", "--batch 4 cgrseg_t", "--batch-size 4 cgrseg_t", "--batch is now --batch-size"),
        ("bench", "--batch=4", "--batch-size=4", "--batch is now --batch-size"),
        ("bench", "--json a.json", "--out a.json", "--json FILE is now --out FILE"),
        ("info", "x --size 64 96", "x --size 64x96", "--size 64 96 is now --size 64x96"),
        ("export", "x --batch any", "x", "--batch-size any is the default"),
        ("export", "x --size any", "x", "--size any is the default"),
        ("train", "x --auto-resume", "x --resume", "--auto-resume is now --resume"),
        ("data browse", "x --count 3", "x --limit 3", "--count is now --limit"),
    ],
)
def test_old_names_are_replaced_with_a_note(
    command: str, typed: str, meant: str, note: str
) -> None:
    arguments, notes = present_names(command, typed.split())
    assert arguments == meant.split()
    assert any(text.startswith(note) for text in notes), notes


def test_present_names_and_words_after_two_dashes_stay(uses: list[OptionUse]) -> None:
    for use in uses:
        typed = ["x", use.name.partition("/")[0], "1", "--", "--batch", "--count"]
        assert present_names(use.command, typed) == (typed, [])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("best.pth --compile photos", "best.pth --compile=on photos"),
        ("best.pth photos --compile", "best.pth photos --compile=on"),
        ("best.pth --compile auto photos", "best.pth --compile=auto photos"),
        ("best.pth photos --compile off", "best.pth photos --compile=off"),
        ("best.pth photos --compile=auto", "best.pth photos --compile=auto"),
        ("best.pth photos --no-compile", "best.pth photos --compile=off"),
        ("best.pth -- --compile off", "best.pth -- --compile off"),
    ],
)
def test_compile_has_a_value_or_means_on(typed: str, meant: str) -> None:
    assert with_compile_value(typed.split()) == meant.split()


def test_a_folder_called_auto_is_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "auto").mkdir()
    monkeypatch.chdir(tmp_path)
    assert with_compile_value(["--compile", "auto"]) == ["--compile=on", "auto"]


def test_old_name_on_the_command_line(run: Run) -> None:
    result = run("info", "cgrseg_t", "--json", "--size", "64", "96")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["size"] == [64, 96]
    assert result.stderr == "note: --size 64 96 is now --size 64x96\n"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["train", "x", "--epochs", "3"],
            ["--epochs: there is no such option", "max_iters to epo"],
        ),
        (["train", "x", "--lr=3"], ["write optimizer.lr=VALUE, without dashes"]),
        (["train", "x", "--batch-size", "3"], ["write train.batch_size=VALUE"]),
        (["train", "x", "--workdir", "y"], ["did you mean --work-dir?"]),
        (["train", "x", "--thread", "2"], ["did you mean --threads?"]),
        (
            ["train", "x", "--threads", "0"],
            ["cgrseg train --threads: '0'", "Number of CPU threads"],
        ),
        (["train", "x", "--colour"], ["see cgrseg train --help"]),
        (["train"], ["cgrseg train CONFIG: it is missing", "cgrseg train --help has examples"]),
        (["evaluat", "x"], ["No such command 'evaluat'", "'evaluate'", "see cgrseg --help"]),
        (["data", "chek", "x"], ["No such command 'chek'", "see cgrseg data --help"]),
        (["--verison"], ["did you mean --version?"]),
        (["info", "cgrseg_t", "--size", "64x"], ["--size: '64x'", "HEIGHTxWIDTH"]),
        (["data", "convert", "rgb", "a", "b"], ["--out: it is missing", "--out data/mine"]),
        (["data", "convert", "rgb", "a", "b", "c", "-o", "d"], ["both c and d"]),
        (["predict", "x", "test.flip=true"], ["IMAGES: settings only"]),
        (["info", "cgrseg_t", "optimizer.lr=1"], ["settings of the section model"]),
        (["info", "cgrseg_t", "model.dropout=0"], ["model.context_blocks or model.attention_bias"]),
        (["export", "x", "train.seed=1"], ["settings of the section test"]),
    ],
)
def test_wrong_usage_is_a_message_of_four_parts(
    run: Run, arguments: list[str], parts: list[str]
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    for part in (*parts, "error: ", "\n  expected: ", "\n  what to do: "):
        assert part in result.stderr
    assert result.stderr.count("error: ") == 1


def test_settings_shape_a_network_and_a_config(run: Run) -> None:
    small = ("info", "cgrseg_t", "--size", "64")
    five = json.loads(run(*small, "--json").stdout)
    six = json.loads(run(*small, "model.context_blocks=6", "--json").stdout)
    assert (five["context_blocks"], six["context_blocks"]) == (5, 6)
    assert six["parameters"] > five["parameters"]
    config = json.loads(run("info", "cgrseg-t_camvid", "optimizer.lr=0.5", "--json").stdout)
    assert config["optimizer"]["lr"] == 0.5
    assert "cgrseg-t_camvid" in json.loads(run("info", "--presets", "--json").stdout)
    assert json.loads(run("info", "--json").stdout)["packages"]["torch"]
