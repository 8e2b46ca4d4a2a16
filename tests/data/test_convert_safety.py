"""What a later conversion into the same folder may touch, and what it must not."""

from __future__ import annotations

import inspect
import json
import os
import threading
import time

import numpy as np
import pytest

from cgrseg.config.schema import DataConfig
from cgrseg.data.check import check_dataset
from cgrseg.data.convert import (
    convert_coco_instances,
    convert_labelme,
    convert_rgb_masks,
)
from cgrseg.data.convert.formats import coco, formats
from cgrseg.data.convert.formats.rgb import RgbMasks
from cgrseg.data.convert.image_names import place_image
from cgrseg.data.convert.runner import run_conversion
from cgrseg.data.image_files import read_image, write_image
from cgrseg.data.label_files import read_label, write_label_png
from cgrseg.errors import DataError, EnvironmentProblem
from cgrseg.locks import output_lock
from tests.data.test_convert_custom import HEIGHT, SQUARE, WIDTH, coco_file, labelme_file, shape

OTHER = [(0, 0), (8, 0), (8, 6), (0, 6)]


@pytest.mark.parametrize("order", ["AB", "BA"])
def test_a_second_source_of_the_same_names_is_refused(tmp_path, order):
    for name, area in (("A", SQUARE), ("B", OTHER)):
        labelme_file(tmp_path / name, "a", [shape("road", area)])
        write_image(tmp_path / name / "a.png", np.full((HEIGHT, WIDTH, 3), ord(name), np.uint8))
    out = tmp_path / "out"
    assert convert_labelme(tmp_path / order[0], out).written == 1
    label, image = out / "annotations" / "a.png", out / "images" / "a.png"
    before = label.read_bytes(), image.read_bytes()
    with pytest.raises(DataError, match=rf"two label maps would be a\.png.*{order[0]}/a\.json"):
        convert_labelme(tmp_path / order[1], out)
    assert (label.read_bytes(), image.read_bytes()) == before
    # Into another split, and on request, it is done.
    assert convert_labelme(tmp_path / order[1], out, split="val").written == 1
    assert convert_labelme(tmp_path / order[1], out, overwrite=True).written == 1
    assert read_image(image).max() == ord(order[1])


def masks_of(folder, count, colour):
    for k in range(count):
        write_image(folder / "photos" / f"{k}.png", np.full((4, 6, 3), k, np.uint8))
        write_image(folder / "masks" / f"{k}.png", np.full((4, 6, 3), colour, np.uint8))
    return folder / "photos", folder / "masks", folder / "out"


def test_an_interrupted_overwrite_leaves_no_old_encoding(tmp_path, monkeypatch):
    folders = masks_of(tmp_path, 3, 9)
    first = {(9, 9, 9): "a", (1, 1, 1): "b"}
    second = {(1, 1, 1): "b", (9, 9, 9): "a"}
    convert_rgb_masks(*folders, colors=first)
    draw = RgbMasks.draw
    drawn: list[object] = []

    def interrupted(task):
        if drawn:
            raise KeyboardInterrupt
        drawn.append(task)
        return draw(task)

    (tmp_path / "out" / "classes.txt").unlink()
    monkeypatch.setattr(RgbMasks, "draw", staticmethod(interrupted))
    with pytest.raises(KeyboardInterrupt):
        convert_rgb_masks(*folders, colors=second, overwrite=True)
    monkeypatch.undo()
    labels = [tmp_path / "out" / "annotations" / f"{k}.png" for k in range(3)]
    assert [read_label(path).max() for path in labels] == [1, 0, 0]
    data = DataConfig(dataset="custom", root=str(tmp_path / "out"))
    told = [
        f.code
        for f in check_dataset(data, quick=True).findings
        if f.code == "conversion-unfinished"
    ]
    assert told == ["conversion-unfinished"]
    report = convert_rgb_masks(*folders, colors=second)
    assert "conversion-unfinished" not in [f.code for f in check_dataset(data, quick=True).findings]
    assert report.written >= 2 and report.written + report.kept == 3
    assert [read_label(path).max() for path in labels] == [1, 1, 1]
    assert convert_rgb_masks(*folders, colors=second).kept == 3


@pytest.mark.parametrize("seconds", [-86400, 86400])
def test_a_source_with_an_older_or_newer_date_is_converted_again(tmp_path, seconds):
    photos, masks, out = masks_of(tmp_path, 2, 9)
    table = {(9, 9, 9): "a", (1, 1, 1): "b"}
    convert_rgb_masks(photos, masks, out, colors=table)
    assert convert_rgb_masks(photos, masks, out, colors=table).kept == 2
    write_image(masks / "1.png", np.full((4, 6, 3), 1, np.uint8))
    date = time.time() + seconds  # as cp -p and rsync -t do
    os.utime(masks / "1.png", (date, date))
    report = convert_rgb_masks(photos, masks, out, colors=table)
    assert (report.written, report.kept) == (1, 1)
    assert read_label(out / "annotations" / "1.png").min() == 1
    assert convert_rgb_masks(photos, masks, out, colors=table).kept == 2


def test_a_clock_that_was_put_back_hides_no_change(tmp_path):
    """A label map from the future, and a source that changes afterwards."""
    photos, masks, out = masks_of(tmp_path, 1, 9)
    table = {(9, 9, 9): "a", (1, 1, 1): "b"}
    convert_rgb_masks(photos, masks, out, colors=table)
    date = time.time() + 86400
    os.utime(out / "annotations" / "0.png", (date, date))
    write_image(masks / "0.png", np.full((4, 6, 3), 1, np.uint8))
    assert convert_rgb_masks(photos, masks, out, colors=table).written == 1
    assert read_label(out / "annotations" / "0.png").min() == 1


def test_a_source_that_is_replaced_while_it_is_read_is_converted_again(tmp_path, monkeypatch):
    photos, masks, out = masks_of(tmp_path, 1, 9)
    table = {(9, 9, 9): "a", (1, 1, 1): "b"}
    draw = RgbMasks.draw

    def replacing(task):
        labels = draw(task)
        write_image(task.source, np.full((4, 6, 3), 1, np.uint8))
        return labels

    monkeypatch.setattr(RgbMasks, "draw", staticmethod(replacing))
    convert_rgb_masks(photos, masks, out, colors=table)
    monkeypatch.undo()
    assert read_label(out / "annotations" / "0.png").max() == 0
    assert convert_rgb_masks(photos, masks, out, colors=table).written == 1
    assert read_label(out / "annotations" / "0.png").min() == 1


def test_a_coco_file_that_is_replaced_after_it_was_read_is_converted_again(tmp_path, monkeypatch):
    annotation = {"category_id": 3, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]}
    source = coco_file(tmp_path / "in", [annotation])
    read = coco.read_coco

    def replacing(path):
        data = read(path)
        coco_file(tmp_path / "in", [{**annotation, "category_id": 7}])
        return data

    monkeypatch.setattr(coco, "read_coco", replacing)
    convert_coco_instances(source, tmp_path / "in", tmp_path / "out")
    monkeypatch.undo()
    label = tmp_path / "out" / "annotations" / "a.png"
    assert read_label(label).max() == 0
    assert convert_coco_instances(source, tmp_path / "in", tmp_path / "out").written == 1
    assert read_label(label).min() == 1


def test_a_label_map_without_a_record_is_kept_and_said(tmp_path):
    photos, masks, out = masks_of(tmp_path, 2, 9)
    table = {(9, 9, 9): "a", (1, 1, 1): "b"}
    convert_rgb_masks(photos, masks, out, colors=table)
    retouched = np.ones((4, 6), np.uint8)
    write_label_png(out / "annotations" / "0.png", retouched, [(0, 0, 0)])
    report = convert_rgb_masks(photos, masks, out, colors=table)
    assert report.kept == 2
    assert [note for note in report.notes if note.startswith("1 label maps without a record")]
    assert (read_label(out / "annotations" / "0.png") == 1).all()
    assert convert_rgb_masks(photos, masks, out, colors=table, overwrite=True).written == 2
    assert (read_label(out / "annotations" / "0.png") == 0).all()


def test_a_source_that_fails_after_an_interrupted_overwrite_leaves_no_old_encoding(
    tmp_path, monkeypatch
):
    photos, masks, out = masks_of(tmp_path, 3, 9)
    convert_rgb_masks(photos, masks, out, colors={(9, 9, 9): "a", (1, 1, 1): "b"})
    (out / "classes.txt").unlink()
    second = {(1, 1, 1): "b", (9, 9, 9): "a"}
    monkeypatch.setattr(RgbMasks, "draw", staticmethod(lambda task: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        convert_rgb_masks(photos, masks, out, colors=second, overwrite=True)
    monkeypatch.undo()
    (masks / "2.png").write_bytes(b"cut")
    report = convert_rgb_masks(photos, masks, out, colors=second)
    assert (report.written, len(report.failures)) == (2, 1)
    assert not (out / "annotations" / "2.png").exists()


def test_a_source_that_fails_in_an_overwrite_leaves_no_old_encoding(tmp_path):
    folders = masks_of(tmp_path, 2, 9)
    convert_rgb_masks(*folders, colors={(9, 9, 9): "a", (1, 1, 1): "b"})
    (tmp_path / "out" / "classes.txt").unlink()
    (tmp_path / "masks" / "1.png").write_bytes(b"cut")
    second = {(1, 1, 1): "b", (9, 9, 9): "a"}
    report = convert_rgb_masks(*folders, colors=second, overwrite=True)
    assert (report.written, len(report.failures)) == (1, 1)
    assert not (tmp_path / "out" / "annotations" / "1.png").exists()


def test_an_overwrite_with_other_settings_must_replace_all(tmp_path):
    for name, stem in (("A", "a"), ("B", "b")):
        labelme_file(tmp_path / name, stem, [shape("road", SQUARE)])
        convert_labelme(tmp_path / name, tmp_path / "out")
    kept = tmp_path / "out" / "annotations" / "a.png"
    before = kept.read_bytes()
    with pytest.raises(DataError, match="1 label maps made with other settings, from sources"):
        convert_labelme(tmp_path / "B", tmp_path / "out", background="road", overwrite=True)
    assert kept.read_bytes() == before


def test_images_that_are_relative_symbolic_links_arrive(tmp_path):
    write_image(tmp_path / "store" / "real.png", np.full((3, 4, 3), 7, np.uint8))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to("../store/real.png")
    place_image(tmp_path / "in" / "a.png", tmp_path / "deep" / "er" / "a.png")
    assert not (tmp_path / "deep" / "er" / "a.png").is_symlink()
    assert read_image(tmp_path / "deep" / "er" / "a.png").max() == 7


def test_another_image_of_the_same_size_in_bytes_stays(tmp_path):
    source, target = tmp_path / "a.bmp", tmp_path / "out" / "images" / "a.bmp"
    write_image(source, np.full((HEIGHT, WIDTH, 3), 1, np.uint8))
    write_image(target, np.full((HEIGHT, WIDTH, 3), 2, np.uint8))
    assert source.stat().st_size == target.stat().st_size
    with pytest.raises(DataError, match=r"images/a\.bmp: another image than"):
        place_image(source, target)
    assert read_image(target).max() == 2
    labelme_file(tmp_path / "in", "a", [shape("road", SQUARE)], image="../a.bmp")
    with pytest.raises(DataError, match="did not write"):
        convert_labelme(tmp_path / "in", tmp_path / "out")
    assert read_image(target).max() == 2
    place_image(source, target, replace=True)
    assert read_image(target).max() == 1


@pytest.mark.parametrize("how", ["classes.txt", "--classes"])
def test_a_class_may_be_added_at_the_end_as_the_message_says(tmp_path, how):
    labelme_file(tmp_path / "in", "a", [shape("road", SQUARE)])
    convert_labelme(tmp_path / "in", tmp_path / "out")
    labelme_file(tmp_path / "in", "b", [shape("car", SQUARE)])
    refused = convert_labelme(tmp_path / "in", tmp_path / "out")
    assert "add it at the end of the class names" in refused.failures[0].message
    classes = None
    if how == "--classes":
        classes = ["road", "car"]
    else:
        with (tmp_path / "out" / "classes.txt").open("a") as stream:
            stream.write("car\n")
    report = convert_labelme(tmp_path / "in", tmp_path / "out", classes=classes)
    assert (report.written, report.kept, report.exit_code) == (1, 1, 0)
    assert (tmp_path / "out" / "classes.txt").read_text() == "road\ncar\n"
    assert read_label(tmp_path / "out" / "annotations" / "b.png")[2, 2] == 1
    with pytest.raises(DataError, match="new ones go to the end"):
        convert_labelme(tmp_path / "in", tmp_path / "out", classes=["car", "road"])


def test_a_colour_may_be_added_but_none_changed(tmp_path):
    folders = masks_of(tmp_path, 2, 9)
    write_image(tmp_path / "masks" / "1.png", np.full((4, 6, 3), 5, np.uint8))
    table = {(9, 9, 9): "a"}
    assert convert_rgb_masks(*folders, colors=table).exit_code == 1
    report = convert_rgb_masks(*folders, colors={**table, (5, 5, 5): "b"})
    assert (report.written, report.kept, report.exit_code) == (1, 1, 0)
    with pytest.raises(DataError, match="made with other settings"):
        convert_rgb_masks(*folders, colors={(8, 8, 8): "a", (5, 5, 5): "b"})


def test_a_misspelt_ignored_class_is_no_secret(tmp_path):
    folders = masks_of(tmp_path, 1, 9)
    with pytest.raises(DataError, match=r"'viod' is ignored.*did you mean 'void'"):
        convert_rgb_masks(*folders, colors={(9, 9, 9): "a", (0, 0, 0): "void"}, ignored=["viod"])
    path = coco_file(tmp_path / "coco", [])
    with pytest.raises(DataError, match=r"'raod' is ignored.*did you mean 'road'"):
        convert_coco_instances(path, tmp_path / "coco", tmp_path / "o", ignored=["raod"])
    labelme_file(tmp_path / "in", "a", [shape("road", SQUARE), shape("blur", SQUARE)])
    report = convert_labelme(tmp_path / "in", tmp_path / "o", ignored=["blurr", "__ignore__"])
    told = [note for note in report.notes if "ignored, but" in note]
    assert told == ["'blurr' is ignored, but occurs nowhere; did you mean 'blur'?"]
    assert not json.loads(json.dumps(report.to_dict()))["failed"]


@pytest.mark.parametrize("name", formats())
def test_every_converter_is_refused_a_folder_that_another_writes_to(tmp_path, name):
    kind = formats()[name]
    needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    given = {**dict.fromkeys([*needed, "out"], tmp_path / "none"), "out": tmp_path / "out"}
    refused = []

    def start() -> None:
        with pytest.raises(EnvironmentProblem, match="another command"):
            run_conversion(kind(**given))
        refused.append(name)

    with output_lock(tmp_path / "out", below=True):
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    assert refused == [name]


def test_a_label_map_of_a_source_that_is_damaged_since_is_named(tmp_path):
    labelme_file(tmp_path / "in", "a", [shape("road", SQUARE)])
    write_image(tmp_path / "in" / "a.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    out = tmp_path / "out"
    convert_labelme(tmp_path / "in", out)
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    [failure] = convert_labelme(tmp_path / "in", out).failures
    assert (
        f"{out}/annotations/a.png stays, made from what these files held before" in failure.message
    )
