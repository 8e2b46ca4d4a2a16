"""The table of mmsegmentation's flags in docs/mmsegmentation.md: every row is as it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgrseg.config import load_config
from cgrseg.evaluation import eval_script
from cgrseg.training import train_script

PAGE = Path(__file__).parents[1] / "docs" / "mmsegmentation.md"
ROWS = [
    [cell.strip() for cell in line.strip("| \n").split(" | ")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith(("| train |", "| test |"))
]
SCRIPTS = {"train": (train_script, ["c.py"]), "test": (eval_script, ["c.py", "c.pth"])}

# Flags of tools/train.py and tools/test.py of mmsegmentation 0.27 and 1.2.
THEIRS = {
    "train": "--work-dir --load-from --resume-from --no-validate --gpus --gpu-ids --gpu-id --seed "
    "--diff_seed --deterministic --options --cfg-options --launcher --local_rank --auto-resume "
    "--resume --amp --local-rank",
    "test": "--work-dir --aug-test --out --format-only --eval --show --show-dir --gpu-collect "
    "--gpu-id --tmpdir --options --cfg-options --eval-options --launcher --opacity --local_rank "
    "--wait-time --tta --local-rank",
}


def test_every_flag_has_a_row() -> None:
    for script, flags in THEIRS.items():
        told = {row[1].strip("`").split()[0] for row in ROWS if row[0] == script}
        assert told == set(flags.split())


@pytest.mark.parametrize(("script", "typed", "told"), ROWS)
def test_a_row_is_as_it_says(
    script: str, typed: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, arguments = SCRIPTS[script]
    command = [*arguments, *typed.strip("`").split()]
    kind, _, text = told.replace("`", "").partition(": ")
    if kind == "error":
        with pytest.raises(SystemExit, match="2"):
            module.build_parser().parse_with_settings(command)
        assert text in capsys.readouterr().err
        return
    module.build_parser().parse_with_settings(command)
    assert capsys.readouterr().err == ("" if kind == "works" else f"note: {text}\n")
    assert kind in ("works", "note")


def test_flags_take_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["cgrseg-t_custom", "--amp", "--options", "runner.max_iters=7", "--work-dir", "there"]
    settings = train_script.overrides_of(train_script.build_parser().parse_with_settings(typed))
    config = load_config("cgrseg-t_custom", settings)
    assert (config.train.precision, config.schedule.max_iters) == ("auto", 7)
    assert config.work_dir == "there"
    assert train_script.main(["cgrseg-t_custom", "--gpu-ids", "77", "78"]) == 2
    told = capsys.readouterr().err
    assert "cuda:77" in told or "no NVIDIA GPU" in told


@pytest.mark.parametrize("flag", ["--show", "--wait-time", "--eval-options"])
def test_train_names_no_flag_of_the_test_script(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_script.build_parser().parse_with_settings(["c.py", flag])
    told = capsys.readouterr().err
    assert "tools/test.py only" in told and "--show-dir" not in told and "--format-only" not in told


def test_a_hidden_flag_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_script.build_parser().parse_with_settings(["c.py", "--gpus", "many"])
    told = capsys.readouterr().err
    assert "expected: an integer" in told and "SUPPRESS" not in told


def test_zero_gpus_get_the_note(capsys: pytest.CaptureFixture[str]) -> None:
    train_script.build_parser().parse_with_settings(["c.py", "--gpus", "0"])
    assert capsys.readouterr().err == "note: --gpus has no effect: one process uses one GPU\n"
