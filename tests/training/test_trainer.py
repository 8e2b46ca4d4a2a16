"""Devices and processes: what is found, and what is said when it is not there."""

from __future__ import annotations

import warnings

import pytest
import torch

from cgrseg.config.schema import Config
from cgrseg.devices import Placement, find_placement
from cgrseg.errors import ConfigError, EnvironmentProblem
from cgrseg.training.trainer import settle_precision, trainer_options

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_without_a_gpu_the_cpu_is_used_with_a_log_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A log line, not a Python warning: `python -W error` must not end a training."""
    gpus(monkeypatch, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_placement() == Placement("cpu")
    assert "no GPU was found" in caplog.text


def test_a_gpu_is_taken_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    assert find_placement().torch_device == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("device", "count", "message"),
    [
        ("cuda", 0, "no NVIDIA GPU"),
        ("cuda:2", 2, "numbered from 0"),
        ("mps", 0, "no Apple GPU"),
    ],
)
def test_what_was_asked_for_must_be_there(
    monkeypatch: pytest.MonkeyPatch, device: str, count: int, message: str
) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(EnvironmentProblem, match=message):
        find_placement(device)


def test_unknown_devices_are_refused() -> None:
    for device in ("tpu", "cuda:first"):
        with pytest.raises(ConfigError, match="cuda:<number>"):
            find_placement(device)


def test_more_processes_than_gpus_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentProblem, match=r"4 processes on a machine with 2 GPU") as caught:
        find_placement()
    assert "train.accumulate=2" in str(caught.value)


def test_one_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 4)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match="cuda:2 for 2 processes"):
        find_placement("cuda:2")
    assert find_placement("cuda").local_rank == 1


def test_processes_of_torchrun_and_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(LAUNCHERS[:4], ("5", "8", "1", "4"), strict=True):
        monkeypatch.setenv(name, value)
    placement = find_placement("cpu")
    assert (placement.rank, placement.world_size, placement.local_rank) == (5, 8, 1)
    assert trainer_options(Config(), placement)["num_nodes"] == 2
    for name in LAUNCHERS[:4]:
        monkeypatch.delenv(name)
    for name, value in (
        ("SLURM_STEP_NUM_TASKS", "6"),
        ("SLURM_PROCID", "4"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_STEP_NUM_NODES", "2"),
    ):
        monkeypatch.setenv(name, value)
    placement = find_placement("cpu")
    assert (placement.rank, placement.world_size, placement.local_world_size) == (4, 6, 3)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert find_placement("cpu") == Placement("cpu")


def test_norms_are_synchronised_between_gpus_only() -> None:
    several = {"rank": 0, "local_rank": 0, "world_size": 2, "local_world_size": 2}
    on_gpus = Placement("cuda", None, **several)
    assert trainer_options(Config(), on_gpus)["sync_batchnorm"] is True
    off = Config.model_validate({"model": {"sync_norm": False}})
    assert trainer_options(off, on_gpus)["sync_batchnorm"] is False
    assert trainer_options(Config(), Placement("cpu", None, **several))["sync_batchnorm"] is False
    assert trainer_options(Config(), Placement("cuda", 3))["sync_batchnorm"] is False
    assert trainer_options(Config(), Placement("cuda", 3))["devices"] == [3]


def test_half_precision_needs_a_gpu() -> None:
    config = Config.model_validate({"train": {"precision": "fp16"}})
    with pytest.raises(ConfigError, match=r"train\.precision=auto"):
        trainer_options(config, Placement("cpu"))


def test_auto_is_settled_once_and_kept_on_another_machine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    auto = Config.model_validate({"train": {"precision": "auto"}})
    here = Placement("cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    config, words = settle_precision(auto, here)
    assert config.train.precision == "fp32" and words.startswith("fp32 (")
    assert caplog.text == ""
    config, words = settle_precision(auto, here, stored="bf16")
    assert config.train.precision == "bf16" and words == "bf16 (as this run began)"
    assert "bf16 is slower than fp32" in caplog.text
    explicit = Config.model_validate({"train": {"precision": "fp64"}})
    assert settle_precision(explicit, here, stored="bf16") == (explicit, "fp64")
