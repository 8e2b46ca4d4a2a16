"""MLflow, the real package with a store in the run folder; and what is said without it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from cgrseg.config.schema import Config
from cgrseg.errors import EnvironmentProblem
from cgrseg.training.journal import mlflow_logger
from cgrseg.training.runner import train
from tests.training.small_run import small_config, write_dataset


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(EnvironmentProblem, match=r'pip install "cgrseg\[mlflow\]"'):
        mlflow_logger(Config(), tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="needs the extra mlflow, which CI leaves out"
)
def test_a_run_is_logged_and_goes_on_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow import MlflowClient

    root = write_dataset(tmp_path / "data")
    config = small_config(
        root,
        tmp_path / "run",
        augment__crop_size=[32, 32],
        schedule__max_iters=2,
        train__evaluate=True,
        train__mlflow=True,
        train__log_images=1,
    )
    train(config, device="cpu")
    name = (tmp_path / "run" / "mlflow_id.txt").read_text()
    config.schedule.max_iters = 3
    train(config, device="cpu", auto_resume=True)
    assert (tmp_path / "run" / "mlflow_id.txt").read_text() == name
    client = MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    logged = client.get_run(name).data
    assert logged.params["schedule/max_iters"] == "2"
    losses = client.get_metric_history(name, "train/loss")
    assert [each.step for each in losses] == [1, 2, 3]
    assert [each.step for each in client.get_metric_history(name, "eval/mIoU")] == [2, 3]
    images = list((tmp_path / "run" / "mlflow_artifacts").rglob("images/*.png"))
    assert len(images) == 2  # one of each evaluation
