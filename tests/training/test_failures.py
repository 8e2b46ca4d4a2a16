"""What a training says when it cannot go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cgrseg.config.schema import Config
from cgrseg.errors import ConfigError, DataError, EnvironmentProblem
from cgrseg.training.failures import TrainingProblem, is_out_of_memory, out_of_memory
from cgrseg.training.module import step_seed
from cgrseg.training.runner import train
from tests.training.small_run import small_config, write_dataset


def test_a_loss_that_is_no_number_names_the_files_and_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "data")
    # Weights that overflow from the third iteration on: the loss of that one is no number.
    config = small_config(
        root,
        tmp_path / "run",
        optimizer__lr=1e30,
        schedule__warmup_iters=0,
        train__checkpoint_interval=1,
        schedule__max_iters=20,
    )
    with pytest.raises(TrainingProblem, match="not a number") as caught:
        train(config, device="cpu")
    saved = json.loads((tmp_path / "run" / "bad_batch.json").read_text())
    assert f"iteration {saved['iteration']}" in str(caught.value)
    assert len(saved["batch"]) == 2
    for entry in saved["batch"]:
        assert Path(entry["image"]).is_file() and Path(entry["label"]).is_file()
        assert entry["image"] in str(caught.value)
    assert "optimizer.clip_norm=1" in str(caught.value)
    # the last checkpoint is from before
    kept = torch.load(tmp_path / "run" / "latest.pth", weights_only=True)
    assert kept["meta"]["iteration"] == saved["iteration"] - 1


def test_out_of_memory_names_what_shrinks_it() -> None:
    config = Config.model_validate(
        {"model": {"name": "cgrseg_l"}, "train": {"batch_size": 16, "accumulate": 2}}
    )
    text = str(out_of_memory(config, "GPU 0", torch.OutOfMemoryError("CUDA out of memory.")))
    assert "cgrseg_l on batches of 16 images of 512x512 in fp32" in text
    ideas = [
        "train.batch_size=8 with train.accumulate=4",
        "precision=bf16",
        "[256,256]",
        "cgrseg_t",
    ]
    places = [text.index(idea) for idea in ideas]
    assert places == sorted(places)


def test_other_errors_are_no_memory_errors() -> None:
    assert is_out_of_memory(RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.skipif(shutil.which("sh") is None, reason="limits memory with the shell's ulimit")
def test_a_training_that_runs_out_of_memory(tmp_path: Path, repository: Path) -> None:
    root = write_dataset(tmp_path / "data")
    options = [
        "data.dataset=custom",
        f"data.root={root}",
        "data.workers=0",
        "augment.scale=[1024,1024]",
        "augment.crop_size=[1024,1024]",
        "train.batch_size=6",
        "train.evaluate=false",
    ]
    result = subprocess.run(
        [
            "sh",
            "-c",
            'ulimit -v 5000000 && exec "$0" "$@"',
            sys.executable,
            str(repository / "tools" / "train.py"),
            "cgrseg-t_ade20k_160k",
            "--device",
            "cpu",
            "--work-dir",
            "run",
            "--cfg-options",
            *options,
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "out of memory while training cgrseg_t" in result.stderr
    assert "train.batch_size=3 with train.accumulate=2" in result.stderr
    assert "Traceback" not in result.stderr


def test_one_image_per_process_is_too_few_for_small_crops(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    with pytest.raises(ConfigError, match=r"train\.batch_size=2"):
        train(small_config(root, tmp_path / "run", train__batch_size=1), device="cpu")


def test_missing_data_is_told_before_anything_is_made(tmp_path: Path) -> None:
    config = Config.model_validate(
        {"work_dir": str(tmp_path / "run"), "data": {"root": str(tmp_path / "ade")}}
    )
    with pytest.raises(DataError) as caught:
        train(config, device="cpu")
    assert str(tmp_path / "ade") in str(caught.value)
    assert "what to do" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_first_iteration(
    tmp_path: Path,
) -> None:
    root = write_dataset(tmp_path / "data")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="choose another folder"):
        train(small_config(root, tmp_path / "file" / "run"), device="cpu")


def test_damaged_image_stops_with_its_name(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", train=2)
    broken = root / "images" / "train" / "1.png"
    broken.write_bytes(b"no picture")
    for workers in (0, 1):
        config = small_config(
            root, tmp_path / f"run{workers}", data__workers=workers, data__check=False
        )
        with pytest.raises(DataError) as caught:
            train(config, device="cpu")
        assert str(caught.value).startswith(str(broken))
        assert "Traceback" not in str(caught.value)


def test_seeds_of_steps_are_all_different() -> None:
    seeds = {
        step_seed(seed, iteration, micro_step, rank)
        for seed in range(3)
        for iteration in range(20)
        for micro_step in range(2)
        for rank in range(4)
    }
    assert len(seeds) == 3 * 20 * 2 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    # well mixed: about half of the lowest bits are set
    assert 0.4 < np.mean([seed & 1 for seed in seeds]) < 0.6
