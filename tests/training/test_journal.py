"""What a run says: first words first, every warning in the log, and how long it will take."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from cgrseg.errors import EnvironmentProblem
from cgrseg.progress import format_seconds
from cgrseg.training.journal import Journal, Pace
from cgrseg.training.run_log import Transcript
from cgrseg.training.runner import train
from tests.training.small_run import small_config, write_dataset


def spoken(log: Path) -> list[str]:
    """Lines of a log without their time stamps."""
    return [line[20:] for line in log.read_text().splitlines() if re.match(r"\d{4}-", line)]


def test_first_words_first_then_settings_then_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root, run = write_dataset(tmp_path / "data"), tmp_path / "run"
    config = small_config(root, run, schedule__warmup_iters=8, train__evaluate=True)
    train(config, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    starts = ["training cgrseg_t on custom (", "device: cpu; precision: fp32", "weights: random"]
    starts += [
        "data: 6 training and 2 validation images of ",
        "settings: 6 iterations, 2 images per iteration",
    ]
    for line, start in zip(lines, [*starts, "iteration 1/6  loss "], strict=False):
        assert line.startswith(start)
    assert lines[0].endswith(f"into {run}")
    assert lines[4].endswith(f"evaluation every 1000; all settings: {run}/config.json")
    short = "schedule.max_iters=6 is not longer than schedule.warmup_iters=8"
    assert short in caplog.text and "left" in lines[5]
    log = spoken(run / "train.log")
    assert [line for line in log if not line.startswith("warning: ")] == lines
    assert any(line.startswith(f"warning: {short}") for line in log)


def test_the_log_holds_each_warning_that_was_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transcript = Transcript()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown, warnings.showwarning = [], lambda message, *rest: shown.append(str(message))
        with transcript.recording(), transcript.recording():
            warnings.warn("from a library", stacklevel=1)
            logging.getLogger("cgrseg.inference").warning("one of %s", "ours")
            transcript.say("a line")
            log = tmp_path / "train.log"
            transcript.write_to(log)
            logging.getLogger("lightning.pytorch").warning("of Lightning")
            logging.getLogger("cgrseg.inference").info("no warning")
        warnings.warn("after the run", stacklevel=1)
    assert shown == ["from a library", "after the run"]
    assert spoken(log) == [
        "warning: from a library",
        "warning: one of ours",
        "a line",
        "warning: of Lightning",
    ]
    assert capsys.readouterr().out == "a line\n"


def test_a_refused_run_has_its_reason_in_the_log_if_there_is_one(tmp_path: Path) -> None:
    root, run = write_dataset(tmp_path / "data"), tmp_path / "run"
    config = small_config(root, run, schedule__max_iters=1)
    (run / "metrics.csv").mkdir(parents=True)  # where a table should go
    with pytest.raises(EnvironmentProblem) as caught:
        train(config, device="cpu")
    first = str(caught.value).splitlines()[0]
    assert spoken(run / "train.log")[-1] == f"error: {first}"


def test_without_a_command_line_warnings_reach_the_screen_once(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    code = (
        "import torch, cgrseg; torch.cuda.is_available = lambda: False\n"
        "torch.backends.mps.is_available = lambda: False\n"
        f"config = cgrseg.load_config('cgrseg-t_custom', {{'data.root': {str(root)!r}, "
        "'schedule.max_iters': 1, 'train.evaluate': False, 'train.batch_size': 2, "
        "'augment.scale': [64, 64], 'augment.crop_size': [64, 64], 'data.workers': 0})\n"
        "cgrseg.train(config)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("training cgrseg_t on custom (")
    assert "precision: " in done.stdout.splitlines()[2]
    assert done.stderr.count("warning: no GPU was found") == 1
    assert done.stderr.count("is not longer than schedule.warmup_iters=500") == 1
    log = (tmp_path / "work_dirs" / "cgrseg-t_custom" / "train.log").read_text()
    for line in done.stderr.splitlines():
        assert line in log


def pace(seconds: list[float], **options: int | None) -> tuple[Pace, list[float]]:
    """A pace whose clock shows what `seconds` holds last."""
    return Pace(0, 100, clock=lambda: seconds[-1], **options), seconds  # type: ignore[arg-type]


def test_time_left_by_hand() -> None:
    found, clock = pace([10.0], eval_interval=30)
    assert format_seconds(found.seconds_left(0)) == "?"
    clock.append(15.0)  # the first iteration takes 5 s, and does not count once there are others
    found.step()
    assert found.seconds_left(1) == pytest.approx(99 * 5.0)
    assert not found.is_measured
    for _ in range(2, 5):
        clock.append(clock[-1] + 0.5)
        found.step()
    assert found.per_second == pytest.approx(2.0) and not found.is_measured
    assert found.seconds_left(4) == pytest.approx(96 / 2)
    clock.append(clock[-1] + 0.5)
    found.step()
    assert found.is_measured  # four iterations in two seconds
    clock.append(clock[-1] + 7.0)
    found.exclude(7.0)
    assert found.per_second == pytest.approx(2.0)
    # evaluations after iterations 30, 60, 90 and the last one
    assert [found.evaluations_left(k) for k in (0, 5, 30, 90, 99, 100)] == [4, 4, 3, 1, 1, 0]
    assert found.seconds_left(5) == pytest.approx(95 / 2 + 4 * 7)
    assert pace([0.0])[0].evaluations_left(5) == 0


def test_many_fast_iterations_are_enough() -> None:
    found, clock = pace([0.0])
    for _ in range(21):
        assert not found.is_measured
        clock.append(clock[-1] + 0.01)
        found.step()
    assert found.is_measured


def test_the_duration_is_said_once_in_the_first_iterations(tmp_path: Path) -> None:
    said: list[str] = []
    transcript = Transcript()
    transcript.show = said.append
    journal = Journal(
        tmp_path,
        start=0,
        end=100,
        loss_columns=["loss"],
        score_columns=["mIoU"],
        images_per_iteration=4,
        eval_interval=50,
        transcript=transcript,
    )
    journal.open()
    for iteration in range(1, 31):
        journal.tick(iteration, 0.0, 0.0)
    (line,) = said
    assert re.fullmatch(
        r"duration: about 0:00 for the remaining 79 iterations on this machine "
        r"\([\d.]+ images/s\), and 2 evaluations on top",
        line,
    )
