"""`cgrseg data list|check|browse|synth` as people and scripts call them."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

from cgrseg.cli.data import data as app
from cgrseg.datasets import get_spec, list_specs


def run(*arguments):
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, list(map(str, arguments)))


@pytest.fixture
def ade(shared_data, tmp_path):
    shutil.copytree(shared_data / "ade20k_samples", tmp_path / "ade")
    return tmp_path / "ade"


def test_list_names_every_dataset_and_shows_one_in_full():
    shown = run("list").stdout
    for name in [*list_specs(), "custom"]:
        assert name in shown
    one = run("list", "coco_stuff10k").stdout
    assert "_labelTrainIds.png" in one
    assert "wall-concrete" in one
    [plain] = json.loads(run("list", "camvid", "--json").stdout)
    assert plain["classes"] == list(get_spec("camvid").classes)
    assert run("list", "ade20").exit_code == 2


def test_check_of_a_folder_and_of_a_config_agree(ade):
    by_folder = run("check", ade, "--json")
    by_config = run("check", "cgrseg-b_ade20k_160k", "--data-root", ade, "--json")
    assert by_folder.exit_code == by_config.exit_code == 0
    one, other = json.loads(by_folder.stdout), json.loads(by_config.stdout)
    one.pop("seconds"), other.pop("seconds")
    assert one == other
    assert {name: split["pairs"] for name, split in one["splits"].items()} == {"train": 2, "val": 3}


def test_check_finds_says_what_to_do_and_exits_with_one(ade):
    (ade / "annotations" / "validation" / "ADE_val_00000002.png").unlink()
    checked = run("check", ade)
    assert checked.exit_code == 1
    assert "error: an image has no label (missing-label, 1x)" in checked.stdout
    assert "ADE_val_00000002.jpg" in checked.stdout
    assert "what to do: add the label" in checked.stdout
    assert run("check", ade, "--split", "train").exit_code == 0


@pytest.mark.parametrize(
    ("name", "content", "command"),
    [
        ("a.geojson", {"features": []}, "geojson {} OUT"),
        ("a.json", {"images": [], "annotations": [], "categories": []}, "coco {} IMAGE_FOLDER OUT"),
    ],
)
def test_a_file_of_annotations_is_told_the_command_that_converts_it(
    name, content, command, tmp_path
):
    file = tmp_path / name
    file.write_text(json.dumps(content))
    for subject in (file, tmp_path):
        where = tmp_path if subject == tmp_path and name == "a.geojson" else file
        told = run("check", subject)
        assert told.exit_code == 2
        assert f"what to do: cgrseg data convert {command.format(where)}\n" in told.stderr
    other = tmp_path / "b.txt"
    other.write_text("{}")
    assert "not read as configs" in run("check", other).stderr


def test_warnings_count_only_when_strict(ade):
    (ade / "images" / "validation" / "ADE_val_00000002.jpg").unlink()
    assert run("check", ade).exit_code == 0
    assert run("check", ade, "--strict").exit_code == 1


def test_check_draws_the_histogram(ade, tmp_path):
    target = tmp_path / "classes.png"
    assert run("check", ade, "--plot", target).exit_code == 0
    with Image.open(target) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=10**6)
    assert colours is not None
    assert len(colours) > 20


def test_classes_may_come_from_the_command_line(ade):
    shutil.rmtree(ade / "images" / "training")
    names = json.dumps(["none", *get_spec("ade20k").classes])
    checked = run("check", ade, f"data.classes={names}", "data.train_split=val", "--json")
    report = json.loads(checked.stdout)
    assert report["dataset"] == "custom"
    assert checked.exit_code == 0
    assert report["splits"]["val"]["pixels"][0] > 0


def test_what_cannot_be_described_exits_with_two(ade, tmp_path):
    for arguments in (
        ["check", tmp_path],
        ["check", "no-such-config"],
        ["check", ade, "data.clases=3"],
        ["check", "cgrseg-t_ade20k_160k", "--dataset", "camvid"],
    ):
        checked = run(*arguments)
        assert checked.exit_code == 2, arguments
        assert checked.stderr.startswith("error: ")
        assert "what to do" in checked.stderr


def test_browse_writes_a_page(ade, tmp_path):
    target = tmp_path / "sheet.html"
    done = run("browse", ade, "--out", target, "--split", "val", "--limit", "2")
    assert done.exit_code == 0, done.output
    assert target.read_text().count("<figure") == 2
    done = run("browse", ade, "--out", target, "--augmented", "--limit", "3")
    assert done.exit_code == 0, done.output
    assert "3 training samples after augmentation" in target.read_text()


def test_a_synthetic_dataset_passes_the_check(tmp_path):
    root = tmp_path / "scenes"
    done = run("synth", root, "--train-scenes", "12", "--val-scenes", "4", "--size", "64")
    assert done.exit_code == 0, done.output
    checked = run("check", "cgrseg-t_synthetic", "--data-root", root, "--json")
    report = json.loads(checked.stdout)
    assert checked.exit_code == 0
    assert (report["counts"]["error"], report["counts"]["warning"]) == (0, 0)
    assert report["splits"]["train"]["pairs"] == 12
