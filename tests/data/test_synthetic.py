"""The procedural scenes: deterministic, well labelled, well written, not solvable by colour."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cgrseg.data.guess import guess_dataset
from cgrseg.data.label_files import read_label
from cgrseg.data.synthetic import (
    SYNTHETIC_CLASSES,
    SYNTHETIC_PALETTE,
    ColorClassifier,
    color_baseline,
    make_scene,
    write_dataset,
)
from cgrseg.data.synthetic import writer as writer_module
from cgrseg.data.synthetic.baseline import ImageLabel
from cgrseg.data.synthetic.texture import Light, Paints, polygon
from cgrseg.errors import DataError, EnvironmentProblem

SIZE = (128, 128)


@pytest.fixture(scope="module")
def scenes() -> list[ImageLabel]:
    """Sixty small scenes."""
    return [make_scene(7, i, SIZE) for i in range(60)]


def _snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_same_arguments_give_the_same_scene_and_others_do_not() -> None:
    image, label = make_scene(3, 5, SIZE)
    again, label_again = make_scene(3, 5, SIZE)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    for other in (make_scene(3, 6, SIZE), make_scene(4, 5, SIZE)):
        assert np.mean(other[0] != image) > 0.5
        assert np.mean(other[1] != label) > 0.05


def test_size_may_be_wide_and_odd() -> None:
    image, label = make_scene(0, 0, (97, 201))
    assert image.shape == (97, 201, 3) and image.dtype == np.uint8
    assert label.shape == (97, 201) and label.dtype == np.uint8


@pytest.mark.parametrize(
    ("seed", "index", "size"), [(0, 0, (63, 128)), (-1, 0, SIZE), (0, -1, SIZE)]
)
def test_bad_arguments_are_refused(seed: int, index: int, size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="expected"):
        make_scene(seed, index, size)


def test_every_class_occurs_often_and_ids_stay_in_range(scenes: list[ImageLabel]) -> None:
    present = np.zeros(len(SYNTHETIC_CLASSES) + 1, int)
    for _, label in scenes:
        assert label.max() <= len(SYNTHETIC_CLASSES)
        present[np.unique(label)] += 1
    assert present[0] == len(scenes)  # every scene has borders
    assert (present[1:] >= len(scenes) // 4).all(), present


def test_no_two_classes_touch_without_an_ignored_border(scenes: list[ImageLabel]) -> None:
    for _, label in scenes:
        for first, second in (
            (label[:-1], label[1:]),
            (label[:, :-1], label[:, 1:]),
            (label[:-1, :-1], label[1:, 1:]),
            (label[:-1, 1:], label[1:, :-1]),
        ):
            touching = (first != second) & (first != 0) & (second != 0)
            assert not touching.any()


def test_the_border_is_thin(scenes: list[ImageLabel]) -> None:
    ignored = float(np.mean([np.mean(label == 0) for _, label in scenes]))
    assert 0.03 < ignored < 0.20


def test_sky_is_above_the_ground(scenes: list[ImageLabel]) -> None:
    sky, field = (SYNTHETIC_CLASSES.index(name) + 1 for name in ("sky", "field"))
    for _, label in scenes:
        if (label == sky).any() and (label == field).any():
            assert np.nonzero(label == sky)[0].max() < np.nonzero(label == field)[0].min()


def test_photos_use_the_range_without_being_washed_out(scenes: list[ImageLabel]) -> None:
    clipped = float(np.mean([np.mean((image == 0) | (image == 255)) for image, _ in scenes]))
    spread = float(np.mean([image.std() for image, _ in scenes]))
    assert clipped < 0.05
    assert 25 < spread < 90


def test_mean_colour_is_alike_for_all_classes() -> None:
    """No class has a colour of its own: mean of each channel over scenes within 40 levels."""
    sums = np.zeros((len(SYNTHETIC_CLASSES), 3))
    counts = np.zeros(len(SYNTHETIC_CLASSES))
    for i in range(150):
        image, label = make_scene(11, i, (64, 64))
        for k in range(len(SYNTHETIC_CLASSES)):
            where = label == k + 1
            if where.sum() > 20:
                sums[k] += image[where].mean(axis=0)
                counts[k] += 1
    means = sums / counts[:, None]
    assert np.abs(means - means.mean(axis=0)).max() < 40


def test_paints_are_well_apart_and_drawn_in_random_order() -> None:
    rng = np.random.default_rng(0)
    paints = Paints(rng)
    colours = np.stack([paints.take() for _ in range(20)])
    distance = np.abs(colours[:, None] - colours[None]).max(axis=2) + np.eye(20)
    assert distance.min() > 0.04
    assert colours.min() >= 0 and colours.max() <= 1
    np.testing.assert_array_equal(paints.take(), colours[0])  # the pot starts again


def test_a_surface_that_faces_the_sun_is_brightest() -> None:
    light = Light(direction=(0.6, -0.8, 0.0), lean=0.0, reach=0.0, strength=0.5)
    assert light.on(0.6, -0.8, 0.0) == pytest.approx(0.50 + 0.72)
    assert light.on(-0.6, 0.8, 0.0) == pytest.approx(0.50)
    assert light.on(1.0, 0.0, 0.0) == pytest.approx(0.50 + 0.72 * 0.6)


def test_polygon_of_a_rectangle_covers_its_pixels() -> None:
    mask = polygon((5, 6), [(1, 1), (4, 1), (4, 3), (1, 3)])
    expected = np.zeros((5, 6), bool)
    expected[1:4, 1:5] = True
    np.testing.assert_array_equal(mask, expected)


def test_palette_has_one_distinct_colour_per_class() -> None:
    assert len(SYNTHETIC_PALETTE) == len(SYNTHETIC_CLASSES) == len(set(SYNTHETIC_CLASSES)) >= 8
    colours = np.array([*SYNTHETIC_PALETTE, (0, 0, 0)], int)
    distance = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 999 * np.eye(len(colours))
    assert distance.min() >= 45


# --- the colour classifier


def test_colour_classifier_answers_by_hand() -> None:
    """Two colours, 16 bins: red is 3 of class 0 and 1 of class 1; blue is all class 1."""
    image = np.zeros((1, 8, 3), np.uint8)
    image[0, :4] = (255, 0, 0)
    image[0, 4:] = (0, 0, 255)
    label = np.array([[1, 1, 1, 2, 2, 2, 2, 0]], np.uint8)
    fitted = ColorClassifier(2, smoothing=1e-6).fit([(image, label)])
    np.testing.assert_array_equal(fitted.predict(image), [[1, 1, 1, 1, 2, 2, 2, 2]])
    # IoU of class 0: 3 / (3 + 1) and of class 1: 3 / 4 (the ignored pixel does not count).
    assert color_baseline([(image, label)], [(image, label)], num_classes=2) == pytest.approx(0.75)


def test_colour_classifier_weighs_classes_by_the_prior() -> None:
    """Class 0: 1 of 2 pixels red; class 1: 3 of 10 red. Equal classes: 0; by frequency: 1."""
    image = np.zeros((1, 12, 3), np.uint8)
    image[0, [0, 2, 3, 4]] = (255, 0, 0)
    label = np.array([[1, 1, *[2] * 10]], np.uint8)
    fitted = ColorClassifier(2, prior=0.0, smoothing=1e-6).fit([(image, label)])
    assert fitted.predict(image)[0, 0] == 1
    fitted.prior = 1.0
    assert fitted.predict(image)[0, 0] == 2


def test_colour_classifier_solves_what_colour_can_solve() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (64, 64)).astype(np.uint8)
    image = np.array([(9, 9, 9), (250, 10, 10), (10, 250, 10), (10, 10, 250)], np.uint8)[label]
    assert color_baseline([(image, label)], [(image, label)], num_classes=3) == 1.0


@pytest.mark.parametrize("empty", ["train", "val", "beyond"])
def test_colour_classifier_refuses_useless_labels(empty: str) -> None:
    image, label = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), np.uint8)
    nothing = np.zeros((4, 4), np.uint8)
    train = [(image, {"train": nothing, "val": label, "beyond": label + 2}[empty])]
    val = [(image, nothing if empty == "val" else label)]
    with pytest.raises(DataError, match=r"pixel|label 3"):
        color_baseline(train, val, num_classes=2)


def test_colour_says_little_about_the_scenes(scenes: list[ImageLabel]) -> None:
    assert color_baseline(scenes[:40], scenes[40:]) < 0.20


# --- writing


def test_written_data_set_holds_the_scenes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    root = write_dataset(
        tmp_path / "deep" / "scenes",
        train=3,
        val=2,
        size=SIZE,
        seed=5,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    names = sorted(_snapshot(root))
    assert names == [
        "annotations/training/SYN_train_00000001.png",
        "annotations/training/SYN_train_00000002.png",
        "annotations/training/SYN_train_00000003.png",
        "annotations/validation/SYN_val_00000001.png",
        "annotations/validation/SYN_val_00000002.png",
        "classes.txt",
        "images/training/SYN_train_00000001.jpg",
        "images/training/SYN_train_00000002.jpg",
        "images/training/SYN_train_00000003.jpg",
        "images/validation/SYN_val_00000001.jpg",
        "images/validation/SYN_val_00000002.jpg",
        "objectInfo.txt",
        "synthetic.json",
    ]
    for split, stem, index in (
        ("training", "SYN_train_00000002", 1),
        ("validation", "SYN_val_00000001", 1_000_000),
    ):
        image, label = make_scene(5, index, SIZE)
        np.testing.assert_array_equal(read_label(root / f"annotations/{split}/{stem}.png"), label)
        photo = cv2.imread(str(root / f"images/{split}/{stem}.jpg"))
        assert photo is not None
        assert np.abs(photo[..., ::-1].astype(int) - image).mean() < 8
    assert (root / "classes.txt").read_text().split() == list(SYNTHETIC_CLASSES)
    assert guess_dataset(root).dataset == "synthetic"
    assert (root / "images/training/SYN_train_00000001.jpg").read_bytes()[:2] == b"\xff\xd8"
    leftovers = [path.name for path in root.parent.iterdir() if path != root]
    assert leftovers == []


def test_class_list_counts_the_pixels(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "scenes", train=2, val=1, size=SIZE)
    lines = (root / "objectInfo.txt").read_text().splitlines()
    assert lines[0].split("\t") == ["Idx", "Ratio", "Train", "Val", "Stuff", "Name"]
    counted = np.zeros((2, 12), int)
    for i, index in ((0, 0), (0, 1), (1, 1_000_000)):
        counted[i] += np.bincount(make_scene(0, index, SIZE)[1].ravel(), minlength=12)
    rows = [line.split("\t") for line in lines[1:]]
    assert [row[5] for row in rows] == list(SYNTHETIC_CLASSES)
    assert [int(row[2]) for row in rows] == counted[0, 1:].tolist()
    assert [int(row[3]) for row in rows] == counted[1, 1:].tolist()
    assert sum(float(row[1]) for row in rows) == pytest.approx(1.0, abs=1e-3)


def test_number_of_workers_does_not_change_a_byte(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", train=4, val=2, size=SIZE, workers=1)
    four = write_dataset(tmp_path / "four", train=4, val=2, size=SIZE, workers=4)
    assert _snapshot(one) == _snapshot(four)


def test_validation_does_not_depend_on_the_number_of_training_scenes(tmp_path: Path) -> None:
    few = _snapshot(write_dataset(tmp_path / "few", train=1, val=2, size=SIZE))
    more = _snapshot(write_dataset(tmp_path / "more", train=3, val=2, size=SIZE))
    for name, content in few.items():
        if "validation" in name or "train_00000001" in name:
            assert more[name] == content


def test_existing_result_is_kept_and_not_drawn_again(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "scenes", train=2, val=1, size=SIZE)
    photo = root / "images/training/SYN_train_00000001.jpg"
    before = photo.stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    write_dataset(
        root, train=2, val=1, size=SIZE, progress=lambda done, total: seen.append((done, total))
    )
    assert photo.stat().st_mtime_ns == before
    assert seen == [(3, 3)]


def test_other_settings_replace_a_result_only_when_asked(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "scenes", train=2, val=1, size=SIZE)
    before = _snapshot(root)
    with pytest.raises(DataError, match="seed 0, now 1"):
        write_dataset(root, train=2, val=1, size=SIZE, seed=1)
    assert _snapshot(root) == before
    write_dataset(root, train=2, val=1, size=SIZE, seed=1, overwrite=True)
    assert json.loads((root / "synthetic.json").read_text())["seed"] == 1
    assert _snapshot(root) != before
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    (root / "images" / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(DataError, match="did not come from here"):
        write_dataset(root, train=1, val=1, size=SIZE, overwrite=overwrite)
    assert _snapshot(root) == {"images/holiday.jpg": b"precious"}
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_replacement_that_was_killed_half_way_is_made_again(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", train=2, val=1, size=SIZE)
    wanted = write_dataset(tmp_path / "other", train=1, val=1, size=SIZE)
    # As a kill leaves it: the marker says that the moves have begun, and not that they ended.
    (root / "synthetic.json").write_text('{"made_by": "cgrseg data synth", "finished": false}')
    (root / "images").rename(root / ".replaced.abcdefgh.cgrseg.partial")
    write_dataset(root, train=1, val=1, size=SIZE)
    assert _snapshot(root) == _snapshot(wanted)


def test_a_file_in_the_way_is_refused_and_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentProblem, match="a file is where a folder should be"):
        write_dataset(tmp_path / "file", train=1, val=1, size=SIZE)
    (tmp_path / "empty").mkdir()
    root = write_dataset(tmp_path / "empty", train=1, val=1, size=SIZE)
    assert (root / "synthetic.json").is_file()


def test_an_error_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    root = write_dataset(tmp_path / "scenes", train=1, val=1, size=SIZE)
    before = _snapshot(root)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(
            root, train=9, val=1, size=SIZE, overwrite=True, progress=interrupted, workers=2
        )
    assert _snapshot(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


@pytest.mark.parametrize(
    "settings",
    [{"train": 0}, {"val": 0}, {"size": (32, 128)}, {"seed": -1}, {"workers": 0}, {"train": 10**7}],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(DataError, match="expected: 1 to"):
        write_dataset(tmp_path / "scenes", **settings)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_offset_of_validation_scenes_stays() -> None:
    """Published numbers name it: changing it changes every validation set."""
    assert writer_module.VALIDATION_OFFSET == 1_000_000
