"""Every promised evaluation command, run as a person would, on real samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cgrseg.datasets import get_spec
from cgrseg.evaluation.eval_script import main
from cgrseg.models import CGRSeg, load_model
from tests.golden_weights import set_golden_weights

ADE20K_CONFIG = "local_configs/cgrseg/cgrseg-t_ade20k_160k.py"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights drawn from names: `camvid` (11 classes) and `ade` (150)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, spec in (("camvid", get_spec("camvid")), ("ade", get_spec("ade20k"))):
        model = CGRSeg("cgrseg_t", spec.num_classes, classes=spec.classes, palette=spec.palette)
        set_golden_weights(model)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture
def checkout(repository: Path, shared_data: Path, tmp_path: Path) -> Path:
    """A folder that looks like a checkout with ADE20K's samples in their place."""
    for name in ("local_configs", "tools", "test.py", "dist_test.sh", "run_cgrseg.py", "cgrseg"):
        (tmp_path / name).symlink_to(repository / name)
    (tmp_path / "data" / "ade").mkdir(parents=True)
    (tmp_path / "data" / "ade" / "ADEChallengeData2016").symlink_to(shared_data / "ade20k_samples")
    return tmp_path


def run(
    *command: str | Path, cwd: Path, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run with this interpreter as `python`; fail with the output unless `status` comes back."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    finished = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert finished.returncode == status, finished.stdout + finished.stderr
    return finished


def camvid_options(shared_data: Path) -> list[str]:
    """Settings that make an evaluation of CamVid small."""
    return [
        "--cfg-options",
        f"data.root={shared_data / 'camvid'}",
        "data.workers=0",
        "data.eval_split=test",
        "test.scale=[128,96]",
        "test.resize=keep_ratio",
    ]


def test_one_process_and_every_output(
    repository: Path, checkpoints: Path, shared_data: Path, tmp_path: Path
) -> None:
    finished = run(
        "python",
        repository / "tools" / "test.py",
        "cgrseg-t_camvid",
        checkpoints / "camvid",
        "--eval",
        "mIoU",
        "mDice",
        "mFscore",
        "--out",
        "labels",
        "--show-dir",
        "shown",
        "--opacity",
        "0.3",
        "--work-dir",
        "here",
        "--limit",
        "2",
        *camvid_options(shared_data),
        cwd=tmp_path,
    )
    result = json.loads((tmp_path / "here" / "evaluation_first2.json").read_text())
    stems = [row["image"] for row in result["per_image"]]
    assert len(stems) == 2
    for stem in stems:
        assert Image.open(tmp_path / "labels" / f"{stem}.png").size == (480, 360)
        assert (tmp_path / "shown" / f"{stem}.jpg").is_file()
    for name in ("IoU", "Acc", "Dice", "Fscore", "Precision", "Recall", "sky", "bicyclist"):
        assert name in finished.stdout
    assert f"mIoU {100 * result['scores']['mIoU']:.2f}" in finished.stdout
    assert f"mDice {100 * result['scores']['mDice']:.2f}" in finished.stdout


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_files(
    repository: Path, checkpoints: Path, shared_data: Path, tmp_path: Path
) -> None:
    written = {}
    for count in (1, 2, 3):
        run(
            "sh",
            repository / "tools" / "dist_test.sh",
            "cgrseg-t_camvid",
            checkpoints / "camvid",
            str(count),
            "--eval",
            "mIoU",
            "mBoundaryIoU",
            "ECE",
            "--limit",
            "5",
            "--work-dir",
            tmp_path / str(count),
            *camvid_options(shared_data),
            cwd=tmp_path,
        )
        folder = tmp_path / str(count)
        with np.load(folder / "evaluation_first5.npz") as found:
            counts = {name: found[name].tolist() for name in found.files}
        written[count] = ((folder / "evaluation_first5.json").read_text(), counts)
    assert written[1] == written[2] == written[3]
    result = json.loads(written[1][0])
    assert result["images"] == 5 and len({row["image"] for row in result["per_image"]}) == 5
    assert result["scores"]["mBoundaryIoU"] is not None and result["scores"]["ECE"] is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["python", "tools/test.py", ADE20K_CONFIG, "CHECKPOINT", "--eval", "mIoU"],
        ["sh", "tools/dist_test.sh", ADE20K_CONFIG, "CHECKPOINT", "4", "--eval", "mIoU"],
        ["bash", "tools/dist_test.sh", ADE20K_CONFIG, "CHECKPOINT", "4", "--eval", "mIoU"],
        ["python", "test.py", ADE20K_CONFIG, "CHECKPOINT", "--eval", "mIoU"],
        ["bash", "dist_test.sh", ADE20K_CONFIG, "CHECKPOINT", "4", "--eval", "mIoU"],
        ["sh", "dist_test.sh", ADE20K_CONFIG, "CHECKPOINT", "4", "--eval", "mIoU"],
    ],
    ids=" ".join,
)
def test_promised_commands_to_the_letter(
    command: list[str], checkout: Path, checkpoints: Path
) -> None:
    finished = run(
        *(str(checkpoints / "ade") if part == "CHECKPOINT" else part for part in command),
        cwd=checkout,
    )
    stored = checkout / "work_dirs" / "cgrseg-t_ade20k_160k" / "evaluation.json"
    result = json.loads(stored.read_text())
    assert result["images"] == 3 and result["settings"]["dataset"] == "ade20k"
    assert f"3 images, in percent: aAcc {100 * result['scores']['aAcc']:.2f}" in finished.stdout
    assert finished.stdout.count("3 images") == 1  # one process prints


@pytest.fixture
def latest(checkout: Path, checkpoints: Path) -> Path:
    """Weights where a training of the default run leaves them."""
    model = load_model(checkpoints / "ade")
    path = checkout / "work_dirs" / "cgrseg-t_ade20k_160k" / "latest.pth"
    path.parent.mkdir(parents=True)
    # As published: nothing but names and numbers.
    torch.save({"state_dict": model.state_dict()}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "python run_cgrseg.py --mode eval "
        "--checkpoint ./work_dirs/cgrseg-t_ade20k_160k/latest.pth --show-dir ./results",
        "python -c \"from run_cgrseg import run_single_gpu; run_single_gpu('eval', "
        "checkpoint='./work_dirs/cgrseg-t_ade20k_160k/latest.pth', show_dir='./results')\"",
        "cgrseg evaluate cgrseg-t_ade20k_160k ./work_dirs/cgrseg-t_ade20k_160k/latest.pth "
        "--show-dir ./results",
        "python -m torch.distributed.run --standalone --nproc-per-node=2 -m cgrseg evaluate "
        "cgrseg-t_ade20k_160k ./work_dirs/cgrseg-t_ade20k_160k/latest.pth --show-dir ./results",
    ],
)
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_promised_evaluations_of_a_run(
    shell: str, command: str, checkout: Path, latest: Path
) -> None:
    finished = run(shell, "-c", command, cwd=checkout)
    result = json.loads((latest.parent / "evaluation.json").read_text())
    assert result["images"] == 3 and result["settings"]["dataset"] == "ade20k"
    assert len(list((checkout / "results").glob("*.jpg"))) == 3
    assert "Traceback" not in finished.stdout + finished.stderr


def test_submission_files(checkout: Path, checkpoints: Path) -> None:
    run(
        "python",
        "tools/test.py",
        "cgrseg-t_ade20k_160k",
        checkpoints / "ade",
        "--format-only",
        "--cfg-options",
        "test.scale=[160,96]",
        cwd=checkout,
    )
    folder = checkout / "work_dirs" / "cgrseg-t_ade20k_160k" / "submission"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"ADE_val_0000000{number}.png" for number in (1, 2, 3)]
    ids = np.concatenate([np.array(Image.open(folder / name)).ravel() for name in names])
    assert ids.min() >= 1 and ids.max() <= 150


def test_a_problem_is_a_message_without_a_trace(
    repository: Path, checkpoints: Path, shared_data: Path, tmp_path: Path
) -> None:
    finished = run(
        "python",
        repository / "tools" / "test.py",
        "cgrseg-t_camvid",
        checkpoints / "ade",
        *camvid_options(shared_data),
        cwd=tmp_path,
        status=2,
    )
    assert "\nerror: " in f"\n{finished.stderr}" and "Traceback" not in finished.stderr
    assert "a network with 150 classes" in finished.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval", "mIuO"], "mIuO"),
        (["--out", "x.pkl"], "pickles are not written"),
        (["--launcher", "pytorch"], "lacks RANK"),
        (["--gpu-id", "99"], "cuda:99"),
        (["--show-dir", "s", "--opacity", "2"], "opacity: 2"),
    ],
)
def test_flags_that_do_not_fit(
    flags: list[str],
    message: str,
    checkpoints: Path,
    shared_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["cgrseg-t_camvid", str(checkpoints / "camvid"), *flags]
    assert main([*arguments, *camvid_options(shared_data)]) == 2
    printed = capsys.readouterr().err
    assert "\nerror: " in f"\n{printed}" and message in printed
    assert not list(tmp_path.iterdir())


def test_measuring_and_a_submission_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["config", "checkpoint", "--eval", "mIoU", "--format-only"])
    assert "--eval: not allowed with --format-only" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_launcher_refuses_what_it_cannot_start(
    shell: str, repository: Path, tmp_path: Path
) -> None:
    script = repository / "tools" / "dist_test.sh"
    assert "usage:" in run(shell, script, "config", "checkpoint", cwd=tmp_path, status=2).stderr
    for wrong in ("0", "two", "-1", ""):
        finished = run(shell, script, "c", "k", wrong, "--eval", "mIoU", cwd=tmp_path, status=2)
        assert f"not '{wrong}'" in finished.stderr


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_launcher_passes_machines_and_arguments_on(
    shell: str, repository: Path, tmp_path: Path
) -> None:
    recorder = tmp_path / "python"
    recorder.write_text('#!/bin/sh\nfor part in "$@"; do printf "%s\\n" "$part"; done\n')
    recorder.chmod(0o755)
    given = ["--cfg-options", "data.root=my data", "x=[1, 2]"]
    finished = run(
        shell,
        repository / "dist_test.sh",
        "my config.py",
        "a b.pth",
        "4",
        *given,
        cwd=tmp_path,
        PYTHON=str(recorder),
        NNODES="2",
        NODE_RANK="1",
        MASTER_ADDR="first",
        PORT="1234",
    )
    assert finished.stdout.splitlines() == [
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--node-rank=1",
        "--master-addr=first",
        "--master-port=1234",
        "--nproc-per-node=4",
        str(repository / "tools" / "test.py"),
        "my config.py",
        "a b.pth",
        "--launcher",
        "pytorch",
        *given,
    ]
