"""Parquet files of Hugging Face datasets: against the library `datasets`, and by hand."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cgrseg.data.convert.formats import formats, recognize
from cgrseg.data.guess import guess_dataset
from cgrseg.data.image_files import read_image
from cgrseg.errors import DataError, EnvironmentProblem
from tests.data.test_convert_tools import convert, label_maps
from tests.loopback_hub import loopback_hub

pa = pytest.importorskip("pyarrow", reason="needs the extra [convert]")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra [convert]")

HEIGHT, WIDTH = 12, 16
NAMES = {"0": "road", "1": "sky"}
FILE = "data/train-00000-of-00001.parquet"


def encoded(seed: int, form: str = "PNG", size: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    """A random image of this format."""
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, form)
    return content.getvalue()


def mask(seed: int, high: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (HEIGHT, WIDTH), dtype=np.uint8)


def mask_file(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


def row(seed: int = 0, path: str | None = None, **more: Any) -> dict[str, Any]:
    cells = {"image": encoded(seed), "label": mask_file(mask(seed)), **more}
    return {
        name: {"bytes": value, "path": path if name == "image" else None}
        if isinstance(value, (bytes, type(None)))
        else value
        for name, value in cells.items()
    }


def parquet_bytes(
    rows: Sequence[dict[str, Any]], features: dict[str, Any] | None = None, **options: Any
) -> bytes:
    """A file as `datasets` writes it: structs of bytes and path, features in the metadata."""
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({name: pa.array([each[name] for each in rows], cell) for name in rows[0]})
    if features is None:
        features = {name: {"_type": "Image"} for name in rows[0]}
    info = json.dumps({"info": {"features": features}})
    content = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({"huggingface": info}), content, **options)
    return content.getvalue()


def dataset(root: Path, files: dict[str, Any], names: Any = NAMES) -> Path:
    for name, rows in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(rows if isinstance(rows, bytes) else parquet_bytes(rows))
    if names is not None:
        (root / "id2label.json").write_text(json.dumps(names))
    return root


def placed(out: Path) -> dict[str, bytes]:
    paths = (path for path in sorted((out / "images").rglob("*")) if path.is_file())
    return {path.relative_to(out / "images").as_posix(): path.read_bytes() for path in paths}


# ---- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["huggingface", "auto"])
def test_a_file_of_the_library_gives_its_label_maps(kind: str, golden_dir: Path, tmp_path: Path):
    source = golden_dir / "huggingface"
    report = convert(kind, source, tmp_path)
    assert report.ok, report.text()
    maps, names = label_maps(tmp_path)
    assert names == ("unlabeled", "road", "sky")
    golden = json.loads((source / "label_maps.json").read_text())
    for number, wanted in enumerate(golden):
        np.testing.assert_array_equal(maps[f"val/street {number}.png"], wanted)
    assert len(maps) == len(golden) == 3
    rows = parquet.read_table(source / "data/validation-00000-of-00001.parquet")["image"]
    names_now = ["val/street 0.jpg", "val/street 1.png", "val/street 2.png"]
    assert placed(tmp_path) == dict(zip(names_now, (r["bytes"].as_py() for r in rows), strict=True))


def test_splits_names_and_worker_processes(tmp_path: Path):
    files = {
        f"data/{split}-{part:05d}-of-00002.parquet": parquet_bytes(
            [row(10 * part + k, f"a/{part}{k}.webp") for k in range(10)], row_group_size=3
        )
        for split in ("train", "validation", "test")
        for part in (0, 1)
    }
    source = dataset(tmp_path / "in", files)
    report = convert("huggingface", source, tmp_path / "out", workers=2)
    assert report.ok and report.written == 60
    maps, names = label_maps(tmp_path / "out")
    assert names == ("road", "sky")
    for split in ("train", "val", "test"):
        for seed in range(20):
            np.testing.assert_array_equal(maps[f"{split}/{seed:02d}.png"], mask(seed))
    assert placed(tmp_path / "out")["val/07.png"] == encoded(7)
    again = convert("huggingface", source, tmp_path / "out")
    assert (again.written, again.kept) == (0, 60)
    one = convert("huggingface", source, tmp_path / "one", split="train")
    assert one.written == 60
    assert {name.partition("/")[0] for name in placed(tmp_path / "one")} == {"train"}


def test_a_value_may_be_ignored_and_another_is_refused(tmp_path: Path):
    names = {"0": "other", "1": "road", "2": "sky"}
    rows = [row(1, label=mask_file(mask(1, 3))), row(2, label=mask_file(mask(2) + 2))]
    source = dataset(tmp_path / "in", {FILE: rows}, names)
    report = convert("huggingface", source, tmp_path / "out", ignored=["other"])
    (failure,) = report.failures
    assert f"{FILE}, row 1, label: pixels of no class: 3" in failure.message
    assert re.search(
        "4 values that are named or ignored(.|\\n)*list, or .*classes", failure.message
    )
    maps, classes = label_maps(tmp_path / "out")
    assert classes == ("road", "sky")
    wanted = mask(1, 3).astype(int) - 1
    np.testing.assert_array_equal(
        maps["train/train-00000-of-00001_000000.png"], np.where(wanted < 0, 255, wanted)
    )


def test_other_numbers_in_the_list_of_names_make_label_maps_anew(tmp_path: Path):
    source = dataset(tmp_path / "in", {FILE: [row()]})
    assert convert("huggingface", source, tmp_path / "out").written == 1
    dataset(source, {}, {"0": "road", "1": "road", "2": "sky"})
    assert convert("huggingface", source, tmp_path / "out").written == 1
    (labels,) = label_maps(tmp_path / "out")[0].values()
    assert not labels.any()


@pytest.mark.parametrize("place", [".", "data", FILE])
def test_names_lie_beside_the_files_or_above(place: str, tmp_path: Path):
    source = dataset(tmp_path / "in", {FILE: [row()]})
    report = convert("huggingface", source / place, tmp_path / "out")
    assert report.ok and report.classes == ("road", "sky")


def test_names_given_with_the_command(tmp_path: Path):
    source = dataset(tmp_path / "in", {FILE: [row()]}, None)
    with pytest.raises(DataError, match=r"no names, .*\n.*id2label\.json.*\n.*classes='road,car'"):
        convert("huggingface", source, tmp_path / "out")
    options: dict[str, Any] = {"classes": ["none", "road"], "ignored": ["none"]}
    report = convert("huggingface", source, tmp_path / "out", **options)
    assert report.classes == ("road",)
    (labels,) = label_maps(tmp_path / "out")[0].values()
    np.testing.assert_array_equal(labels, np.where(mask(0) == 0, 255, 0))
    kind: Any = formats()["huggingface"]
    form = kind(source, tmp_path / "two", **options)
    assert form.read().classes == form.read().classes == ("road",)


def test_names_of_an_earlier_conversion_name_the_values(tmp_path: Path):
    source, out = dataset(tmp_path / "in", {FILE: [row()]}, None), tmp_path / "out"
    assert convert("huggingface", source, out, classes=["road", "car"]).written == 1
    report = convert("huggingface", source, out)
    assert report.kept == 1 and f"class names: {out / 'classes.txt'}" in report.notes


def test_class_names_of_which_the_source_has_none_are_an_error(tmp_path: Path):
    source = dataset(tmp_path / "in", {FILE: [row()]})
    with pytest.raises(DataError, match=r"classes road, sky, of which none is among .* a, b"):
        convert("huggingface", source, tmp_path / "out", classes=["a", "b"])
    assert convert("huggingface", source, tmp_path / "out", classes=["sky", "b"]).ok


def test_a_class_of_the_whole_image_names_no_pixels(tmp_path: Path):
    scene = {"names": ["city", "forest"], "_type": "ClassLabel"}
    image = {"_type": "Image"}
    features: dict[str, Any] = {"image": image, "label": image, "scene": scene}
    source = dataset(tmp_path / "in", {FILE: parquet_bytes([row()], features)}, None)
    with pytest.raises(DataError, match="no names"):
        convert("huggingface", source, tmp_path / "out")
    category = {**scene, "names": ["p", "q"]}
    for objects in ([{"category": category}], {"feature": {"category": category}, "_type": "List"}):
        dataset(source, {FILE: parquet_bytes([row()], {**features, "objects": objects})}, None)
        with pytest.raises(DataError, match="no names"):
            convert("huggingface", source, tmp_path / "out")
    features["on_image"] = {"feature": {**scene, "names": ["road", "sky"]}, "_type": "Sequence"}
    dataset(source, {FILE: parquet_bytes([row()], features)}, None)
    assert convert("huggingface", source, tmp_path / "out").classes == ("road", "sky")


def test_columns_of_other_names(tmp_path: Path):
    rows = [{"photo": row()["image"], "mask": row(1)["label"], "annotation": row(2)["label"]}]
    source = dataset(tmp_path / "in", {FILE: rows})
    with pytest.raises(DataError, match=r"photo, mask, annotation.*\n.*\n.*image_column='NAME'"):
        convert("huggingface", source, tmp_path / "out")
    with pytest.raises(DataError, match="one column label or annotation or labels or mask"):
        convert("huggingface", source, tmp_path / "out", image_column="photo")
    options = {"image_column": "photo", "label_column": "annotation"}
    assert convert("huggingface", source, tmp_path / "out", **options).ok
    (labels,) = label_maps(tmp_path / "out")[0].values()
    np.testing.assert_array_equal(labels, mask(2))


def test_several_configurations_are_not_mixed(tmp_path: Path):
    files = {f"{name}/train/0000.parquet": [row()] for name in ("full", "mini")}
    source = dataset(tmp_path / "in", files)
    with pytest.raises(DataError, match=r"configurations: full, mini(.|\n)*such as .*mini"):
        convert("huggingface", source, tmp_path / "out")
    assert convert("huggingface", source / "full", tmp_path / "out").ok
    assert list(label_maps(tmp_path / "out")[0]) == ["train/0000_000000.png"]


def test_configurations_below_data_are_not_mixed(tmp_path: Path):
    files = {"data/full/train.parquet": [row()], "data/train.parquet": [row()]}
    source = dataset(tmp_path / "in", files)
    with pytest.raises(DataError, match=r"configurations: \., full(.|\n)*such as .*data/full"):
        convert("huggingface", source, tmp_path / "out")


def test_files_with_and_without_a_split_are_not_mixed(tmp_path: Path):
    source = dataset(tmp_path / "in", {"more.parquet": [row()], "test.parquet": [row(1)]})
    with pytest.raises(DataError, match=r"names of .*more\.parquet, beside(.|\n)*split='train'"):
        convert("huggingface", source, tmp_path / "out")
    assert convert("huggingface", source, tmp_path / "out", split="train").written == 2


NUMBERED: dict[str, tuple[dict[str, list[str]], set[str]]] = {
    "folders of the hub": (
        {"default/train/0000.parquet": [""], "default/validation/0000.parquet": [""]},
        {"default_train_0000_000000.png", "default_validation_0000_000000.png"},
    ),
    "a row with the name of another one": (
        {"train-0.parquet": ["train-0_000001.jpg", "x.jpg", "x.jpg"]},
        {"train-0_000000.png", "train-0_000001.png", "train-0_000002.png"},
    ),
}


@pytest.mark.parametrize("kind", NUMBERED)
def test_numbered_names_are_of_one_image_each(kind: str, tmp_path: Path):
    files, names = NUMBERED[kind]
    rows = {name: [row(k, path) for k, path in enumerate(paths)] for name, paths in files.items()}
    source = dataset(tmp_path / "in", rows)
    report = convert("huggingface", source, tmp_path / "out", split="val")
    assert report.ok, report.text()
    assert set(placed(tmp_path / "out")) == {f"val/{name}" for name in names}


def test_label_maps_of_earlier_names_are_named(tmp_path: Path):
    source = dataset(tmp_path / "in", {"train-0.parquet": [row(0, "x.jpg"), row(1, "y.jpg")]})
    assert convert("huggingface", source, tmp_path / "out").notes[1:] == []
    other = dataset(tmp_path / "other", {"train-7.parquet": [row(3, "z.jpg")]})
    assert convert("huggingface", other, tmp_path / "out").notes[1:] == []
    dataset(source, {"train-1.parquet": [row(2, "x.jpg")]})
    report = convert("huggingface", source, tmp_path / "out")
    (note,) = (note for note in report.notes if "earlier runs" in note)
    assert note.startswith("1 label maps") and "now: train/x.png in " in note
    assert (tmp_path / "out/annotations/train/x.png").is_file()


def test_images_outside_the_file_are_found_beside_it(tmp_path: Path):
    rows = [row(1, "/home/someone/b.png", image=None), row(2, "../../c.png", image=None)]
    source = dataset(tmp_path / "in", {FILE: rows})
    (source / "data" / "b.png").write_bytes(encoded(1))
    (tmp_path / "c.png").write_bytes(encoded(2))
    report = convert("huggingface", source, tmp_path / "out")
    assert list(placed(tmp_path / "out")) == ["train/b.png"]
    assert "no image '../../c.png'" in report.failures[0].message


# ---- what cannot be read -----------------------------------------------------------------------

HOSTILE = [
    *("../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\..\\evil.png", "a/../evil.png"),
    *("..", ".", "", ".hidden.png", "x" * 300 + ".png", "a\0b.png", "evil.png/"),
]


def test_hostile_paths_stay_inside_the_folder(tmp_path: Path):
    rows = [row(k, path) for k, path in enumerate(HOSTILE)]
    source = dataset(tmp_path / "deep/er/in", {FILE: rows})
    out = tmp_path / "deep/er/out"
    report = convert("huggingface", source, out)
    assert report.ok and report.written == len(HOSTILE)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(out) or path.is_relative_to(source) for path in files)
    names = set(placed(out))
    assert len(names) == len(HOSTILE) and not any("hidden" in name for name in names)
    assert f"{len(HOSTILE)} images are named after file and row" in report.text()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_any_path_gives_each_image_a_file_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str]
):
    folder = tmp_path_factory.mktemp("paths")
    rows = [row(k, path) for k, path in enumerate(paths)]
    source = dataset(folder / "in", {FILE: rows})
    report = convert("huggingface", source, folder / "out")
    assert report.ok, report.text()
    assert sorted(placed(folder / "out").values()) == sorted(encoded(k) for k in range(len(paths)))


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"image": None}, "row 1: no bytes in image"),
    "no mask": ({"label": None}, "row 1: no bytes in label"),
    "an unknown image": ({"image": b"abcdefgh"}, "row 1, image: bytes that begin with b'abcdefgh'"),
    "an empty image": ({"image": b""}, "row 1, image: bytes that begin with b''"),
    "half an image": ({"image": encoded(1)[:200]}, "row 1, image: the file ends early"),
    "half a mask": ({"label": mask_file(mask(1))[:40]}, "row 1, label: the file ends early"),
    "an empty mask": ({"label": b""}, "row 1, label: the label cannot be decoded"),
    "a mask in color": ({"label": encoded(1)}, "row 1, label: a mask in color"),
    "a mask in JPEG": ({"label": encoded(1, "JPEG")}, "row 1, label: a label map compressed"),
    "another size": ({"image": encoded(1, size=(5, 5))}, "pixels for .*row 1, image of 5x5"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_row_is_named_and_the_others_converted(kind: str, tmp_path: Path):
    cells, message = DAMAGED[kind]
    source = dataset(tmp_path / "in", {FILE: [row(0), row(1, **cells), row(2)]})
    report = convert("huggingface", source, tmp_path / "out")
    assert report.written == 2 and len(report.failures) == 1
    assert re.search(message, report.failures[0].message)
    assert len(placed(tmp_path / "out")) == 2


def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path: Path):
    content = bytearray(
        parquet_bytes(
            [row(k, f"{k}.png") for k in range(12)],
            row_group_size=4,
            compression="NONE",
            use_dictionary=False,
            write_page_checksum=True,
        )
    )
    content[content.index(encoded(5)) + 60] ^= 1
    source = dataset(tmp_path / "in", {FILE: bytes(content)})
    report = convert("huggingface", source, tmp_path / "out")
    assert report.written == 8
    (failure,) = report.failures
    assert f"{FILE}, rows 4 to 7: it cannot be read" in failure.message


def test_a_file_that_states_too_many_rows_is_read_as_far_as_it_goes(tmp_path: Path):
    content = parquet_bytes([row(k % 3) for k in range(77)])
    stated, more = (
        b"\x16\x9a\x01",
        b"\x16\xfe\x7f",
    )  # 77 and 8191, as Thrift's compact form has them
    places = [k for k in range(len(content)) if content.startswith(stated, k)]
    outcomes = set()
    for place in places:
        source = dataset(tmp_path / "in", {FILE: content[:place] + more + content[place + 3 :]})
        try:
            report = convert("huggingface", source, tmp_path / f"out{place}")
            outcomes.add((report.written, len(report.failures)))
        except DataError:
            outcomes.add((0, 1))
    assert (77, 1) in outcomes, outcomes
    assert all(failures <= 1 for _, failures in outcomes)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"text"])
def test_a_file_that_is_no_parquet_is_named(content: bytes, tmp_path: Path):
    bad = "data/train-00000-of-00002.parquet"
    source = dataset(tmp_path / "in", {bad: content})
    with pytest.raises(DataError, match=r"00000-of-00002\.parquet: it cannot be read"):
        convert("huggingface", source, tmp_path / "out")
    dataset(source, {"data/train-00001-of-00002.parquet": [row()]})
    report = convert("huggingface", source, tmp_path / "out")
    assert report.written == 1 and bad in report.failures[0].message


@pytest.mark.parametrize(
    "names", [[], {}, {"a": "road"}, {"0": 5}, {"-1": "road"}, {"1": "a", "01": "b"}, 3, None]
)
def test_a_list_of_names_of_another_form(names: Any, tmp_path: Path):
    source = dataset(tmp_path / "in", {FILE: [row()]}, {})
    (source / "id2label.json").write_text(json.dumps(names))
    with pytest.raises(DataError, match=r"id2label\.json"):
        convert("huggingface", source, tmp_path / "out")


def test_metadata_of_another_form(tmp_path: Path):
    no_names = {"_type": "ClassLabel"}
    unused: list[Any] = [{"label": [[[]]]}, {"label": no_names}, {"x": 7}]
    for features in unused:
        source = dataset(tmp_path / "in", {FILE: parquet_bytes([row()], features)})
        assert convert("huggingface", source, tmp_path / "out", overwrite=True).written == 1
    malformed: list[Any] = [[], 7, {"label": [no_names]}]
    for features in malformed:
        source = dataset(tmp_path / "in", {FILE: parquet_bytes([row()], features)})
        with pytest.raises(DataError, match=f"{FILE}: it cannot be read"):
            convert("huggingface", source, tmp_path / "out")


def test_a_file_that_changes_is_read_anew_in_the_same_process(tmp_path: Path):
    source = dataset(tmp_path / "in", {FILE: [row(1, "a.png")]})
    assert convert("huggingface", source, tmp_path / "out").written == 1
    dataset(source, {FILE: [row(1, "a.png", label=mask_file(mask(9)))]})
    assert convert("huggingface", source, tmp_path / "out").written == 1
    (labels,) = label_maps(tmp_path / "out")[0].values()
    np.testing.assert_array_equal(labels, mask(9))
    dataset(source, {FILE: [row(2, "a.png")]})  # never two images under one name
    report = convert("huggingface", source, tmp_path / "out")
    assert "another image than the one in the source now" in report.failures[0].message


# ---- around it ---------------------------------------------------------------------------------


def test_the_folder_is_recognized(tmp_path: Path):
    source = dataset(tmp_path / "in", {FILE: [row()]})
    assert recognize(source) == {"huggingface": Path(FILE).name}
    assert recognize(source / FILE) == {"huggingface": Path(FILE).name}
    with pytest.raises(DataError, match=r"cgrseg data convert huggingface .*in OUT"):
        guess_dataset(source)
    spaced = source.rename(tmp_path / "my set.parquet")  # a folder, as Spark names it
    with pytest.raises(DataError, match=r"convert huggingface '.*my set\.parquet' OUT"):
        guess_dataset(spaced)
    assert convert("huggingface", spaced, tmp_path / "out").ok
    with pytest.raises(DataError, match="a local source with revision='main'"):
        convert("huggingface", spaced, tmp_path / "out", revision="main")
    (spaced / FILE).write_bytes(b"text")
    assert recognize(spaced) == {}


def test_without_pyarrow_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = dataset(tmp_path / "in", {FILE: [row()]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(EnvironmentProblem, match=r'pip install "cgrseg\[convert\]"'):
        convert("huggingface", source, tmp_path / "out")


def test_a_hub_id_is_downloaded(tmp_path: Path):
    root = dataset(tmp_path / "in", {FILE: [row(1, "a.png")], "large.bin": b"not asked for"})
    below = {path.relative_to(root).as_posix(): path for path in root.rglob("*.*")}
    with loopback_hub(tmp_path / "cache") as hub:
        hub.files["datasets/owner/name"] = {n: path.read_bytes() for n, path in below.items()}
        convert("huggingface", "owner/name", tmp_path / "out")
        with pytest.raises(DataError, match="owner/other: no such local path, and the hub did not"):
            convert("huggingface", "owner/other", tmp_path / "other")
    (labels,) = label_maps(tmp_path / "out")[0].values()
    np.testing.assert_array_equal(labels, mask(1))
    assert read_image(tmp_path / "out/images/train/a.png").shape == (HEIGHT, WIDTH, 3)
    assert not list((tmp_path / "cache").rglob("large.bin"))
