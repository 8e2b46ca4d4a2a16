"""Every promised training command, run as a person would, on real samples of ADE20K.

To the letter, in a shell, stopped by SIGTERM after their first step: the slow ones.  The
others are the same commands with settings that make the run small; where Python is called,
the script runs in a process that has imported already.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cgrseg.datasets import get_spec
from cgrseg.models import CGRSeg
from cgrseg.training.checkpointing import model_meta, write_checkpoint
from cgrseg.training.train_script import build_parser, overrides_of
from tests.training import processes

CONFIG = "local_configs/cgrseg/cgrseg-t_ade20k_160k.py"
RUN = Path("work_dirs") / "cgrseg-t_ade20k_160k"
SMALL = [
    "data.workers=0",
    "augment.scale=[96,64]",
    "augment.crop_size=[64,64]",
    "test.scale=[96,64]",
    "train.log_interval=1",
    "train.batch_size=2",
    "schedule.max_iters=1",
]
TRAIN_ANNOUNCED = [
    *("--mode", "train", "--lr", "0.0001", "--batch-size", "4", "--max-iters", "80000"),
    *("--eval-interval", "4000", "--data-root", "./data/ade/ADEChallengeData2016"),
    *("--work-dir", "./work_dirs/my_experiment"),
]
EVAL_ANNOUNCED = [
    *("--mode", "eval", "--checkpoint", f"./{RUN}/latest.pth", "--show-dir", "./results"),
]


@pytest.fixture
def checkout(repository: Path, shared_data: Path, tmp_path: Path) -> Path:
    """A folder that looks like a checkout with ADE20K's samples in their place."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    names = ["local_configs", "tools", "train.py", "dist_train.sh", "run_cgrseg.py", "cgrseg"]
    for name in names:
        (folder / name).symlink_to(repository / name)
    (folder / "data" / "ade").mkdir(parents=True)
    (folder / "data" / "ade" / "ADEChallengeData2016").symlink_to(shared_data / "ade20k_samples")
    return folder


def shell_environment(**changes: str) -> dict[str, str]:
    """With this interpreter as `python`, and one thread per process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **changes}


def run(
    *command: str | Path, cwd: Path, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run in a shell's way; fail with the output unless `status` comes back."""
    finished = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=shell_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert finished.returncode == status, finished.stdout + finished.stderr
    return finished


def run_python(script: str, *arguments: str, cwd: Path) -> str:
    """`python SCRIPT ARGUMENTS` in a folder, without the time of its imports."""
    log = cwd.parent / f"output{len(list(cwd.parent.iterdir()))}.log"
    return processes.run(processes.run_script, cwd / script, cwd, *arguments, log=log)


def iteration_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True, mmap=True)["meta"]["iteration"])


def test_flags_become_settings() -> None:
    arguments = build_parser().parse_args(
        [
            *("cfg.py", "--work-dir", "there", "--load-from", "a.pth", "--no-validate"),
            *("--seed", "5", "--deterministic", "--launcher", "pytorch"),
            *("--cfg-options", "optimizer.lr=1e-4", "train.seed=6"),
        ]
    )
    assert overrides_of(arguments) == {
        "work_dir": "there",
        "train.load_from": "a.pth",
        "train.evaluate": False,
        "train.deterministic": True,
        "optimizer.lr": 1e-4,
        "train.seed": 6,
    }


def test_resume_from_and_auto_resume_exclude_each_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["cfg.py", "--resume-from", "a.pth", "--auto-resume"])
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["tools/train.py", "train.py"])
def test_one_process(script: str, checkout: Path) -> None:
    said = run_python(script, CONFIG, "--cfg-options", *SMALL, cwd=checkout)
    assert iteration_of(checkout / RUN / "latest.pth") == 1
    assert "training cgrseg_t on ade20k" in said and "evaluation at 1: mIoU" in said
    if not torch.cuda.is_available():
        assert "warning: no GPU was found" in said


def test_run_cgrseg_trains_and_evaluates_as_announced(checkout: Path) -> None:
    trained = run_python("run_cgrseg.py", "--mode", "train", *SMALL, cwd=checkout)
    assert trained.startswith("active settings (cgrseg-t_ade20k_160k)\n")
    evaluated = run_python("run_cgrseg.py", *EVAL_ANNOUNCED, *SMALL, cwd=checkout)
    assert "show_dir" in evaluated
    assert len(list((checkout / "results").iterdir())) == 3
    assert (checkout / RUN / "evaluation.json").is_file()
    small = [part for part in SMALL if "batch_size" not in part and "max_iters" not in part]
    smaller = ["schedule.max_iters=1", "train.batch_size=2"]  # as texts they win over flags
    run_python("run_cgrseg.py", *TRAIN_ANNOUNCED, *small, *smaller, cwd=checkout)
    assert iteration_of(checkout / "work_dirs" / "my_experiment" / "latest.pth") == 1


def test_two_processes_on_the_cpu(checkout: Path) -> None:
    run(
        *("sh", "tools/dist_train.sh", CONFIG, "2", "--work-dir", "run", "--seed", "1"),
        *("--cfg-options", *SMALL),
        cwd=checkout,
    )
    log = (checkout / "run" / "train.log").read_text()
    assert "process 1 of 2" in log and "4 images per iteration" in log
    assert "evaluation at 1: mIoU" in log
    checkpoint = torch.load(checkout / "run" / "latest.pth", weights_only=True)
    assert checkpoint["training"]["world_size"] == 2


def test_a_problem_is_printed_once_by_two_processes(checkout: Path) -> None:
    """`cgrseg train` under `torchrun`, whose fellow processes end at the first one's end."""
    finished = run(
        *("python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "cgrseg", "train", "cgrseg-t_ade20k_160k", "optimizer.lrr=1"),
        cwd=checkout,
        status=1,
    )
    assert finished.stderr.count("error: optimizer.lrr") == 1
    assert "did you mean optimizer.lr?" in finished.stderr


SHELLS = [(shell, s) for shell in ("sh", "bash") for s in ("tools/dist_train.sh", "dist_train.sh")]


@pytest.mark.parametrize(("shell", "script"), SHELLS)
def test_launcher_passes_processes_and_arguments_on(
    shell: str, script: str, repository: Path, tmp_path: Path
) -> None:
    recorder = tmp_path / "python"
    recorder.write_text('#!/bin/sh\nfor part in "$@"; do printf "%s\\n" "$part"; done\n')
    recorder.chmod(0o755)
    given = ["--cfg-options", "data.root=my data", "x=[1, 2]"]
    ours = [str(repository / "tools" / "train.py"), "my config.py", "--launcher", "pytorch", *given]
    command = [shell, str(repository / script), "my config.py", "4", *given]
    printed = run(*command, cwd=tmp_path, PYTHON=str(recorder)).stdout.splitlines()
    alone = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    assert printed == [*alone, *ours]
    finished = run(
        *command,
        cwd=tmp_path,
        PYTHON=str(recorder),
        NNODES="2",
        NODE_RANK="1",
        MASTER_ADDR="first",
        PORT="1234",
    )
    together = ["--nnodes=2", "--node-rank=1", "--master-addr=first", "--master-port=1234"]
    assert finished.stdout.splitlines() == [*alone[:2], *together, alone[-1], *ours]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_wrong_use_of_the_launcher_is_explained(
    shell: str, repository: Path, tmp_path: Path
) -> None:
    script = repository / "tools" / "dist_train.sh"
    assert "usage" in run(shell, script, cwd=tmp_path, status=2).stderr
    assert "positive number" in run(shell, script, "config", "many", cwd=tmp_path, status=2).stderr
    finished = run(shell, script, "c", "4", cwd=tmp_path, status=2, NNODES="2", NODE_RANK="0")
    assert "NNODES=2 needs MASTER_ADDR" in finished.stderr
    finished = run(shell, script, "c", "4", cwd=tmp_path, status=2, NNODES="2", MASTER_ADDR="first")
    assert "NNODES=2 needs NODE_RANK" in finished.stderr


def test_a_gpu_that_was_asked_for_must_be_there(repository: Path, tmp_path: Path) -> None:
    missing = torch.cuda.device_count() + 7
    finished = run(
        *("python", repository / "tools" / "train.py", "cgrseg-t_ade20k_160k"),
        *("--gpu-id", str(missing)),
        cwd=tmp_path,
        status=2,
    )
    assert f"cuda:{missing}" in finished.stderr or "no NVIDIA GPU" in finished.stderr
    assert "Traceback" not in finished.stderr


# -- To the letter ---------------------------------------------------------------------------


def processes_of(parent: int) -> list[int]:
    """The processes that a process has started."""
    return [int(p) for p in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def wait_until_it_listens(process: int) -> None:
    """Until a training answers signals itself: SIGUSR1 is one that nobody else takes."""
    bit = 1 << (signal.SIGUSR1 - 1)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        caught = next(line for line in lines if line.startswith("SigCgt:"))
        if int(caught.split()[1], 16) & bit:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {process} never answered signals itself")


def run_until_stopped(command: list[str], folder: Path, workers: bool = False) -> str:
    """Run a command to the letter; SIGTERM once it trains: its first step is its last."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=shell_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("settings: "):  # from here on the training answers signals
                break
        # The launcher gives its processes 30 seconds to end, so one of those is asked instead.
        asked = processes_of(process.pid)[0] if workers else process.pid
        wait_until_it_listens(asked)
        os.kill(asked, signal.SIGTERM)
        said += process.stdout.read()
    assert process.returncode == (1 if workers else 128 + signal.SIGTERM), said
    assert "stopped by SIGTERM after iteration " in said
    return said


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "command",
    [
        ["python", "run_cgrseg.py", "--mode", "train"],
        ["python", "run_cgrseg.py", *TRAIN_ANNOUNCED],
        ["python", "tools/train.py", CONFIG],
        ["python", "train.py", CONFIG],
        *([shell, script, CONFIG, "4"] for shell, script in SHELLS),
    ],
    ids=" ".join,
)
def test_promised_commands_to_the_letter(command: list[str], checkout: Path) -> None:
    several = command[0] != "python"
    run_until_stopped(command, checkout, workers=several)
    folder = checkout / ("work_dirs/my_experiment" if command[-1].endswith("experiment") else RUN)
    checkpoint = torch.load(folder / "latest.pth", weights_only=True)
    assert checkpoint["meta"]["iteration"] >= 1
    assert checkpoint["training"]["world_size"] == (4 if several else 1)
    assert checkpoint["meta"]["config"]["train"]["batch_size"] == 4


@pytest.mark.slow
def test_evaluation_and_python_helper_to_the_letter(checkout: Path) -> None:
    spec = get_spec("ade20k")
    model = CGRSeg("cgrseg_t", spec.num_classes, classes=spec.classes, palette=spec.palette)
    write_checkpoint(
        checkout / RUN / "latest.pth",
        {"state_dict": model.state_dict(), "meta": {"format": 1, **model_meta(model)}},
    )
    run("python", "run_cgrseg.py", *EVAL_ANNOUNCED, cwd=checkout)
    assert len(list((checkout / "results").iterdir())) == 3
    compiled = ["--compile", "--threads", "1", "--precision", "bf16", "test.scale=[160,96]"]
    run("python", "run_cgrseg.py", *EVAL_ANNOUNCED, *compiled, cwd=checkout)
    (file,) = set((checkout / RUN).glob("evaluation*.json")) - {checkout / RUN / "evaluation.json"}
    written = json.loads(file.read_text())
    assert written["settings"]["compile"] and written["settings"]["precision"] == "bf16"
    announced = f"""
from run_cgrseg import run_single_gpu

# Train
run_single_gpu('train', work_dir='./work_dirs/quick_start')

# Evaluate
run_single_gpu('eval', checkpoint='./{RUN}/latest.pth')
"""
    (checkout / "announced.py").write_text(announced)
    with subprocess.Popen(
        ["python", "announced.py"],
        cwd=checkout,
        env=shell_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("settings: "):  # from here on the training answers signals
                break
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.returncode == 0
    assert iteration_of(checkout / "work_dirs" / "quick_start" / "latest.pth") >= 1
    assert (checkout / RUN / "evaluation.json").is_file()
