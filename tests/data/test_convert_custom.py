"""Hand-made annotations: LabelMe and COCO instances to a folder that trains."""

from __future__ import annotations

import base64
import json
import os

import cv2
import numpy as np
import pytest

from cgrseg.config.schema import DataConfig
from cgrseg.data.convert import (
    convert_coco_instances,
    convert_labelme,
)
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import read_label
from cgrseg.data.pairs import find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.errors import DataError

HEIGHT, WIDTH = 6, 8


def photo(path, height=HEIGHT, width=WIDTH):
    rng = np.random.default_rng(sum(map(ord, path.stem)))
    write_image(path, rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return path


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, **more}


def labelme_file(folder, stem, shapes, *, image=None, size=(HEIGHT, WIDTH)):
    folder.mkdir(exist_ok=True)
    photo(folder / f"{stem}.png")
    content = {
        "version": "5.4.1",
        "shapes": shapes,
        "imagePath": image or f"{stem}.png",
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }
    (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder / f"{stem}.json"


SQUARE = [(1, 1), (6, 1), (6, 4), (1, 4)]


# ---- LabelMe --------------------------------------------------------------------------------


def test_labelme_shapes_by_hand(tmp_path):
    inner = np.array([[255, 0], [255, 255]], np.uint8)
    mask = base64.b64encode(cv2.imencode(".png", inner)[1].tobytes()).decode()
    labelme_file(
        tmp_path / "in",
        "a",
        [
            shape("road", SQUARE),
            shape("car", [(5, 3), (3, 1)], "rectangle"),
            shape("car", [(7.5, 5.5), (7.9, 5.5)], "circle"),
            shape("tree", [(0, 4), (1, 5)], "mask", mask=mask),
        ],
    )
    report = convert_labelme(tmp_path / "in", tmp_path / "out")
    assert report.exit_code == 0
    assert report.classes == ("car", "road", "tree")
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[1:4, 1:6] = 1
    expected[1:3, 3:5] = 0
    expected[5, 7] = 0
    expected[4, 0] = expected[5, 0] = expected[5, 1] = 2
    made = read_label(tmp_path / "out" / "annotations" / "a.png")
    assert made.tolist() == expected.tolist()
    assert (tmp_path / "out" / "classes.txt").read_text() == "car\nroad\ntree\n"
    assert sum(report.pixels) == HEIGHT * WIDTH
    assert report.pixels[0] == 5


def test_labelme_background_comes_first_and_ignored_names_become_255(tmp_path):
    labelme_file(
        tmp_path / "in", "a", [shape("road", SQUARE), shape("blur", [(0, 0), (2, 0), (0, 2)])]
    )
    report = convert_labelme(tmp_path / "in", tmp_path / "out", background="rest", ignored=["blur"])
    made = read_label(tmp_path / "out" / "annotations" / "a.png")
    assert report.classes == ("rest", "road")
    assert made[0].tolist() == [255, 0, 0, 0, 0, 0, 0, 0]
    assert made[1].tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    assert report.notes == []


def test_labelme_its_own_label_list_is_understood(tmp_path):
    labelme_file(tmp_path / "in", "a", [shape("road", SQUARE), shape("__ignore__", SQUARE)])
    report = convert_labelme(
        tmp_path / "in", tmp_path / "out", classes=["__ignore__", "_background_", "road"]
    )
    assert report.classes == ("_background_", "road")
    assert set(np.unique(read_label(tmp_path / "out" / "annotations" / "a.png"))) == {0, 255}


def test_labelme_mostly_unlabelled_is_said(tmp_path):
    labelme_file(tmp_path / "in", "a", [shape("car", [(0, 0), (2, 0), (2, 2), (0, 2)])])
    report = convert_labelme(tmp_path / "in", tmp_path / "out")
    assert "92%" in report.notes[0]
    assert "--background" in report.notes[0]


def test_labelme_every_unusable_file_is_named_and_the_rest_converted(tmp_path):
    source = tmp_path / "in"
    labelme_file(source, "good", [shape("road", SQUARE)])
    labelme_file(source, "keypoint", [shape("road", [(1, 1)], "point")])
    labelme_file(source, "two", [shape("road", SQUARE[:2])])
    labelme_file(source, "size", [shape("road", SQUARE)], size=(HEIGHT + 1, WIDTH))
    labelme_file(source, "gone", [shape("road", SQUARE)])
    (source / "gone.png").unlink()
    labelme_file(source, "stranger", [shape("lorry", SQUARE)])
    (source / "cut.json").write_text('{"shapes": [')
    report = convert_labelme(source, tmp_path / "out", classes=["road", "car"])
    assert (report.written, report.exit_code) == (1, 1)
    told = {failure.file.rsplit("/", 1)[-1]: failure.message for failure in report.failures}
    assert "shape 1: it cannot be drawn" in told["keypoint.json"]
    assert "at least three" in told["two.json"]
    assert "7" in told["size.json"] and "one size" in told["size.json"]
    assert "(images)" in told["gone.json"]
    assert "'lorry'" in told["stranger.json"] and "road, car" in told["stranger.json"]
    assert "cannot be read" in told["cut.json"]
    assert len(told) == 6
    assert [p.name for p in (tmp_path / "out" / "annotations").glob("*.png")] == ["good.png"]


def test_labelme_new_names_cannot_move_the_old_ids(tmp_path):
    labelme_file(tmp_path / "in", "a", [shape("road", SQUARE)])
    convert_labelme(tmp_path / "in", tmp_path / "out")
    labelme_file(tmp_path / "in", "b", [shape("car", SQUARE)])
    report = convert_labelme(tmp_path / "in", tmp_path / "out")
    assert (report.classes, report.kept, report.exit_code) == (("road",), 1, 1)
    assert "'car'" in report.failures[0].message


@pytest.mark.parametrize(
    "where", ["../pictures/a.png", "..\\pictures\\a.png", "C:\\Users\\me\\a.png"]
)
def test_labelme_finds_images_in_other_folders(tmp_path, where):
    labelme_file(tmp_path / "in", "a", [shape("road", SQUARE)], image=where)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "in" / "a.png").rename(tmp_path / "pictures" / "a.png")
    images = tmp_path / "pictures" if where.startswith("C:") else None
    assert convert_labelme(tmp_path / "in", tmp_path / "out", images=images).exit_code == 0


# ---- COCO instances -------------------------------------------------------------------------


def coco_file(folder, annotations, *, categories=None, images=("a.png",)):
    folder.mkdir(exist_ok=True)
    for name in images:
        photo(folder / name)
    content = {
        "images": [
            {"id": k, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for k, name in enumerate(images)
        ],
        "annotations": [{"id": 100 + k, "image_id": 0, **a} for k, a in enumerate(annotations)],
        "categories": categories or [{"id": 7, "name": "road"}, {"id": 3, "name": "car"}],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_coco_small_instances_lie_on_top_whatever_their_order(tmp_path):
    path = coco_file(
        tmp_path / "in",
        [
            {"category_id": 3, "segmentation": [[2, 2, 4, 2, 4, 4, 2, 4]]},
            {
                "category_id": 7,
                "segmentation": [[1, 1, 6, 1, 6, 4, 1, 4], [7, 5, 8, 5, 8, 6, 7, 6]],
            },
        ],
    )
    report = convert_coco_instances(path, tmp_path / "in", tmp_path / "out")
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[1:4, 1:6] = expected[5, 7] = 1
    expected[2:4, 2:4] = 0
    assert report.classes == ("car", "road")
    assert read_label(tmp_path / "out" / "annotations" / "a.png").tolist() == expected.tolist()


def test_coco_run_lengths_and_background(tmp_path):
    counts = [HEIGHT, HEIGHT, HEIGHT * (WIDTH - 2)]
    path = coco_file(
        tmp_path / "in",
        [
            {
                "category_id": 7,
                "iscrowd": 1,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
            }
        ],
    )
    report = convert_coco_instances(path, tmp_path / "in", tmp_path / "out", background="rest")
    made = read_label(tmp_path / "out" / "annotations" / "a.png")
    assert report.classes == ("rest", "car", "road")
    assert made.tolist() == [[0, 2, 0, 0, 0, 0, 0, 0]] * HEIGHT


def test_coco_two_splits_share_one_class_list(tmp_path):
    path = coco_file(tmp_path / "in", [{"category_id": 7, "segmentation": [sum(SQUARE, ())]}])
    for split in ("train", "val"):
        convert_coco_instances(path, tmp_path / "in", tmp_path / "out", split=split)
    spec = resolve_spec(DataConfig(dataset="custom", root=str(tmp_path / "out")))
    assert spec.classes == ("car", "road")
    assert [pair.stem for pair in find_pairs(spec, tmp_path / "out", "val")] == ["a"]
    other = coco_file(tmp_path / "other", [], categories=[{"id": 1, "name": "boat"}])
    with pytest.raises(DataError, match="another output folder"):
        convert_coco_instances(other, tmp_path / "other", tmp_path / "out", split="test")
    assert not (tmp_path / "out" / "annotations" / "test").exists()


def test_coco_images_of_one_name_keep_their_folders(tmp_path):
    places = ("a.png", "day/a.png", "night/../night/a.png")
    road = {"category_id": 7, "segmentation": [sum(SQUARE, ())]}
    path = coco_file(tmp_path / "in", [road], images=places)
    report = convert_coco_instances(path, tmp_path / "in", tmp_path / "out", split="train")
    assert report.ok and report.written == 3
    for folder in ("images", "annotations"):
        below = tmp_path / "out" / folder / "train"
        found = {file.relative_to(below).as_posix() for file in below.rglob("*.png")}
        assert found == {"a.png", "day/a.png", "night/a.png"}
    spec = resolve_spec(DataConfig(dataset="custom", root=str(tmp_path / "out")))
    pairs = find_pairs(spec, tmp_path / "out", "train")
    assert [pair.stem for pair in pairs] == ["a", "day/a", "night/a"]


def test_coco_boxes_without_masks_and_missing_images_are_named(tmp_path):
    path = coco_file(
        tmp_path / "in", [{"category_id": 7, "segmentation": []}], images=("a.png", "b.png")
    )
    (tmp_path / "in" / "b.png").unlink()
    report = convert_coco_instances(path, tmp_path / "in", tmp_path / "out")
    assert (report.written, report.exit_code) == (0, 1)
    told = " ".join(failure.message for failure in report.failures)
    assert "annotation 100" in told and "only a box" in told and "b.png: no such file" in told


@pytest.mark.parametrize("annotation", [{"category_id": 5}, {"category_id": 7, "image_id": 9}])
def test_coco_annotations_of_nothing_are_refused(tmp_path, annotation):
    path = coco_file(tmp_path / "in", [annotation])
    with pytest.raises(DataError, match="annotation 100 belongs to"):
        convert_coco_instances(path, tmp_path / "in", tmp_path / "out")


# ---- What all of them share -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("categories", "told"),
    [
        ([(1, ""), (2, "road"), (3, "sky")], ["category 1", "empty"]),
        ([(1, "a\nb"), (2, "road")], ["category 1", "line break"]),
        ([(1, None), (2, "road")], ["category 1", "None"]),
        ([(1, "road"), (7, " road ")], ["category 1", "category 7", "'road'"]),
        ([(1, "sky"), (1, "road")], ["two categories have the id 1"]),
    ],
)
def test_coco_categories_that_would_move_ids_are_refused(tmp_path, categories, told):
    annotation = {"category_id": 1, "segmentation": [[1, 1, 6, 1, 6, 4]]}
    named = [{"id": key, "name": name} for key, name in categories]
    source = coco_file(tmp_path / "in", [annotation], categories=named)
    with pytest.raises(DataError) as caught:
        convert_coco_instances(source, tmp_path / "in", tmp_path / "out")
    assert all(part in str(caught.value) for part in told), str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("label", ["", "a\nb", None, 3])
def test_labelme_labels_that_are_no_names_cost_their_file_only(tmp_path, label):
    labelme_file(tmp_path / "in", "a", [shape(label, SQUARE)])
    labelme_file(tmp_path / "in", "b", [shape("road", SQUARE)])
    report = convert_labelme(tmp_path / "in", tmp_path / "out")
    assert report.exit_code == 1
    assert "a.json, shape 1" in report.failures[0].message
    assert (tmp_path / "out" / "classes.txt").read_text() == "road\n"


def test_names_with_the_sign_of_a_comment_keep_their_ids(tmp_path):
    labelme_file(tmp_path / "in", "a", [shape("#1", SQUARE), shape("cafe\u0301 ", SQUARE)])
    report = convert_labelme(tmp_path / "in", tmp_path / "out")
    assert report.classes == ("#1", "caf\u00e9")
    assert (tmp_path / "out" / "classes.txt").read_text() == "\\#1\ncaf\u00e9\n"
    spec = resolve_spec(DataConfig(dataset="custom", root=str(tmp_path / "out")))
    assert spec.classes == report.classes
    assert np.unique(read_label(tmp_path / "out" / "annotations" / "a.png")).tolist() == [1, 255]


def test_finished_work_is_kept_and_newer_sources_are_redone(tmp_path):
    source = tmp_path / "in"
    labelme_file(source, "a", [shape("road", SQUARE)])
    old = labelme_file(source, "b", [shape("road", SQUARE)])
    assert convert_labelme(source, tmp_path / "out").written == 2
    made = tmp_path / "out" / "annotations" / "b.png"
    before = made.stat().st_mtime_ns
    again = convert_labelme(source, tmp_path / "out")
    assert (again.written, again.kept, again.exit_code) == (0, 2, 0)
    assert made.stat().st_mtime_ns == before
    labelme_file(source, "b", [shape("road", [(0, 0), (8, 0), (8, 6), (0, 6)])])
    assert old.stat().st_mtime_ns > before
    redone = convert_labelme(source, tmp_path / "out")
    assert (redone.written, redone.kept) == (1, 1)
    assert read_label(made).max() == 0
    assert convert_labelme(source, tmp_path / "out", overwrite=True).written == 2


def test_other_settings_cannot_mix_two_encodings_in_one_folder(tmp_path):
    labelme_file(tmp_path / "in", "a", [shape("road", SQUARE), shape("car", SQUARE)])
    convert_labelme(tmp_path / "in", tmp_path / "out")
    made = tmp_path / "out" / "annotations" / "a.png"
    before = made.read_bytes()
    with pytest.raises(DataError, match="made with other settings"):
        convert_labelme(tmp_path / "in", tmp_path / "out", background="road")
    assert made.read_bytes() == before
    convert_labelme(tmp_path / "in", tmp_path / "out", background="road", overwrite=True)
    assert made.read_bytes() != before


def test_labels_of_somebody_else_are_never_overwritten_unasked(tmp_path):
    labelme_file(tmp_path / "in", "a", [shape("road", SQUARE)])
    theirs = tmp_path / "out" / "annotations" / "a.png"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"hours of work")
    with pytest.raises(DataError, match="did not write"):
        convert_labelme(tmp_path / "in", tmp_path / "out")
    assert theirs.read_bytes() == b"hours of work"
    assert not (tmp_path / "out" / "classes.txt").exists()
    theirs.unlink()
    image = tmp_path / "out" / "images" / "a.png"
    image.parent.mkdir()
    image.write_bytes(b"another image")
    with pytest.raises(DataError, match=r"images/a\.png"):
        convert_labelme(tmp_path / "in", tmp_path / "out")
    assert image.read_bytes() == b"another image"


def test_two_sources_with_one_name_are_refused(tmp_path):
    labelme_file(tmp_path / "in", "a", [shape("road", SQUARE)])
    labelme_file(tmp_path / "in", "b", [shape("road", SQUARE)], image="a.png")
    with pytest.raises(DataError, match=r"two label maps would be a\.png"):
        convert_labelme(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_processes_make_the_same_and_report_progress(tmp_path):
    source = tmp_path / "in"
    for k in range(20):
        labelme_file(source, f"{k:02}", [shape("road", [(0, 0), (8, 0), (k % 8, 6)])])
    (source / "07.png").write_bytes(b"no image")
    told = []
    alone = convert_labelme(source, tmp_path / "one", workers=0)
    shared = convert_labelme(
        source, tmp_path / "two", workers=2, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(k, 20) for k in range(1, 21)]
    assert (alone.written, shared.written) == (19, 19)
    assert alone.pixels == shared.pixels
    assert [f.message for f in alone.failures] == [f.message for f in shared.failures]
    for path in (tmp_path / "one" / "annotations").glob("*.png"):
        other = tmp_path / "two" / "annotations" / path.name
        assert other.read_bytes() == path.read_bytes()


def test_the_summary_says_what_was_made(tmp_path):
    labelme_file(tmp_path / "in", "a", [shape("road", SQUARE)])
    (tmp_path / "in" / "b.json").write_text("[]")
    report = convert_labelme(tmp_path / "in", tmp_path / "out")
    text = report.text()
    assert "1 label maps written, 0 kept, 1 skipped" in text
    assert "b.json" in text
    record = json.loads((tmp_path / "out" / "annotations" / "conversion.json").read_text())
    assert record["finished"] is True
    assert record["sources"] == {"a.png": str((tmp_path / "in" / "a.json").resolve())}
    assert record["made"] == json.loads(json.dumps(report.to_dict()))
    assert record["made"]["pixels"] == {"0": 15, "255": 33}
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_an_interrupted_conversion_goes_on_where_it_stopped(tmp_path, monkeypatch):
    from cgrseg.data.convert.formats.labelme import LabelMe

    for stem in "abc":
        labelme_file(tmp_path / "in", stem, [shape("road", SQUARE)])
    draw = LabelMe.draw
    drawn: list[str] = []

    def interrupted(task):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(task.source.name)
        return draw(task)

    monkeypatch.setattr(LabelMe, "draw", staticmethod(interrupted))
    with pytest.raises(KeyboardInterrupt):
        convert_labelme(tmp_path / "in", tmp_path / "out")
    labels = tmp_path / "out" / "annotations"
    assert sorted(path.name for path in labels.iterdir()) == ["a.png", "b.png", "conversion.json"]
    assert json.loads((labels / "conversion.json").read_text())["finished"] is False
    monkeypatch.undo()
    report = convert_labelme(tmp_path / "in", tmp_path / "out")
    assert (report.written, report.kept) == (1, 2)


def test_a_worker_process_that_dies_is_explained(tmp_path):
    from cgrseg.data.parallel import run_parallel
    from cgrseg.errors import EnvironmentProblem

    with pytest.raises(EnvironmentProblem, match="killed from outside"):
        list(run_parallel(os._exit, [1] * 20, workers=2))
