"""Files at addresses, in memory, in archives and from a server in this process."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest

from cgrseg import downloading
from cgrseg.addresses import Address
from cgrseg.data.label_files import read_label
from cgrseg.errors import CGRSegError, DataError, EnvironmentProblem
from cgrseg.inference import Predictor, predict_folder
from cgrseg.inference.autolabel import autolabel
from cgrseg.inference.image_sources import find_images
from tests.inference.fixtures import BlockBackend, photo


class Server(BaseHTTPRequestHandler):
    """Answers with the status in the path; `503-then-200` fails twice."""

    content = b""
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        status = self.path.partition("?")[0].strip("/").partition("/")[0]
        if status == "503-then-200":
            status = "503" if self.asked < 3 else "200"
        self.send_response(int(status))
        body = self.content if status == "200" else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    Server.content = encoded(0)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "PAUSE", 0.0)


@pytest.fixture
def stored() -> Iterator[str]:
    """A folder in memory with three images, one of them damaged, and another file."""
    system = fsspec.filesystem("memory")
    for name in ("a.png", "deep/b.png"):
        system.pipe_file(f"/set/{name}", encoded(len(name)))
    system.pipe_file("/set/c.png", encoded(1)[:200])
    system.pipe_file("/set/notes.txt", b"text")
    yield "memory://set"
    system.rm("/set", recursive=True)


def encoded(seed: int) -> bytes:
    return cv2.imencode(".png", photo(48, 64, seed))[1].tobytes()


def predictor() -> Predictor:
    return Predictor(BlockBackend(3))


def test_a_folder_a_pattern_and_a_file(stored: str) -> None:
    found = find_images(stored)
    assert [one.name for one in found] == ["a", "c", "deep/b"]
    assert [str(one.path) for one in found][2] == "memory:///set/deep/b.png"
    assert [one.name for one in find_images(f"{stored}/*.png")] == ["a", "c"]
    assert [one.name for one in find_images(f"{stored}/**/*.png")] == ["a", "c", "b"]
    assert [one.name for one in find_images(f"{stored}/deep/b.png")] == ["b"]
    assert find_images([stored, found[0].path.url]) == found  # type: ignore[union-attr]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_label_maps_equal_those_of_files(stored: str, tmp_path: Path, batch_size: int) -> None:
    system = fsspec.filesystem("memory")
    system.get("/set", str(tmp_path / "set"), recursive=True)
    reports = [
        predict_folder(predictor(), each, tmp_path / out, batch_size=batch_size)
        for each, out in ((stored, "remote"), (tmp_path / "set", "local"))
    ]
    assert [len(each.done) for each in reports] == [2, 2]
    ((gone, error),) = reports[0].failed
    assert str(gone) == "memory:///set/c.png" and str(gone) in str(error)
    for part in ("labels/a.png", "labels/deep/b.png"):
        remote, local = (read_label(tmp_path / out / part) for out in ("remote", "local"))
        assert np.array_equal(remote, local)
    again = predict_folder(predictor(), stored, tmp_path / "remote")
    assert (len(again.kept), len(again.done), len(again.failed)) == (2, 0, 1)
    system.pipe_file("/set/a.png", encoded(9))  # another image under the same address
    again = predict_folder(predictor(), stored, tmp_path / "remote")
    assert [str(path) for path in again.done] == ["memory:///set/a.png"]


def test_images_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("x/1.png", "x/2.png", "y/1.png"):
            archive.writestr(name, encoded(len(name)))
    whole = f"zip://::{tmp_path / 'a.zip'}"
    assert [one.name for one in find_images(whole)] == ["x/1", "x/2", "y/1"]
    assert [one.name for one in find_images(f"zip://x/*.png::{tmp_path / 'a.zip'}")] == ["1", "2"]
    labeled = dict(predictor().stream(find.path for find in find_images(whole)))
    assert len(labeled) == 3
    assert predictor()(f"zip://y/1.png::{tmp_path / 'a.zip'}").labels.shape == (48, 64)
    with pytest.raises(DataError, match="no such file"):
        predictor()(f"zip://y/7.png::{tmp_path / 'a.zip'}")


def test_automatic_labels_get_copies_of_the_images(stored: str, tmp_path: Path) -> None:
    report = autolabel(predictor(), f"{stored}/a.png", tmp_path, confidence=0.0, show=False)
    assert report.labeled == 1
    (copy,) = (tmp_path / "images").rglob("*.png")
    assert copy.read_bytes() == fsspec.filesystem("memory").cat_file("/set/a.png")


def test_temporary_errors_are_tried_again(server: str) -> None:
    Server.asked = 0
    assert Address(f"{server}/503-then-200/a.png").read("an image") == Server.content
    assert Server.asked == 3


@pytest.mark.parametrize(
    ("place", "message", "times"),
    [
        ("404/a.png", "there is no such file", 1),
        ("403/a.png", "access is refused .the server answers 403", 1),
        ("400/a.png", "it cannot be read .the server answers 400", 1),
        ("503/a.png", "5 times in a row .the server answers 503", 5),
    ],
)
def test_what_a_server_refuses(server: str, place: str, message: str, times: int) -> None:
    Server.asked = 0
    with pytest.raises(DataError, match=message) as caught:
        predictor()(f"{server}/{place}?signature=secret")
    assert f"{server}/{place}" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert Server.asked == times


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("nowhere://a/b.png", DataError, "Protocol not known: nowhere"),
        ("memory://missing", DataError, "no such file|no images"),
        ("zip://::/missing.zip", DataError, "no such file"),
        ("dvc://a/", EnvironmentProblem, "pip install dvc"),
    ],
)
def test_addresses_that_give_nothing(
    address: str, kind: type[CGRSegError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message) as caught:
        for image in find_images(address):
            predictor()(image.path)
    assert str(caught.value).startswith(address.partition("?")[0])


def test_only_addresses_are_addresses() -> None:
    for path in (
        "a/b.jpg",
        "C:\\images",
        "C:/images",
        "test.mode=slide",
        Path("s3://a/b"),
        b"s3://",
    ):
        assert Address.of(path) is None
    for text in ("s3://a/b", "zip://::a.zip", "simplecache::s3://a/b", "hf://datasets/a/b"):
        assert Address.of(text) == Address(text)
    assert str(Address("sftp://me:word@host/a.jpg")) == "sftp://host/a.jpg"
    assert str(Address("hf://datasets/me/set@main/a.jpg")) == "hf://datasets/me/set@main/a.jpg"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://user:p@ss@host/a.jpg", "ftp://host/a.jpg"),
        ("HTTPS://h/a.jpg?sig=SECRET", "HTTPS://h/a.jpg"),
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("zip://a.jpg::https://u:p@h/x.zip?t=1", "zip://a.jpg::https://h/x.zip"),
    ],
)
def test_secrets_are_hidden(url: str, shown: str) -> None:
    address = Address(url)
    assert str(address) == shown and "SECRET" not in repr(address) and "p@" not in repr(address)


def test_secrets_are_hidden_in_the_words_of_others() -> None:
    address = Address("s3://key:SECRET@bucket/f/")
    found = address.hidden_in('Invalid bucket name "key:SECRET@bucket" in s3://key:SECRET@bucket/f')
    assert found == 'Invalid bucket name "bucket" in s3://bucket/f'


@pytest.mark.parametrize("member", ["../../evil.png", "..\\evil.png", "C:/evil.png"])
def test_members_that_lead_out_of_the_folder_are_refused(member: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"x")
    with pytest.raises(DataError, match="leads out of the folder of the results"):
        find_images(f"zip://::{path}")
