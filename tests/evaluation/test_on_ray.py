"""Evaluations on a Ray cluster of this machine (extra `ray`)."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cgrseg.config import load_config
from cgrseg.errors import ConfigError, DataError
from cgrseg.evaluation import evaluate, evaluate_model
from cgrseg.evaluation.on_ray import evaluate_on_ray
from cgrseg.inference.ray_engine import RayCluster
from cgrseg.models import CGRSeg
from tests.evaluation.test_loop import NATIVE, Items
from tests.inference.fixtures import BlockBackend
from tests.inference.test_ray_engine import CLUSTER, opener
from tests.training.small_run import small_config, write_dataset


class Fatal:
    """A split of one image, whose reading ends a worker, and the tests if they read it."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


METRICS = ("mIoU", "mBoundaryIoU", "ECE")


@pytest.mark.slow
def test_the_result_is_that_of_one_process_though_a_worker_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items, killed = Items(count=30, classes=3), False
    classes = ("a", "b", "c")

    def kill(done: int, total: int) -> None:
        nonlocal killed
        assert total == 29
        if not killed:
            killed = True
            os.kill(int(next((tmp_path / "pids").iterdir()).name), signal.SIGKILL)

    found = evaluate_on_ray(
        opener(tmp_path / "pids"),
        items,
        NATIVE,
        CLUSTER,
        checkpoint="none",
        stems=[str(number) for number in range(30)],
        classes=classes,
        metrics=METRICS,
        limit=29,
        progress=kill,
    )
    plain = evaluate_model(
        BlockBackend(3), items, NATIVE, classes=classes, metrics=METRICS, limit=29
    )
    assert killed and "a worker of Ray died" in caplog.text
    assert found.stems == plain.stems and found.as_json() == plain.as_json()
    items.rows[17]["label"] = items.rows[17]["label"][1:]
    with pytest.raises(DataError, match="17"):
        evaluate_on_ray(
            opener(tmp_path / "more"),
            items,
            NATIVE,
            CLUSTER,
            checkpoint="none",
            stems=[str(number) for number in range(30)],
            classes=classes,
        )
    with pytest.raises(ConfigError, match="another network in the workers"):
        evaluate_on_ray(
            opener(tmp_path / "other"),
            items,
            NATIVE,
            CLUSTER,
            checkpoint="none",
            stems=[],
            weights="of another network",
            classes=classes,
        )


@pytest.mark.slow
def test_an_image_that_kills_each_worker_ends_the_evaluation_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="street/7: the worker died 3 times"):
        evaluate_on_ray(
            opener(tmp_path / "pids"),
            Fatal(),
            NATIVE,
            RayCluster(workers=1),
            checkpoint="none",
            stems=["street/7"],
            classes=("a", "b", "c"),
        )


@pytest.mark.slow
def test_a_checkpoint_with_its_label_maps(tmp_path: Path) -> None:
    config = small_config(write_dataset(tmp_path / "data"), tmp_path / "run")
    model = CGRSeg("cgrseg_t", 3, classes=("sky", "ground", "thing"), context_blocks=1)
    model.save_pretrained(tmp_path / "network")
    results = [
        evaluate(
            config,
            tmp_path / "network",
            device="cpu",
            threads=1,
            out=tmp_path / name,
            work_dir=tmp_path / f"{name}_scores",
            cluster=cluster,
            progress=False,
        )
        for name, cluster in (("plain", None), ("ray", RayCluster(workers=1)))
    ]
    assert results[0].as_json() == results[1].as_json()
    maps = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.png")}
        for name in ("plain", "ray")
    ]
    assert len(maps[0]) == 2 and maps[0] == maps[1]


def test_what_workers_cannot_open_alike_is_refused() -> None:
    config = load_config("cgrseg-t_camvid")
    with pytest.raises(ConfigError, match="network in memory"):
        evaluate(config, CGRSeg("cgrseg_t", 3, context_blocks=1), cluster=CLUSTER)
    with pytest.raises(ConfigError, match="fp32, bf16 or fp16"):
        evaluate(config, "best.pth", precision="auto", cluster=CLUSTER)


def test_options_of_ray_alone_are_refused() -> None:
    from typer.testing import CliRunner

    from cgrseg.cli.main import app

    found = CliRunner().invoke(app, ["evaluate", "x.pth", "--workers", "2"])
    assert isinstance(found.exception, ConfigError) or "without --engine ray" in found.output
