"""Signals: what ends a run, in which processes, and what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cgrseg.distributed import Exchange
from cgrseg.training.data_source import DatasetSource
from cgrseg.training.journal import Journal
from cgrseg.training.runner import train
from cgrseg.training.stopping import Abort, StopNow, StopRequest
from cgrseg.training.train_script import main
from tests.training.processes import run_group
from tests.training.small_run import small_config, write_dataset


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    request = StopRequest(Exchange())
    with request.listening():
        yield request


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_noted_and_handlers_given_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    request = StopRequest(Exchange())
    with request.listening():
        assert request.agreed() is None
        signal.raise_signal(number)
        assert request.agreed() is number and request.last_agreed is number
    assert signal.getsignal(number) is before


def test_ctrl_c_twice_is_one_when_handed_on_and_two_when_meant(
    stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("cgrseg.training.stopping.time.monotonic", lambda: clock[0])
    signal.raise_signal(signal.SIGINT)
    clock[0] += 0.9
    signal.raise_signal(signal.SIGINT)
    assert stop.received is signal.SIGINT
    clock[0] += 0.2
    signal.raise_signal(signal.SIGTERM)  # asks politely, however often
    with pytest.raises(Abort):
        signal.raise_signal(signal.SIGINT)


# A signal comes in a callback of a fork, where Python ignores exceptions.
FORK = """
import os, signal, sys, time
from cgrseg.distributed import Exchange
from cgrseg.processes import ending_by_signals
from cgrseg.training.stopping import Abort, StopNow, StopRequest
wanted = int(sys.argv[1])
sent = []
def send():
    if not sent:
        sent.append(wanted)
        os.kill(os.getpid(), wanted)
        for _ in range(3):
            pass
def forked():
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    for _ in range(200):
        time.sleep(0.05)
with ending_by_signals():
    request = StopRequest(Exchange())
    with request.listening():
        os.register_at_fork(after_in_parent=send)
        if sys.argv[2:]:
            request.received, request._when = signal.SIGINT, -10.0  # the first Ctrl-C
            try:
                forked()
            except Abort:
                print("aborted")
        else:
            try:
                with request.interruptible():
                    forked()
            except StopNow:
                print(request.received.name)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    ("number", "more", "said"),
    [
        (signal.SIGTERM, [], "SIGTERM\n"),
        (signal.SIGUSR1, [], "SIGUSR1\n"),
        (signal.SIGINT, ["again"], "aborted\n"),
    ],
)
def test_a_signal_in_a_callback_of_a_fork_comes_again(
    number: signal.Signals, more: list[str], said: str
) -> None:
    command = [sys.executable, "-c", FORK, str(int(number)), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_an_evaluation_ends_at_once_until_it_is_settled(stop: StopRequest) -> None:
    with pytest.raises(StopNow), stop.interruptible():
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not reached")
    stop.received = None
    with stop.interruptible():
        stop.settle()
        signal.raise_signal(signal.SIGTERM)  # from here on the scores are complete
    assert stop.received is signal.SIGTERM
    with pytest.raises(StopNow), stop.interruptible():
        raise AssertionError("not reached")


def test_a_signal_between_announcement_and_first_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "data")
    say = Journal.say

    def say_and_be_terminated(journal: Journal, text: str) -> None:
        say(journal, text)
        if text.startswith("settings: "):
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "say", say_and_be_terminated)
        result = train(small_config(root, tmp_path / "run"), device="cpu")
    assert result.stopped_by is signal.SIGTERM
    assert torch.load(result.latest, weights_only=True)["meta"]["iteration"] == 1


def test_a_signal_during_an_evaluation_made_up_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "data")
    config = small_config(root, tmp_path / "run", schedule__max_iters=1)
    train(config, device="cpu")
    config.train.evaluate = True  # the finished run lacks its evaluation
    evaluate = DatasetSource.evaluate

    def be_terminated(source: DatasetSource, *given: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return evaluate(source, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetSource, "evaluate", be_terminated)
        result = train(config, device="cpu", auto_resume=True)
    assert result.stopped_by is signal.SIGTERM and result.scores is None
    assert train(config, device="cpu", auto_resume=True).scores is not None


def test_ctrl_c_before_the_first_step_is_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_dataset(tmp_path / "data")

    def be_interrupted(*_given: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("cgrseg.training.data_source.check_before_training", be_interrupted)
    # Tests that a shell started in the background are born with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    options = ["data.dataset=custom", f"data.root={root}"]
    arguments = ["cgrseg-t_custom", "--device", "cpu", "--work-dir", str(tmp_path / "run")]
    try:
        assert main([*arguments, "--cfg-options", *options]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def terminated_in_the_second(root: Path, work_dir: Path) -> int:
    """A training whose second process alone gets the signal, in its evaluation."""
    import os

    evaluate = DatasetSource.evaluate

    def be_terminated(source: DatasetSource, *given: Any, **named: Any) -> Any:
        if os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGTERM)
        return evaluate(source, *given, **named)

    setattr(DatasetSource, "evaluate", be_terminated)  # noqa: B010
    config = small_config(
        root,
        work_dir,
        augment__crop_size=[32, 32],
        schedule__max_iters=3,
        train__evaluate=True,
        train__eval_interval=1,
    )
    return train(config, device="cpu").exit_status


def test_a_signal_in_one_process_ends_all_with_its_status(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    run_group(2, terminated_in_the_second, root, tmp_path / "run", folder=tmp_path, status=128 + 15)
    log = (tmp_path / "run" / "train.log").read_text()
    assert "evaluation at 1 aborted" in log
    assert "stopped by SIGTERM after iteration 1" in log
    saved = torch.load(tmp_path / "run" / "latest.pth", weights_only=True)
    assert saved["meta"]["iteration"] == 1
