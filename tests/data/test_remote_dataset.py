"""Data sets at addresses: their local copy, and a training and evaluation with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile
from typer.testing import CliRunner

from cgrseg import addresses, downloading, evaluate
from cgrseg.addresses import Address, local_folder
from cgrseg.cli.main import app
from cgrseg.config.schema import DataConfig
from cgrseg.data.guess import guess_dataset
from cgrseg.errors import ConfigError, DataError
from cgrseg.training.run_log import read_table
from cgrseg.training.runner import train
from tests.training.small_run import differing, small_config, write_dataset

ROOT = "memory://street"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A file system in memory with a data set, whose copies are in a cache of the test."""
    monkeypatch.setenv("CGRSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(addresses, "_copies", {})
    found = fsspec.filesystem("memory")
    found.put(str(write_dataset(tmp_path / "street")), "/street", recursive=True)
    yield found
    for name in [name for name in found.store if name.startswith("/street")]:
        del found.store[name]
    found.pseudo_dirs[:] = [""]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are fetched."""
    names: list[str] = []
    fetch = Address.fetch

    def noting(self: Address, target: Path) -> None:
        names.append(self.name)
        fetch(self, target)

    monkeypatch.setattr(Address, "fetch", noting)
    return names


def new_process() -> Path:
    """The copy as another process finds it."""
    addresses._copies.clear()
    return local_folder(ROOT)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_copy_follows_the_address(system: Any, tmp_path: Path, fetched: list[str]) -> None:
    copy = local_folder(ROOT)
    assert copy.name == "street" and content(copy) == content(tmp_path / "street")
    assert len(fetched) == 17
    fetched.clear()
    assert new_process() == copy and not fetched
    system.pipe_file("/street/images/train/0.png", b"other")
    system.pipe_file("/street/images/train/7.png", b"new")
    system.rm("/street/images/train/1.png")
    (copy / "annotations/train/2.png").unlink()
    new_process()
    assert sorted(fetched) == ["0.png", "2.png", "7.png"]
    system.get("/street", str(tmp_path / "now"), recursive=True)
    assert content(copy) == content(tmp_path / "now")


def test_a_stopped_copy_goes_on(
    system: Any, tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = Address.fetch

    def stopping(self: Address, target: Path) -> None:
        if len(fetched) == 9:
            raise KeyboardInterrupt
        fetch(self, target)

    with monkeypatch.context() as during:
        during.setattr(Address, "fetch", stopping)
        during.setattr(addresses, "_FETCHERS", 1)
        with pytest.raises(KeyboardInterrupt):
            local_folder(ROOT)
    (index,) = (tmp_path / "cache").rglob("index")
    index.write_text(index.read_text() + '["images/tr')  # as a killed process leaves it
    fetched.clear()
    assert content(local_folder(ROOT)) == content(tmp_path / "street")
    assert 8 <= len(fetched) <= 9


def test_a_training_and_an_evaluation(system: Any, tmp_path: Path) -> None:
    changes = {"schedule__max_iters": 1, "train__evaluate": True, "train__eval_interval": 1}
    runs = [tmp_path / "remote", tmp_path / "local"]
    for run, root in zip(runs, (ROOT, str(tmp_path / "street")), strict=True):
        train(small_config(Path(), run, data__root=root, **changes), device="cpu")
    assert differing(runs[0] / "best.pth", runs[1] / "best.pth") == []
    found = evaluate(runs[0], runs[0] / "best.pth", work_dir=tmp_path / "e", progress=False)
    (row,) = read_table(runs[0] / "scores.csv")
    assert found.scores.summary()["mIoU"] == pytest.approx(float(row["mIoU"]), abs=1e-4)


def test_the_check_and_its_command(system: Any) -> None:
    assert guess_dataset(ROOT).root == ROOT
    found = CliRunner().invoke(app, ["data", "check", ROOT])
    assert f"to train: cgrseg train cgrseg-t_custom data.root={ROOT}" in found.output


def test_an_archive(system: Any, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path, "street")
    inside = f"zip://street::{archive}"
    assert content(local_folder(inside)) == content(tmp_path / "street")
    with pytest.raises(ConfigError, match=r"an archive[\s\S]*zip://::file://"):
        local_folder(f"file://{archive}")


def test_what_cannot_be_copied(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no files"):
        local_folder("memory://nowhere")
    for place in ("https://host/set?key=HUSH", "ftp://me:HUSH@host/set"):
        for take in (local_folder, lambda root: DataConfig(root=root)):
            with pytest.raises(ConfigError, match="a user name, a password or a query") as caught:
                take(place)
            assert "HUSH" not in str(caught.value)
    with pytest.raises(ConfigError, match="a pattern"):
        local_folder("memory://str*")
    names: dict[Address, tuple[str, dict[str, Any]]] = {Address("memory://x"): ("../x", {})}
    monkeypatch.setattr(Address, "_listing", lambda self: names)
    with pytest.raises(ConfigError, match="leads out of the folder"):
        local_folder(ROOT)


@pytest.mark.parametrize("end", ["/sub/..", "/..", "/index", "/lock", "/."])
def test_no_name_leads_out_of_the_copy(system: Any, tmp_path: Path, end: str) -> None:
    other = local_folder(ROOT)
    before = content(other)
    (tmp_path / "set" / end.strip("/.") / "sub").mkdir(parents=True)
    for file in ("a.png", "sub/b.png", "index/c.png", "lock/d.png"):
        (tmp_path / "set" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / file).write_bytes(b"x")
    copy = local_folder(f"file://{tmp_path}/set{end}")
    assert copy.parent.name == "files" and copy.parent.parent.parent == other.parent.parent.parent
    assert content(other) == before


def test_markers_of_folders_are_no_files(system: Any, tmp_path: Path) -> None:
    system.store["/street/empty/"] = MemoryFile(system, "/street/empty/", b"")
    assert any(name.endswith("/") for name in system.find("/street"))
    assert content(local_folder(ROOT)) == content(tmp_path / "street")


def test_a_part_that_cannot_be_listed_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CGRSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(addresses, "_copies", {})
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    place = f"file://{write_dataset(tmp_path / 'street')}"
    whole = content(local_folder(place))
    system = fsspec.filesystem("file")
    usual = type(system).ls

    def failing(self: Any, path: str, *given: Any, **more: Any) -> Any:
        if path.endswith("annotations/train"):
            raise OSError("connection reset")
        return usual(self, path, *given, **more)

    monkeypatch.setattr(type(system), "ls", failing)
    addresses._copies.clear()
    assert content(local_folder(place)) == whole  # with a warning
    assert "connection reset" in caplog.text and "copy of an earlier command" in caplog.text
    monkeypatch.setenv("CGRSEG_CACHE", str(tmp_path / "other"))
    addresses._copies.clear()
    with pytest.raises(DataError, match="connection reset"):
        local_folder(place)


def test_most_files_gone_is_refused_and_others_stay(system: Any, tmp_path: Path) -> None:
    copy = local_folder(ROOT)
    (copy / "notes.txt").write_text("of somebody")
    before = content(copy)
    system.rm("/street/images", recursive=True)
    system.rm("/street/annotations/train", recursive=True)
    with pytest.raises(DataError, match="14 of the 17 files"):
        new_process()
    assert content(copy) == before
