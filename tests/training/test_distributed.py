"""Several processes compute what one computes."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cgrseg.devices import Placement
from cgrseg.errors import CGRSegError
from cgrseg.models import load_model
from cgrseg.training.data_source import DatasetSource
from cgrseg.training.run_log import read_table
from cgrseg.training.runner import train
from tests.training.frozen_run import train_frozen
from tests.training.processes import run, run_group
from tests.training.small_run import small_config, weights_of, write_dataset


@pytest.mark.parametrize("iterations", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_two_processes_with_two_images_are_one_with_four(iterations: int, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    run(train_frozen, data, tmp_path / "one", 4, iterations, log=tmp_path / "one.log")
    run_group(2, train_frozen, data, tmp_path / "two", 2, iterations, folder=tmp_path)
    one, two = (read_table(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert len(one) == len(two) == iterations
    losses = [float(row["loss"]) for row in one]
    assert len(set(losses)) == iterations
    assert [float(row["loss"]) for row in two] == pytest.approx(losses, rel=1e-6)
    single = weights_of(tmp_path / "one" / "latest.pth")
    double = weights_of(tmp_path / "two" / "latest.pth")
    assert single.keys() == double.keys()
    for name, value in single.items():
        assert torch.allclose(value, double[name], rtol=1e-6, atol=1e-6), name


def train_and_keep_statistics(root: Path, work_dir: Path) -> int:
    """A training whose processes each write down the statistics that they evaluate with."""
    evaluate = DatasetSource.evaluate

    def note(source: DatasetSource, model: nn.Module, *given: Any, **named: Any) -> Any:
        target = work_dir / f"statistics{os.environ['RANK']}.pth"
        torch.save({name: value.clone() for name, value in model.named_buffers()}, target)
        return evaluate(source, model, *given, **named)

    setattr(DatasetSource, "evaluate", note)  # noqa: B010
    train(evaluated_config(root, work_dir), device="cpu")
    return 0


def evaluated_config(root: Path, work_dir: Path) -> Any:
    return small_config(
        root,
        work_dir,
        augment__crop_size=[32, 32],
        schedule__max_iters=2,
        train__evaluate=True,
        train__ema_decay=0.5,
    )


def test_all_processes_evaluate_the_network_that_is_saved(tmp_path: Path) -> None:
    """Norms that are not synchronised have seen other images in each process."""
    root, run_dir = write_dataset(tmp_path / "data", val=3), tmp_path / "run"
    run_group(2, train_and_keep_statistics, root, run_dir, folder=tmp_path)
    first, second = (
        torch.load(run_dir / f"statistics{rank}.pth", weights_only=True) for rank in (0, 1)
    )
    saved = weights_of(run_dir / "latest.pth")
    running = [name for name in first if name.endswith("running_mean")]
    assert len(running) > 100
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], saved[name]) for name in running)
    # each of the three images counted once, with those weights
    source = DatasetSource(evaluated_config(root, run_dir), Placement("cpu"))
    alone = source.evaluate(load_model(run_dir / "latest.pth"), torch.device("cpu"), 0, 1)
    (row,) = read_table(run_dir / "scores.csv")
    assert float(row["mIoU"]) == pytest.approx(alone.mean_iou, rel=1e-6)
    assert float(row["aAcc"]) == pytest.approx(alone.summary()["aAcc"], rel=1e-6)


def resume_in_own_folder(root: Path, folder: Path) -> int:
    """Two machines without a common file system: the second lacks the checkpoint."""
    config = small_config(root, folder / f"run{os.environ['RANK']}", schedule__max_iters=3)
    try:
        train(config, device="cpu", auto_resume=True)
    except CGRSegError as error:
        print(f"problem: {error}")
        return 1
    return 0


def test_processes_that_start_at_different_iterations_refuse(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    train(small_config(root, tmp_path / "run0", schedule__max_iters=2), device="cpu")
    for said in run_group(2, resume_in_own_folder, root, tmp_path, folder=tmp_path, status=1):
        assert "different iterations (2 in process 0, 0 in process 1)" in said
        assert "copy that of the first machine" in said and "Traceback" not in said


def choose_precision_alone(root: Path, run_dir: Path) -> int:
    """Two machines, of which the second one's processor has no bf16 instructions."""
    has_bf16 = os.environ["RANK"] == "0"
    torch.cpu._is_avx512_bf16_supported = lambda: has_bf16
    torch.cpu._is_amx_tile_supported = lambda: False
    platform.machine = lambda: "x86_64"
    config = small_config(root, run_dir, train__precision="auto")
    try:
        train(config, device="cpu")
    except CGRSegError as error:
        print(f"problem: {error}")
        return 1
    return 0


def test_processes_that_choose_other_precisions_refuse(tmp_path: Path) -> None:
    root, run_dir = write_dataset(tmp_path / "data"), tmp_path / "run"
    for said in run_group(2, choose_precision_alone, root, run_dir, folder=tmp_path, status=1):
        assert "different precisions (bf16 in process 0, fp32 in process 1)" in said
        assert "set train.precision=fp32" in said and "Traceback" not in said


def one_with_a_damaged_image(root: Path, work_dir: Path) -> int:
    """A training whose second process meets images that cannot be read any more."""
    from cgrseg.training.module import TrainingModule
    from cgrseg.training.train_script import main

    if os.environ["RANK"] == "1":
        root = root.with_name("damaged")
    finish = TrainingModule.finish_iteration

    def damage(module: TrainingModule) -> None:
        finish(module)
        for path in (root.with_name("damaged") / "images" / "train").iterdir():
            path.write_bytes(b"no picture")

    setattr(TrainingModule, "finish_iteration", damage)  # noqa: B010
    options = ["data.dataset=custom", f"data.root={root}", "data.workers=0", "data.check=false"]
    options += ["augment.scale=[64,64]", "augment.crop_size=[32,32]", "train.batch_size=2"]
    arguments = ["cgrseg-t_custom", "--device", "cpu", "--work-dir", str(work_dir)]
    return main([*arguments, "--no-validate", "--cfg-options", *options, "schedule.max_iters=9"])


def test_a_problem_of_another_process_is_printed_and_ends_all(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    damaged = write_dataset(tmp_path / "damaged")
    first, second = run_group(
        2, one_with_a_damaged_image, root, tmp_path / "run", folder=tmp_path, status=2
    )
    assert f"[process 1] error: {damaged / 'images' / 'train'}" in second
    assert "error: another process of this training: it has ended" in first
    assert "Traceback" not in first + second
