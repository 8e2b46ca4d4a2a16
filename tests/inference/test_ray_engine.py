"""Collections on a Ray cluster of this machine (extra `ray`)."""

from __future__ import annotations

import hashlib
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import pyarrow.parquet as pq
import pytest

from cgrseg.errors import ConfigError, DataError
from cgrseg.inference import Predictor, predict_folder
from cgrseg.inference.ray_engine import TABLE, RayCluster, predict_on_ray
from tests.inference.fixtures import BlockBackend, photo

CLUSTER = RayCluster(workers=2)


def write_archive(path: Path, count: int) -> dict[str, bytes]:
    """An archive of images, the fifth of which is damaged, as its address to its content."""
    content = {}
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            data = cv2.imencode(".png", photo(48, 64, number))[1].tobytes()
            data = data[:200] if number == 4 else data
            archive.writestr(f"{number % 2}/{number}.png", data)
            content[f"zip://{number % 2}/{number}.png::{path}"] = data
    return content


def opener(pids: Path, end: bool = False) -> Callable[[], Predictor]:
    """Opens a predictor and leaves a file named like its process."""
    pids.mkdir()

    def open_predictor() -> Predictor:
        (pids / str(os.getpid())).touch()
        predictor = Predictor(BlockBackend(3))
        if end:

            def fatal(*_: object, **__: object) -> None:
                os.kill(os.getpid(), signal.SIGKILL)

            predictor.stream = fatal  # type: ignore[method-assign, assignment]
        return predictor

    return open_predictor


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != TABLE
    }


@pytest.mark.slow
def test_each_image_once_though_a_worker_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = write_archive(tmp_path / "a.zip", 40)
    source = f"zip://::{tmp_path / 'a.zip'}"
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        assert total == 40
        if not killed:
            killed.append(int(next((tmp_path / "pids").iterdir()).name))
            os.kill(killed[0], signal.SIGKILL)

    plain = predict_folder(Predictor(BlockBackend(3)), source, tmp_path / "plain")
    report = predict_on_ray(
        opener(tmp_path / "pids"), source, tmp_path / "ray", CLUSTER, progress=kill
    )
    assert killed and "a worker of Ray died" in caplog.text
    damaged = list(content)[4]
    assert [str(path) for path, _ in report.failed] == [damaged]
    assert damaged in str(report.failed[0][1])
    assert sorted(map(str, report.done)) == sorted(map(str, plain.done))
    assert files_below(tmp_path / "ray") == files_below(tmp_path / "plain")
    rows = {row["image"]: row for row in pq.read_table(tmp_path / "ray" / TABLE).to_pylist()}
    assert sorted(rows) == sorted(content)
    for image, row in rows.items():
        if image == damaged:
            assert "ends early" in row["error"] or "decoded" in row["error"]
            continue
        assert row["error"] is None
        assert row["sha256"] == hashlib.sha256(content[image]).hexdigest()
        assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-4)
        assert 1 / 3 < row["confidence"] <= 1

    # A second call keeps what has a label map and a row.
    first = report.done[0]
    (tmp_path / "ray" / "labels" / f"{first.path.with_suffix('')}.png").unlink()  # type: ignore[union-attr]
    again = predict_on_ray(opener(tmp_path / "more"), source, tmp_path / "ray", CLUSTER)
    assert again.done == [first]
    assert (len(again.kept), len(again.failed)) == (38, 1)
    assert files_below(tmp_path / "ray") == files_below(tmp_path / "plain")
    assert pq.read_table(tmp_path / "ray" / TABLE).to_pylist() == list(rows.values())
    with pytest.raises(DataError, match="results of other overlays"):
        predict_on_ray(opener(tmp_path / "x"), source, tmp_path / "ray", CLUSTER, opacity=0.2)


@pytest.mark.slow
def test_an_image_that_kills_each_worker_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), photo(48, 64))
    report = predict_on_ray(
        opener(tmp_path / "pids", end=True), tmp_path / "in", tmp_path / "out", CLUSTER
    )
    ((image, error),) = report.failed
    assert image == tmp_path / "in" / "a.png" and "died 3 times" in str(error)
    (row,) = pq.read_table(tmp_path / "out" / TABLE).to_pylist()
    assert row["error"] == str(error)


@pytest.mark.slow
def test_a_cluster_without_room_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photo(48, 64))
    with pytest.raises(ConfigError, match="0 GPUs"):
        predict_on_ray(
            opener(tmp_path / "pids"), tmp_path / "a.png", tmp_path / "out", RayCluster(gpus=1)
        )
    assert not (tmp_path / "out" / "labels").exists()
