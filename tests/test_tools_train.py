"""`tools/train.py`, `tools/dist_train.sh` and their older forms at the root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cgrseg.training.script import build_parser, overrides_of
from tests.training.small_run import write_dataset

OPTIONS = [
    "--cfg-options",
    "data.dataset=custom",
    "data.workers=0",
    "augment.scale=[64,64]",
    "augment.crop_size=[64,64]",
    "test.resize=none",
    "train.log_interval=1",
    "train.batch_size=2",
    "schedule.max_iters=2",
    "train.eval_interval=2",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def iteration_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["meta"]["iteration"])


def test_flags_become_settings() -> None:
    arguments = build_parser().parse_args(
        [
            "cfg.py",
            "--work-dir",
            "there",
            "--load-from",
            "a.pth",
            "--no-validate",
            "--seed",
            "5",
            "--deterministic",
            "--launcher",
            "pytorch",
            "--cfg-options",
            "optimizer.lr=1e-4",
            "train.seed=6",
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
def test_training_from_another_folder(script: str, repository: Path, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    config = repository / "local_configs" / "cgrseg" / "cgrseg-t_ade20k_160k.py"
    result = run(
        [sys.executable, str(repository / script), str(config), *OPTIONS, f"data.root={root}"],
        tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    latest = tmp_path / "work_dirs" / "cgrseg-t_ade20k_160k" / "latest.pth"
    assert iteration_of(latest) == 2
    if not torch.cuda.is_available():
        assert "warning: no GPU was found" in result.stderr


def test_a_gpu_that_was_asked_for_must_be_there(repository: Path, tmp_path: Path) -> None:
    missing = torch.cuda.device_count() + 7
    result = run(
        [
            sys.executable,
            str(repository / "tools" / "train.py"),
            "cgrseg-t_ade20k_160k",
            "--gpu-id",
            str(missing),
        ],
        tmp_path,
    )
    assert result.returncode == 1
    assert f"cuda:{missing}" in result.stderr or "no NVIDIA GPU" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("shell", "script"), [("sh", "tools/dist_train.sh"), ("bash", "dist_train.sh")]
)
def test_two_processes(shell: str, script: str, repository: Path, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    result = run(
        [
            shell,
            str(repository / script),
            "cgrseg-t_ade20k_160k",
            "2",
            "--work-dir",
            "run",
            "--seed",
            "1",
            *OPTIONS,
            f"data.root={root}",
        ],
        tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    log = (tmp_path / "run" / "train.log").read_text()
    assert "process 1 of 2" in log and "4 per iteration" in log
    assert "evaluation at 2: mIoU" in log
    checkpoint = torch.load(tmp_path / "run" / "latest.pth", weights_only=True)
    assert checkpoint["training"]["world_size"] == 2


def test_wrong_use_of_the_launcher_is_explained(repository: Path, tmp_path: Path) -> None:
    script = str(repository / "tools" / "dist_train.sh")
    for arguments, message in (([], "usage"), (["config", "many"], "positive number")):
        result = run(["sh", script, *arguments], tmp_path)
        assert result.returncode == 2
        assert message in result.stderr
