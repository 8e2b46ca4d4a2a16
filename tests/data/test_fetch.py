"""`cgrseg data fetch` against a loopback server: every dataset's form, every interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from cgrseg import datasets, downloading
from cgrseg.cli.data import data as app
from cgrseg.data import fetch
from cgrseg.data.convert.formats import formats
from cgrseg.data.convert.runner import run_conversion
from cgrseg.data.fetch import fetch_dataset
from cgrseg.data.fetch.unpack import Damaged, unpack
from cgrseg.data.label_files import read_label
from cgrseg.datasets import get_spec
from cgrseg.datasets.spec import Archive
from cgrseg.downloading import download
from cgrseg.errors import CGRSegError, ConfigError, DataError, EnvironmentProblem
from tests.data.archives import FORMS, FileServer, serving, tarred, zipped

BY_ADDRESS = [name for name in FORMS if name != "cityscapes"]
ADE = "ADEChallengeData2016.zip"


@functools.cache
def archives(name: str) -> dict[str, bytes]:
    if name == "coco_stuff10k":
        pytest.importorskip("scipy.io", reason="MATLAB files need the extra 'convert'")
    return FORMS[name]()


@pytest.fixture(scope="module")
def one_server() -> Iterator[FileServer]:
    with serving() as server:
        yield server


@pytest.fixture
def server(one_server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """The server; the catalogue with its addresses, and with the digests of the small archives."""
    one_server.reset()
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    catalogue = {name: get_spec(name) for name in datasets.list_specs()}

    def publish(name: str) -> None:
        one_server.files |= archives(name)
        spec = catalogue[name]
        assert spec.download is not None
        small = tuple(
            dataclasses.replace(
                archive,
                addresses=tuple(one_server.address + archive.name for _ in archive.addresses[:1]),
                size=len(one_server.files[archive.name]),
                digest=archive.digest
                and f"sha1:{hashlib.sha1(one_server.files[archive.name]).hexdigest()}",
            )
            for archive in spec.download.archives
        )
        changed = dataclasses.replace(spec.download, archives=small)
        catalogue[name] = dataclasses.replace(spec, download=changed)

    one_server.publish = publish  # type: ignore[attr-defined]
    monkeypatch.setattr(datasets, "_catalogue", lambda: catalogue)
    return one_server


@pytest.fixture
def ade(server: FileServer) -> FileServer:
    server.publish("ade20k")  # type: ignore[attr-defined]
    return server


def run(*arguments: object) -> Result:
    environment = {"COLUMNS": "200", "NO_COLOR": "1"}
    return CliRunner(env=environment).invoke(app, ["fetch", *map(str, arguments)])


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder, but what names places and times."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name not in ("conversion.json", "fetch.json")
    }


def content(name: str) -> dict[str, bytes]:
    """The entries of all archives of a dataset."""
    found: dict[str, bytes] = {}
    for archive, packed in archives(name).items():
        if archive.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(packed)) as opened:
                found |= {each: opened.read(each) for each in opened.namelist() if each[-1] != "/"}
        elif archive.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
                for each in opened.getmembers():
                    if each.isfile():
                        stream = opened.extractfile(each)
                        assert stream is not None
                        found[each.name] = stream.read()
        else:
            found[archive] = packed
    return found


# ---- each dataset ---------------------------------------------------------------------------

LAID_OUT = {
    "ade20k": ("ADEChallengeData2016/", ["images/training", "annotations/validation"]),
    "coco_stuff164k": ("", ["images/train2017", "annotations/val2017"]),
    "voc2012": ("VOCdevkit/VOC2012/", ["JPEGImages", "SegmentationClass"]),
    "cityscapes": ("", ["leftImg8bit/train/aachen", "gtFine/val/aachen"]),
}


@pytest.mark.parametrize("name", BY_ADDRESS)
def test_each_dataset_is_downloaded_laid_out_and_checked(
    server: FileServer, name: str, tmp_path: Path
) -> None:
    server.publish(name)  # type: ignore[attr-defined]
    root = tmp_path / "data" / name
    result = run(name, "--out", root, "--yes", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert ".cgrseg.partial" not in result.output
    assert "0 errors" in result.stdout and "to train: cgrseg train cgrseg-t_" in result.stdout
    spec = get_spec(name)
    assert spec.download is not None and spec.download.terms in result.stdout
    written = tree(root)
    if name in LAID_OUT:
        top, places = LAID_OUT[name]
        images = {place: each for place, each in content(name).items()}
        for path, given_content in written.items():
            origin = path.partition("/")[2] if name == "coco_stuff164k" else top + path
            assert images[origin] == given_content
        assert all((root / place).is_dir() for place in places)
    else:
        assert same_as_converted(name, root, tmp_path / "by hand")
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        ["data"] if name in LAID_OUT else ["by hand", "data"]
    )
    assert not [p for p in root.iterdir() if p.name.startswith(".") or p.name == "archives"]
    record = json.loads((root / "fetch.json").read_text())
    sums = {each: hashlib.sha256(packed).hexdigest() for each, packed in archives(name).items()}
    assert {each["name"]: each["sha256"] for each in record["archives"]} == sums
    asked = len(server.asked)
    again = run(name, "--out", root, "--yes")
    assert again.exit_code == 0 and "there already; nothing was downloaded" in again.stdout
    assert (len(server.asked), tree(root)) == (asked, written)


def same_as_converted(name: str, root: Path, by_hand: Path) -> bool:
    """Whether labels and images are those of unpacking and converting by hand."""
    for place, given_content in content(name).items():
        path = by_hand / "raw" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(given_content)
    source, out = by_hand / "raw", by_hand / "made"
    if name == "camvid":
        source = next(source.glob("*/CamVid"))
    if name == "pascal_context59":
        out, source = source / "VOCdevkit" / "VOC2010", source / "trainval_merged.json"
    spec = get_spec(name)
    assert spec.download is not None
    options: dict[str, Any] = {"source": source, "out": out}
    assert run_conversion(formats()[spec.download.converter](**options, workers=1)).ok
    expected = tree(out)
    assert tree(root).keys() == expected.keys()
    labels = [place for place in expected if "nnotations/" in place or "ClassContext" in place]
    compared = [place for place in labels if place.endswith(".png")]
    for place in compared:
        ours, theirs = read_label(root / place), read_label(out / place)
        assert np.array_equal(ours, theirs) and len(np.unique(ours)) > 2
    others = expected.keys() - set(compared)
    assert all((root / place).read_bytes() == expected[place] for place in others)
    return len(compared) > 2


def test_a_dataset_behind_a_login_is_taken_from_files_of_yours(
    server: FileServer, tmp_path: Path
) -> None:
    root, downloads = tmp_path / "cityscapes", tmp_path / "downloads"
    refused = run("cityscapes", "--out", root, "--yes")
    assert refused.exit_code == 2
    assert "register at https://www.cityscapes-dataset.com" in refused.stderr
    assert not root.exists()
    downloads.mkdir()
    for name, packed in archives("cityscapes").items():
        (downloads / name).write_bytes(packed)
    result = run("cityscapes", "--out", root, "--yes", "--from", downloads)
    assert result.exit_code == 0, result.output
    assert len(list(downloads.iterdir())) == 2 and server.asked == []
    given_content = content("cityscapes")
    assert all(given_content[place] == each for place, each in tree(root).items())
    assert len(tree(root)) == 6


def test_names_as_people_write_them() -> None:
    found = {
        name: fetch.find_download(name)[0].name for name in ("coco-stuff10k", "pascal-context")
    }
    assert found == {"coco-stuff10k": "coco_stuff10k", "pascal-context": "pascal_context59"}
    with pytest.raises(ConfigError, match="cgrseg data synth"):
        fetch.find_download("synthetic")
    with pytest.raises(ConfigError, match="did you mean 'ade20k'"):
        fetch.find_download("ade2k")
    with pytest.raises(ConfigError, match="one of ade20k"):
        fetch.find_download("coco")  # two datasets begin so


def test_nothing_happens_without_consent(ade: FileServer, tmp_path: Path) -> None:
    result = run("ade20k", "--out", tmp_path / "ade")
    assert result.exit_code == 2 and "--yes" in result.stderr
    assert "non-commercial" in result.stdout and ade.address in result.stdout
    assert (ade.asked, list(tmp_path.iterdir())) == ([], [])


def test_the_missing_root_names_the_command(tmp_path: Path) -> None:
    for name in FORMS:
        checked = CliRunner().invoke(
            app,
            ["check", "cgrseg-t_custom", f"data.dataset={name}", f"data.root={tmp_path / 'no'}"],
        )
        assert f"cgrseg data fetch {name}" in checked.stdout


# ---- downloads ------------------------------------------------------------------------------


def obtain(server: FileServer, tmp_path: Path) -> bytes:
    """Download `file` of the server, in as many calls as it takes."""
    target = tmp_path / "file"
    download(server.address + "file", target, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    return target.read_bytes()


NOISE = np.random.default_rng(0).bytes(5000)


def test_a_cut_download_asks_for_the_rest_only(server: FileServer, tmp_path: Path) -> None:
    server.files["file"], server.cuts = NOISE, [1000, 0, 1500]
    assert obtain(server, tmp_path) == NOISE
    assert server.sent == [1000, 0, 1500, 2500]
    assert [span for _, span in server.asked] == [None, *["bytes=1000-"] * 2, "bytes=2500-"]


def test_a_download_goes_on_in_a_later_call(server: FileServer, tmp_path: Path) -> None:
    server.files["file"], server.cuts = NOISE, [1000, 0, 0, 0, 0]
    with pytest.raises(DataError, match="ended early, 5 times in a row"):
        obtain(server, tmp_path)
    assert (tmp_path / "file.partial").read_bytes() == NOISE[:1000]
    assert obtain(server, tmp_path) == NOISE
    assert server.asked[-1][1] == "bytes=1000-" and server.sent[-1] == 4000


@pytest.mark.parametrize("way", ["no ranges", "changed", "changed, no marks", "shorter", "chunked"])
def test_parts_of_two_versions_are_never_joined(
    server: FileServer, tmp_path: Path, way: str
) -> None:
    server.marks = way != "changed, no marks"
    server.chunked = way == "chunked"
    server.files["file"], server.cuts = NOISE, [3000, 0, 0, 0, 0]
    if server.chunked:  # without a length the end is the end of the connection
        server.cuts = []
    else:
        with pytest.raises(DataError):
            obtain(server, tmp_path)
    server.cuts = []
    server.ranges = way != "no ranges"
    server.files["file"] = {
        "changed": NOISE[::-1],
        "changed, no marks": NOISE[::-1] + b"more",
        "shorter": NOISE[:2000],
    }.get(way, NOISE)
    assert obtain(server, tmp_path) == server.files["file"]


def test_a_complete_partial_file_needs_no_more_bytes(server: FileServer, tmp_path: Path) -> None:
    server.files["file"], server.cuts = NOISE, [4999, 0, 0, 0, 0]
    with pytest.raises(DataError):
        obtain(server, tmp_path)
    with (tmp_path / "file.partial").open("ab") as stream:
        stream.write(NOISE[-1:])  # killed before the new name
    assert obtain(server, tmp_path) == NOISE
    assert server.asked[-1][1] == "bytes=5000-"


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(
    server: FileServer, tmp_path: Path
) -> None:
    server.files["file"], server.statuses = NOISE, [503, 429]
    assert obtain(server, tmp_path) == NOISE and len(server.asked) == 3
    with pytest.raises(DataError, match="answers 404"):
        download(server.address + "other", tmp_path / "other", 0)
    assert len(server.asked) == 4
    with pytest.raises(DataError, match=r"5,000 bytes, where about 100 were expected"):
        download(server.address + "file", tmp_path / "large", 100)


def test_the_published_addresses_are_asked_for_through_a_proxy(
    one_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real catalogue: its digest refuses the small archive, twice, and nothing is unpacked."""
    one_server.reset()
    one_server.files = archives("ade20k")
    monkeypatch.setenv("http_proxy", one_server.address.removesuffix("published/"))
    root = tmp_path / "ade"
    with pytest.raises(DataError, match="its sha1 is") as caught:
        fetch_dataset("ade20k", root)
    assert "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7" in str(caught.value)
    assert "by hand and give it with --from FILE" in str(caught.value)
    place = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
    assert one_server.asked == [(place, None)] * 2
    assert tree(tmp_path) == {}


def test_a_damaged_download_is_repeated_once(ade: FileServer, tmp_path: Path) -> None:
    """The first answer is damaged, and mended by the second."""
    good = ade.files[ADE]
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    ade.files[ADE] = bytes(damaged)
    answer = type(ade).answer

    def mended(self: FileServer, handler: object) -> None:
        answer(self, handler)  # type: ignore[arg-type]
        self.files[ADE] = good

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ade), "answer", mended)
        assert fetch_dataset("ade20k", tmp_path / "ade").ok
    assert [span for _, span in ade.asked] == [None, None]


def test_without_a_digest_the_sums_in_the_archive_decide(
    server: FileServer, tmp_path: Path
) -> None:
    server.publish("camvid")  # type: ignore[attr-defined]
    (name, good), *_ = archives("camvid").items()
    damaged = bytearray(good)
    damaged[good.index(b"annot/0001TP_000000.png") + 60] ^= 1
    server.files[name] = bytes(damaged)
    with pytest.raises(DataError, match="damaged or not whole"):
        fetch_dataset("camvid", tmp_path / "camvid")
    assert len(server.asked) == 2 and tree(tmp_path) == {}


# ---- other places ---------------------------------------------------------------------------


def test_a_mirror_and_the_published_address_after_it(ade: FileServer, tmp_path: Path) -> None:
    mirror = ade.address.replace("published", "mirror")
    fetched = fetch_dataset("ade20k", tmp_path / "a", sources=[mirror], keep_archives=True)
    assert ade.asked == [(f"/mirror/{ADE}", None)]
    assert fetched.archives is not None
    assert tree(fetched.archives) == {ADE: ade.files[ADE]}
    ade.statuses = [404]
    assert fetch_dataset("ade20k", tmp_path / "b", sources=[mirror]).ok
    assert ade.asked[1:] == [(f"/mirror/{ADE}", None), (f"/published/{ADE}", None)]


def test_a_file_of_yours_is_used_where_it_is(ade: FileServer, tmp_path: Path) -> None:
    own = tmp_path / "download (1).zip"
    own.write_bytes(ade.files[ADE])
    assert fetch_dataset("ade20k", tmp_path / "ade", sources=[str(own)]).ok
    assert own.read_bytes() == ade.files[ADE] and ade.asked == []
    own.write_bytes(ade.files[ADE] + b"0")
    with pytest.raises(DataError, match="another file") as caught:
        fetch_dataset("ade20k", tmp_path / "other", sources=[str(own)])
    assert str(own) in str(caught.value) and own.exists() and not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="--from"):
        fetch_dataset("ade20k", tmp_path / "other", sources=[str(tmp_path / "no.zip")])


@pytest.mark.parametrize(
    "source", ["http://[bad/", "http://me:secret@localhost/", "http:///", "http://a b/?secret"]
)
def test_no_address_is_refused_without_its_secrets(
    ade: FileServer, tmp_path: Path, source: str
) -> None:
    result = run("ade20k", "--out", tmp_path / "ade", "--yes", "--from", source)
    assert result.exit_code == 2 and "--from" in result.stderr, result.output
    assert "secret" not in result.output and ade.asked == []


def test_an_address_is_encoded_and_its_query_is_hidden(ade: FileServer, tmp_path: Path) -> None:
    source = ade.address + f"ä b/{ADE}?token=secret"
    ade.statuses = [404]
    result = run("ade20k", "--out", tmp_path / "ade", "--yes", "--from", source)
    assert result.exit_code == 0 and "secret" not in result.output, result.output
    assert ade.asked[0][0] == f"/published/%C3%A4%20b/{ADE}?token=secret"
    ade.statuses = [404, 404]
    with pytest.raises(DataError, match="answers 404") as caught:
        fetch_dataset("ade20k", tmp_path / "other", sources=[source])
    assert "secret" not in str(caught.value)


def test_a_disk_that_is_too_small_is_told_before(
    ade: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(EnvironmentProblem, match="GB free on its disk"):
        fetch_dataset("ade20k", tmp_path / "ade")
    assert ade.asked == [] and tree(tmp_path) == {}


# ---- files of yours, and interruptions ------------------------------------------------------


def test_files_of_yours_are_never_replaced(ade: FileServer, tmp_path: Path) -> None:
    root = tmp_path / "ade"
    own = root / "objectInfo150.txt"
    (root / "archives").mkdir(parents=True)
    own.write_bytes(b"mine")
    (root / "archives" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="files of yours are never replaced") as caught:
        fetch_dataset("ade20k", root)
    assert str(root / ".fetched") in str(caught.value)
    visible = {
        place: each
        for place, each in tree(root).items()
        if place[0] != "." and not place.endswith(".downloaded")
    }
    assert visible == {"objectInfo150.txt": b"mine", "archives/notes.txt": b"mine"}
    own.unlink()
    asked = len(ade.asked)
    assert fetch_dataset("ade20k", root).ok
    assert len(ade.asked) == asked and (root / "archives" / "notes.txt").exists()


def test_a_link_out_of_the_root_is_not_followed(ade: FileServer, tmp_path: Path) -> None:
    root, outside = tmp_path / "ade", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "images").symlink_to(outside)
    with pytest.raises(DataError, match="a symlink or a file; nothing was downloaded"):
        fetch_dataset("ade20k", root)
    (root / "images").unlink()
    (root / "images" / "training").mkdir(parents=True)
    (root / "images" / "training" / "own.jpg").touch()
    with pytest.raises(DataError, match="did not write; nothing was downloaded"):
        fetch_dataset("ade20k", root)
    assert list(outside.iterdir()) == [] and ade.asked == []


def test_archives_of_yours_in_the_root_are_never_removed(ade: FileServer, tmp_path: Path) -> None:
    for named in (False, True):
        root = tmp_path / str(named)
        own = root / "archives" / ADE
        own.parent.mkdir(parents=True)
        own.write_bytes(b"mine")
        with pytest.raises(DataError, match="another file") as caught:
            fetch_dataset("ade20k", root)
        assert str(own) in str(caught.value) and own.read_bytes() == b"mine"
        own.write_bytes(ade.files[ADE])
        assert fetch_dataset("ade20k", root, sources=[str(own.parent)] if named else ()).ok
        assert own.exists() and ade.asked == []
    (root / "fetch.json").unlink()
    shutil.rmtree(root / "images")
    shutil.rmtree(root / "annotations")
    assert fetch_dataset("ade20k", root).ok
    assert own.exists() and ade.asked == []


def killed_at(step: int, root: Path) -> bool:
    """Fetch in a process that dies at the given call of a few functions; whether it died."""
    child = os.fork()
    if child == 0:
        calls = 0

        def dying(function):  # type: ignore[no-untyped-def]
            def call(*arguments, **named):  # type: ignore[no-untyped-def]
                nonlocal calls
                calls += 1
                if calls == step:
                    os._exit(9)
                return function(*arguments, **named)

            return call

        os.rename, os.replace = dying(os.rename), dying(os.replace)
        os.mkdir, os.unlink = dying(os.mkdir), dying(os.unlink)
        try:
            fetch_dataset("ade20k", root, workers=0)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_killed_anywhere_the_next_call_ends_in_the_same_state(
    ade: FileServer, tmp_path: Path
) -> None:
    assert fetch_dataset("ade20k", tmp_path / "whole").ok
    expected = tree(tmp_path / "whole")
    step = 0
    while True:
        step += 1
        root = tmp_path / str(step)
        # A part is there before: files move one by one.
        (root / "images" / "training").mkdir(parents=True)
        if not killed_at(step, root):
            break
        finished = fetch_dataset("ade20k", root)
        assert finished.ok and tree(root) == expected, step
        assert not [path for path in root.iterdir() if path.name.startswith(".fetch")], step
    assert step > 20


# ---- hostile archives -----------------------------------------------------------------------

PARTS = Archive("small.zip", (), parts={"top": ""})


def unpacked(packed: bytes, tmp_path: Path, name: str = "small.zip") -> Path:
    """Unpack an archive into the folder `inside`."""
    (tmp_path / name).write_bytes(packed)
    folder = tmp_path / "inside"
    folder.mkdir()
    unpack(tmp_path / name, dataclasses.replace(PARTS, name=name), folder)
    return folder


def tar_entry(kind: bytes, name: str = "top/x", target: str = "", size: int = 0) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.size = kind, target, size
        archive.addfile(entry, io.BytesIO(bytes(size)))
    return stream.getvalue()


def zip_entry(name: str, mode: int = 0, content: bytes = b"x", more: str = "") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
        if more:
            archive.writestr(more, b"y")
    return stream.getvalue()


HOSTILE = {
    "tar absolute": (tar_entry(tarfile.REGTYPE, "/top/x"), "absolute"),
    "tar above": (tar_entry(tarfile.REGTYPE, "top/../../x"), "leads out of the folder"),
    "tar above inside": (tar_entry(tarfile.REGTYPE, "top/a/../x"), "leads to a folder above"),
    "tar above, elsewhere": (tar_entry(tarfile.REGTYPE, "../other/x"), "leads out of the folder"),
    "tar symlink": (tar_entry(tarfile.SYMTYPE, target="/etc/passwd"), "a link or a device"),
    "tar hard link": (tar_entry(tarfile.LNKTYPE, target="../../x"), "a link or a device"),
    "tar device": (tar_entry(tarfile.CHRTYPE), "a link or a device"),
    "tar pipe": (tar_entry(tarfile.FIFOTYPE), "a link or a device"),
    "zip absolute": (zip_entry("/top/x"), "absolute"),
    "zip drive": (zip_entry("C:/top/x"), "absolute"),
    "zip above": (zip_entry("top/../../x"), "leads out of the folder"),
    "zip backslashes": (zip_entry("top\\..\\..\\x"), "leads out of the folder"),
    "zip symlink": (zip_entry("top/x", 0o120777, b"/etc/passwd"), "a symlink"),
    "zip device": (zip_entry("top/x", 0o020666), "a special file"),
    "zip bomb": (zip_entry("top/x", content=bytes(70 << 20)), "far larger than the archive"),
    "zip file as folder": (zip_entry("top/x", more="top/x/y"), "two entries"),
    "zip folder as file": (zip_entry("top/x/y", more="top/x"), "two entries"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused(kind: str, tmp_path: Path) -> None:
    packed, reason = HOSTILE[kind]
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=reason) as caught:
        unpacked(packed, tmp_path, f"small.{kind[:3]}")
    assert not isinstance(caught.value, Damaged)  # no second download
    known = {tmp_path / "inside", tmp_path / f"small.{kind[:3]}"}
    others = set(tmp_path.rglob("*")) - before - known
    assert all(
        path.is_relative_to(tmp_path / "inside") and not path.is_symlink() for path in others
    )


def test_a_hostile_archive_leaves_nothing(ade: FileServer, tmp_path: Path) -> None:
    """Good entries before the hostile one are not kept, and it is asked for once."""
    assert get_spec("ade20k").download is not None
    stream = io.BytesIO(ade.files[ADE])
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("../../outside.txt", b"")
    own = tmp_path / ADE
    own.write_bytes(stream.getvalue())
    spec = get_spec("ade20k")
    assert spec.download is not None
    (archive_of,) = spec.download.archives
    trusting = dataclasses.replace(archive_of, digest="")
    changed = dataclasses.replace(spec.download, archives=(trusting,))
    datasets._catalogue()["ade20k"] = dataclasses.replace(spec, download=changed)
    with pytest.raises(DataError, match="leads out of the folder"):
        fetch_dataset("ade20k", tmp_path / "ade", sources=[str(own)])
    assert [path.name for path in tmp_path.iterdir()] == [ADE]


def damaged_lzma() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("top/x", NOISE)
    packed = stream.getvalue()
    start = packed.index(b"top/x") + len(b"top/x") + 4
    return packed[:start] + b"\xff" * 5 + packed[start + 5 :]


def test_archives_that_are_not_whole(tmp_path: Path) -> None:
    for number, (name, packed) in enumerate(
        [
            ("small.zip", zipped({"top/x": NOISE})[:-30]),
            ("small.tar", tarred({"top/x": NOISE})[:3000]),
            ("small.tar", b"<html>Sign in to the network</html>"),
            ("small.zip", zipped({"other/x": b""})),
            ("small.zip", damaged_lzma()),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(Damaged):
            unpacked(packed, folder, name)


PIECES = st.sampled_from(["..", ".", "", "top", "a", "b", "\\", "..\\", "C:", "a\0b", "~", "é"])


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(PIECES, min_size=1, max_size=4), max_size=3), st.booleans(), st.booleans())
def test_whatever_the_names_nothing_is_written_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, names: list[list[str]], tar: bool, links: bool
) -> None:
    outer = tmp_path_factory.mktemp("outer")
    inner = outer / "inner"
    inner.mkdir()
    stream = io.BytesIO()
    if tar:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for pieces in names:
                entry = tarfile.TarInfo("/".join(pieces))
                entry.type = tarfile.SYMTYPE if links and len(pieces) == 2 else tarfile.REGTYPE
                entry.linkname = "../.."
                archive.addfile(entry)
    else:
        with zipfile.ZipFile(stream, "w") as packed:
            for pieces in names:
                member = zipfile.ZipInfo()
                member.filename = "/".join(pieces)
                member.external_attr = (0o120777 if links and len(pieces) == 2 else 0) << 16
                packed.writestr(member, b"../..")
    name = "small.tar" if tar else "small.zip"
    with contextlib.suppress(CGRSegError):
        unpacked(stream.getvalue(), inner, name)
    assert [path.name for path in outer.iterdir()] == ["inner"]
    assert sorted(path.name for path in inner.iterdir()) == ["inside", name]
    assert not [path for path in inner.rglob("*") if path.is_symlink()]
