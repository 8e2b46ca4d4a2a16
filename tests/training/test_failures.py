"""What a training says when it cannot go on."""

from __future__ import annotations

import errno
import json
import multiprocessing
import resource
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from cgrseg.config.schema import Config
from cgrseg.errors import ConfigError, DataError, EnvironmentProblem
from cgrseg.surroundings import (
    available_memory,
    is_out_of_memory,
    machine_problem,
    readable_machine_problems,
)
from cgrseg.training.failures import (
    LostProcess,
    TrainingProblem,
    out_of_memory,
    readable_failures,
    refuse_too_large,
)
from cgrseg.training.module import step_seed
from cgrseg.training.runner import train
from cgrseg.training.train_script import main
from tests.training import processes
from tests.training.small_run import small_config, write_dataset


def test_a_loss_that_is_no_number_names_the_files_and_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "data")
    # Weights that overflow from the third iteration on: the loss of that one is no number.
    config = small_config(
        root,
        tmp_path / "run",
        optimizer__lr=1000,
        optimizer__head_multiplier=10_000,
        schedule__warmup_iters=0,
        train__checkpoint_interval=1,
        schedule__max_iters=20,
    )
    with pytest.raises(TrainingProblem, match="non-finite, at learning rate") as caught:
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
    assert f"resume from {tmp_path / 'run' / 'latest.pth'} with auto_resume=True" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("batch", "idea"),
    [
        (3, "train.batch_size=1 with train.accumulate=3"),
        (6, "batch_size=3 with train.accumulate=2"),
    ],
)
def test_smaller_batches_keep_the_images_of_a_step(batch: int, idea: str) -> None:
    config = Config.model_validate({"train": {"batch_size": batch}})
    assert idea in str(out_of_memory(config, "cpu", torch.OutOfMemoryError("out of memory")))


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


@pytest.mark.parametrize(
    "settings",
    [
        {"train": {"batch_size": 65536}, "data": {"workers": 0}},
        {"augment": {"crop_size": (32736, 32736)}, "train": {"batch_size": 1000}},
        {"train": {"batch_size": 4096}, "data": {"workers": 512}},
    ],
)
def test_what_cannot_fit_into_memory_is_refused_before_it_is_tried(
    settings: dict[str, Any],
) -> None:
    if available_memory() is None:
        pytest.skip("this system does not say how much memory is free")
    with pytest.raises(EnvironmentProblem, match=r"at least .* GiB are needed") as caught:
        refuse_too_large(Config.model_validate(settings), "cpu", "cpu")
    assert "train.batch_size=" in str(caught.value)


def test_usual_trainings_are_not_refused() -> None:
    refuse_too_large(Config.model_validate({"data": {"workers": 2}}), "cpu", "cpu")


def test_memory_is_found_behind_a_later_error() -> None:
    """PyTorch's writer fails once more while the first error is handled."""
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise RuntimeError("unexpected pos 1 vs 2") from None
    except RuntimeError as error:
        problem = machine_problem(error, "latest.pth")
    assert problem is not None and "memory ran out" in str(problem)
    assert machine_problem(RuntimeError("shapes cannot be multiplied")) is None
    assert machine_problem(ValueError("out of memory")) is None


def test_shared_memory_that_is_read_only_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As /dev/shm is in some containers; semaphores are made there."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", refuse)
    with pytest.raises(EnvironmentProblem, match="shared memory"), readable_machine_problems():
        try:
            multiprocessing.get_context("spawn").Lock()
        except OSError:
            raise RuntimeError("Please call `iter(combined_loader)` first.") from None


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError(24, "Too many open files"), "open files"),
        (OSError(11, "Resource temporarily unavailable"), "thread or process"),
        (RuntimeError("can't start new thread"), "thread or process"),
        (RuntimeError("unable to write to file </torch_1>"), "shared memory"),
        (OSError(12, "Cannot allocate memory"), "memory ran out"),
        (cv2.error("(-4:Insufficient memory) Failed to allocate 9 bytes"), "memory ran out"),
    ],
)
def test_what_the_machine_lacks_is_told(error: Exception, found: str) -> None:
    assert found in str(machine_problem(error, "a.jpg"))
    with pytest.raises(EnvironmentProblem, match=found), readable_machine_problems():
        raise error


def test_other_errors_are_no_memory_errors() -> None:
    assert is_out_of_memory(RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def train_in_little_memory(root: Path, folder: Path) -> int:
    """A training whose addresses end 2 GiB above those that its imports took."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), used + (2 << 30)))
    options = [
        "data.dataset=custom",
        f"data.root={root}",
        "data.workers=0",
        "augment.scale=[1024,1024]",
        "augment.crop_size=[1024,1024]",
        "train.batch_size=6",
        "train.evaluate=false",
    ]
    arguments = ["cgrseg-t_ade20k_160k", "--device", "cpu", "--work-dir", str(folder)]
    return main([*arguments, "--cfg-options", *options])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory on Linux")
def test_a_training_that_runs_out_of_memory(tmp_path: Path) -> None:
    root, log = write_dataset(tmp_path / "data"), tmp_path / "output.log"
    process = processes.start(train_in_little_memory, root, tmp_path / "run", log=log)
    said = processes.finish(process, log, status=2)
    assert "out of memory while training cgrseg_t" in said
    assert "train.batch_size=3 with train.accumulate=2" in said
    assert "Traceback" not in said


def test_loader_processes_and_lost_fellows_are_explained(tmp_path: Path) -> None:
    """What PyTorch says of them, as it says it."""
    cases = [
        (
            "DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that "
            "dataloader's workers are out of shared memory.",
            EnvironmentProblem,
            "data.workers=0",
        ),
        (
            "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent "
            "call last):\n  ...\nRuntimeError: unable to write to file </torch_32_1_0>: No space "
            "left on device (28)",
            EnvironmentProblem,
            "loader processes: RuntimeError: unable to write to file",
        ),
        (
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer "
            "[127.0.0.1]:35741",
            LostProcess,
            "its own message tells why",
        ),
    ]
    for text, kind, part in cases:
        with pytest.raises(kind) as caught, readable_failures(Config(), "cpu", tmp_path):
            raise RuntimeError(text)
        assert part in str(caught.value) and "Traceback" not in str(caught.value)
    with pytest.raises(RuntimeError, match="a bug"), readable_failures(Config(), "cpu", tmp_path):
        raise RuntimeError("a bug")


def test_a_problem_is_not_hidden_by_the_ones_that_follow(tmp_path: Path) -> None:
    """A full disk makes loggers fail again while the first failure is cleaned up."""
    with (
        pytest.raises(EnvironmentProblem, match="the first"),
        readable_failures(Config(), "cpu", tmp_path),
    ):
        try:
            raise EnvironmentProblem("the first")
        finally:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_one_image_per_process_is_too_few_for_small_crops(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    with pytest.raises(ConfigError, match=r"train\.batch_size=2"):
        train(small_config(root, tmp_path / "run", train__batch_size=1), device="cpu")
    growing = {"augment__crop_size": [128, 128], "augment__progressive": [1, 0.5]}
    with pytest.raises(ConfigError, match=r"1 image of 64x64, the smallest of augment\.pro"):
        train(small_config(root, tmp_path / "run", train__batch_size=1, **growing), device="cpu")
    assert not (tmp_path / "run" / "config.json").exists()  # refused before the first iteration


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
