"""`cgrseg predict`: photos of all kinds, one bad file among them, and starting again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import Result

from cgrseg.data.image_files import read_image
from cgrseg.data.label_files import read_label
from cgrseg.data.synthetic import SYNTHETIC_PALETTE
from cgrseg.precision import choose_precision

from .conftest import Run


@pytest.fixture()
def photos(tmp_path: Path) -> Path:
    """Sizes and kinds that people have: odd, narrow, grey, RGBA, 16-bit, in a subfolder."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    cv2.imwrite(str(folder / "odd.jpg"), rng.integers(0, 256, (37, 101, 3), np.uint8))
    cv2.imwrite(str(folder / "grey.png"), rng.integers(0, 256, (50, 40), np.uint8))
    cv2.imwrite(str(folder / "alpha.png"), rng.integers(0, 256, (64, 64, 4), np.uint8))
    cv2.imwrite(str(folder / "deeper" / "deep.png"), rng.integers(0, 65536, (48, 70, 3), np.uint16))
    return folder


def test_folder_is_labelled_at_its_images_own_sizes(
    run: Run, trained: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("predict", trained / "best.pth", photos, "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    sizes = {
        path.relative_to(out / "labels").as_posix(): read_label(path).shape
        for path in (out / "labels").rglob("*.png")
    }
    assert sizes == {
        "odd.png": (37, 101),
        "grey.png": (50, 40),
        "alpha.png": (64, 64),
        "deeper/deep.png": (48, 70),
    }
    labels = read_label(out / "labels" / "odd.png")
    assert labels.max() < 11
    shown = read_image(out / "labels" / "odd.png")
    assert np.array_equal(shown, np.array(SYNTHETIC_PALETTE, np.uint8)[labels])
    overlay = read_image(out / "overlays" / "odd.jpg")
    assert overlay.shape[1] > 101  # the legend stands beside it


def test_odd_photos_come_out_upright_and_at_their_size(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    """Narrow, 12 megapixels, grey, RGBA, 16-bit, turned by EXIF, CMYK; and a broken one."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "photos"
    folder.mkdir()

    def noise(height: int, width: int, channels: int) -> Image.Image:
        values = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), np.uint8)
        large = cv2.resize(values, (width, height))
        return Image.fromarray(large[:, :, 0] if channels == 2 else large)

    noise(37, 501, 3).save(folder / "narrow.png")
    noise(3000, 4000, 3).save(folder / "large.jpg")
    noise(60, 80, 3).convert("L").save(folder / "grey.jpg")
    noise(60, 80, 4).save(folder / "alpha.png")
    deep = rng.integers(0, 65536, (60, 80), np.uint16)
    cv2.imwrite(str(folder / "deep.png"), deep)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying down, to be shown turned by a quarter
    noise(60, 100, 3).save(folder / "turned.jpg", exif=exif)
    noise(60, 80, 3).convert("CMYK").save(folder / "print.jpg")
    (folder / "broken.jpg").write_bytes((folder / "large.jpg").read_bytes()[:2000])

    out = tmp_path / "out"
    result = run("predict", trained / "best.pth", folder, "--out", out, "--device", "cpu")
    assert result.exit_code == 1
    assert "broken.jpg" in result.stderr and "Traceback" not in result.output
    assert {path.stem: read_label(path).shape for path in (out / "labels").iterdir()} == {
        "narrow": (37, 501),
        "large": (3000, 4000),
        "grey": (60, 80),
        "alpha": (60, 80),
        "deep": (60, 80),
        "turned": (100, 60),
        "print": (60, 80),
    }
    # The overlay stands upright too: the photo with the legend at its right.
    overlay = read_image(out / "overlays" / "turned.jpg")
    assert overlay.shape[0] >= 100 and overlay.shape[1] > 60


def test_bad_file_is_named_and_the_rest_is_done(
    run: Run, trained: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    out = tmp_path / "out"
    result = run("predict", trained / "best.pth", photos, "--out", out, "--device", "cpu")
    assert result.exit_code == 1
    assert "broken.jpg" in result.stderr
    assert "Traceback" not in result.output
    assert "4 labeled, 1 could not be used" in result.stdout
    assert len(list((out / "labels").rglob("*.png"))) == 4
    assert not list(out.rglob("*broken*"))


def test_under_torchrun_a_bad_file_does_not_end_the_other_processes(
    run: Run, trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (photos / "lost.mp4").write_bytes(b"no video")
    monkeypatch.setenv("WORLD_SIZE", "2")
    spoken = ""
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        result = run("predict", trained / "best.pth", photos, "-o", tmp_path, "--device", "cpu")
        assert result.exit_code == 0, result.output
        spoken += result.stderr
    assert spoken.count("broken.jpg") == 1
    assert spoken.count("the exit status is 0, since torchrun ends the other") == 1
    assert len(list((tmp_path / "labels").rglob("*.png"))) == 4
    monkeypatch.setenv("RANK", "0")
    clips = run("predict", trained / "best.pth", photos / "lost.mp4", "--device", "cpu")
    assert clips.exit_code == 0 and "lost.mp4" in clips.stderr


def test_files_and_patterns_without_overlays(
    run: Run, trained: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(
        *("predict", trained / "best.pth", photos / "odd.jpg", f"{photos}/**/*.png"),
        *("--out", out, "--no-overlays", "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    names = {path.stem for path in (out / "labels").rglob("*.png")}
    assert names == {"odd", "grey", "alpha", "deep"}
    assert not (out / "overlays").exists()


def test_what_is_there_is_kept_unless_asked_for(
    run: Run, trained: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("predict", trained / "best.pth", photos / "odd.jpg", "--out", out)
    assert run(*command, "--device", "cpu").exit_code == 0
    written = out / "labels" / "odd.png"
    correct = written.read_bytes()
    written.write_bytes(b"mine")
    kept = run(*command, "--device", "cpu")
    assert kept.exit_code == 0
    assert "1 were there already" in kept.stdout
    assert written.read_bytes() == b"mine"
    assert run(*command, "--overwrite", "--device", "cpu").exit_code == 0
    assert written.read_bytes() == correct


def test_a_chosen_precision_is_printed_and_stored_with_its_reason(
    run: Run, trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    command = ("predict", trained / "best.pth", photos / "odd.jpg", "--out", tmp_path / "out")
    result = run(*command, "--device", "cpu", "--precision", "auto")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    reason = choose_precision(torch.device("cpu")).reason
    assert (record["precision"], record["precision_reason"]) == ("fp32", reason)
    assert f"precision: fp32 ({reason})" in result.stderr
    # The reason does not decide what is kept: the same precision makes the same maps.
    given = run(*command, "--device", "cpu", "--precision", "fp32")
    assert "1 were there already" in given.stdout and "precision:" not in given.stderr


def test_test_settings_can_be_changed(
    run: Run, trained: Path, photos: Path, tmp_path: Path
) -> None:
    result = run(
        *("predict", trained / "best.pth", photos / "alpha.png", "--out", tmp_path / "out"),
        *("-s", "test.flip=true", "--set", "test.ratios=[0.5, 1]", "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    record = (tmp_path / "out" / "prediction.json").read_text()
    assert '"flip": true' in record
    assert '"ratios": [\n' in record or '"ratios": [0.5, 1.0]' in record


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["-s", "optimizer.lr=1"], "this command does not use the setting"),
        (["-s", "test.flop=1"], "did you mean test.flip?"),
        (["--precision", "double"], "fp32, bf16 or fp16"),
        (["nowhere.jpg"], "nowhere.jpg"),
        (["--engine", "dask"], "'dask'"),
        (["--workers", "2"], "add --engine ray"),
    ],
)
def test_mistakes_stop_before_anything_is_written(
    run: Run, trained: Path, photos: Path, tmp_path: Path, arguments: list[str], part: str
) -> None:
    out = tmp_path / "out"
    result = run("predict", trained / "best.pth", photos, *arguments, "-o", out, "--device", "cpu")
    assert result.exit_code == 2
    assert part in result.stderr
    assert not out.exists()


@pytest.mark.slow
def test_ray_gives_the_same_label_files(
    run: Run, trained: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    for out, more in (("plain", []), ("ray", ["--engine", "ray", "--workers", "1"])):
        folder = ["--out", tmp_path / out, "--device", "cpu", "--save", "coco"]
        result = run("predict", trained / "best.pth", photos, *folder, *more)
        assert result.exit_code == 1
        assert "4 labeled, 1 could not be used" in result.stdout
        assert f"error: {photos / 'broken.jpg'}" in result.stderr
    for part in ("labels", "overlays", "coco"):
        plain, ray = (
            {p.name: p.read_bytes() for p in (tmp_path / out / part).rglob("*") if p.is_file()}
            for out in ("plain", "ray")
        )
        assert plain == ray and plain
    assert "table: " in result.stdout and (tmp_path / "ray" / "predictions.parquet").is_file()


def clip(path: Path, frames: int = 6) -> Path:
    """A tiny video of noise."""
    rng = np.random.default_rng(2)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (64, 48))
    for _ in range(frames):
        writer.write(cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (64, 48)))
    writer.release()
    return path


def test_video_is_painted(run: Run, trained: Path, tmp_path: Path) -> None:
    video, out = clip(tmp_path / "drive.avi"), tmp_path / "painted.mp4"
    result = run("predict", trained / "best.pth", video, "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "6 frames painted" in result.stdout and "images/s" in result.stdout
    opened = cv2.VideoCapture(str(out))
    shapes = []
    while (frame := opened.read())[0]:
        shapes.append(frame[1].shape)
    assert shapes == [(48, 64, 3)] * 6
    again = run("predict", trained / "best.pth", video, "--out", out, "--device", "cpu")
    assert again.exit_code == 2 and "--overwrite" in again.stderr


def test_videos_into_a_folder_and_one_that_is_broken(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    good, bad = clip(tmp_path / "good.avi"), tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    out = tmp_path / "out"
    result = run("predict", trained / "best.pth", bad, good, "--out", out, "--device", "cpu")
    assert result.exit_code == 1
    assert "bad.mp4" in result.stderr and "Traceback" not in result.output
    assert sorted(path.name for path in out.iterdir()) == ["good.mp4", "good.mp4.json"]
    mixed = run("predict", trained / "best.pth", good, tmp_path, "--out", out, "--device", "cpu")
    assert mixed.exit_code == 2 and "either videos or images" in mixed.stderr
    one = tmp_path / "one.mp4"
    both = run("predict", trained / "best.pth", bad, good, "--out", one, "--device", "cpu")
    assert both.exit_code == 2 and "one.mp4, for 2 videos" in both.stderr
    # Started again with both whole, it does the one that is missing.
    bad.write_bytes(clip(tmp_path / "other.avi").read_bytes())
    before = (out / "good.mp4").stat().st_mtime_ns
    again = run("predict", trained / "best.pth", bad, good, "--out", out, "--device", "cpu")
    assert again.exit_code == 0, again.output
    assert "was there already" in again.stdout and (out / "bad.mp4").is_file()
    assert (out / "good.mp4").stat().st_mtime_ns == before
    # A clip that was replaced, by one with an older date, is painted again.
    good.write_bytes((tmp_path / "other.avi").read_bytes()[:-1])
    os.utime(good, (1, 1))
    again = run("predict", trained / "best.pth", good, "--out", out, "--device", "cpu")
    assert again.exit_code == 0 and "6 frames painted" in again.stdout, again.output
    assert (out / "good.mp4").stat().st_mtime_ns != before
    # So is one whose painting ended before its record was written.
    record = json.loads((out / "good.mp4.json").read_text())
    (out / "good.mp4.json").write_text(json.dumps({**record, "painting": True}))
    again = run("predict", trained / "best.pth", good, "--out", out, "--device", "cpu")
    assert "6 frames painted" in again.stdout
    # Other settings and other clips of the name are not mixed, and a stranger's file stays.
    options = ("--out", out, "--device", "cpu")
    other = run("predict", trained / "best.pth", good, *options, "--opacity", 0.9)
    assert other.exit_code == 2 and "painted with other opacity" in other.stderr
    (tmp_path / "else").mkdir()
    elsewhere = clip(tmp_path / "else" / "good.avi")
    another = run("predict", trained / "best.pth", elsewhere, *options)
    assert another.exit_code == 2 and "another video than" in another.stderr
    (out / "good.mp4").write_bytes(b"retouched")
    kept = run("predict", trained / "best.pth", good, *options)
    assert kept.exit_code == 0 and "no record says what it was painted from" in kept.stdout
    assert (out / "good.mp4").read_bytes() == b"retouched"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--out", "painted.gif"), ".webm"),
        (("--no-overlays",), "--no-overlays"),
        (("--legend",), "--legend"),
        (("--engine", "ray"), "ray, with videos"),
    ],
)
def test_options_that_videos_do_not_have_are_refused(
    run: Run, trained: Path, tmp_path: Path, arguments: tuple[str, ...], part: str
) -> None:
    video = clip(tmp_path / "drive.avi")
    arguments = tuple(str(tmp_path / one) if "painted" in one else one for one in arguments)
    result = run("predict", trained / "best.pth", video, *arguments, "--device", "cpu")
    assert result.exit_code == 2 and part in result.stderr
    assert [path.name for path in tmp_path.iterdir() if "painted" in path.name] == []


def test_compiled_option_and_speed_of_photos(
    run: Run, trained: Path, photos: Path, tmp_path: Path
) -> None:
    results = {}
    for name, options in {"plain": (), "fast": ("--compile",)}.items():
        out = tmp_path / name
        result = run(
            *("predict", trained / "best.pth", photos / "odd.jpg", "--out", out, *options),
            *("--device", "cpu"),
        )
        assert result.exit_code == 0, result.output
        assert "s for the first image of each size" in result.stdout
        results[name] = read_label(out / "labels" / "odd.png")
    assert (results["plain"] == results["fast"]).mean() > 0.999


def test_forms_of_the_network_and_their_record(
    run: Run, trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CGRSEG_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"

    def predict(*words: str) -> Result:
        return run("predict", trained / "best.pth", *words, "--out", out, "--device", "cpu")

    def record() -> dict[str, object]:
        found: dict[str, object] = json.loads((out / "prediction.json").read_text())
        return found

    odd, gray = str(photos / "odd.jpg"), str(photos / "grey.png")
    plain = predict(odd, "--no-compile")
    assert plain.exit_code == 0 and "form:" not in plain.stdout
    assert record()["compile"] is False and not {"auto", "form"} & set(record())
    # auto goes on with what another form began.
    both = predict(odd, gray)
    assert both.exit_code == 0, both.output
    assert "1 labeled, 1 were there already" in both.stdout
    text = "folded network (1 images): no compiled network was ready"
    assert f"form: {text}" in both.stdout and "; --compile makes it" in both.stdout
    assert record()["compile"] is False and record()["auto"] is True
    assert str(record()["form"]).startswith(text)
    again = predict(odd, gray, "--compile", "auto")
    assert again.exit_code == 0 and "2 were there already" in again.stdout
    assert str(record()["form"]).startswith(text)
    # A form by name does not go on with what auto began.
    for words in (("--compile", "off"), ("--compile=off",), ("--no-compile",), ("--compile",)):
        other = predict(*words, odd, gray)
        assert other.exit_code == 2 and "results of other compile" in other.stderr, other.output
    wrong = predict(odd, "--compile=sometimes")
    assert wrong.exit_code == 2 and "auto, on, off" in wrong.stderr


def test_forms_of_the_network_for_videos(run: Run, trained: Path, tmp_path: Path) -> None:
    video, out = clip(tmp_path / "drive.avi"), tmp_path / "out"
    out.mkdir()
    command = ("predict", trained / "best.pth", video, "--out", out, "--device", "cpu")
    result = run(*command)
    assert result.exit_code == 0 and "form: folded network (6 images)" in result.stdout
    record = json.loads((out / "drive.mp4.json").read_text())
    assert record["auto"] is True and record["form"].startswith("folded network (6 images)")
    assert "was there already" in run(*command).stdout
    other = run(*command, "--no-compile")
    assert other.exit_code == 2 and "painted with other compile" in other.stderr


def test_annotation_files_come_with_scores_and_follow_the_folder(
    run: Run, trained: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    formats = ["labelstudio", "cvat", "coco", "labelme", "geojson"]
    command = ("predict", trained / "best.pth", photos, "--out", out, "--device", "cpu")
    plain = run(*command, "--no-overlays")
    assert "4 labeled" in plain.stdout
    before = {path: read_label(path) for path in (out / "labels").rglob("*.png")}
    save = [option for name in formats for option in ("--save", name)]
    result = run(*command, "--no-overlays", *save)
    assert result.exit_code == 0, result.output
    assert "4 labeled" in result.stdout  # label maps without scores are predicted again
    for path, labels in before.items():
        np.testing.assert_array_equal(read_label(path), labels)
    coco = json.loads((out / "coco/annotations.json").read_text())
    names = {each["file_name"] for each in coco["images"]}
    assert names == {"odd.jpg", "grey.png", "alpha.png", "deeper/deep.png"}
    assert all(0 < each["score"] <= 1 for each in coco["annotations"])
    assert sum(each["area"] for each in coco["annotations"]) == sum(
        labels.size for labels in before.values()
    )
    assert (out / "labelme/deeper/deep.json").is_file()
    assert (out / "geojson/deeper/deep.geojson").is_file()
    written = {path: path.stat().st_mtime_ns for path in out.rglob("deep.*json")}
    (photos / "grey.png").unlink()
    again = run(*command, "--no-overlays", *save)
    assert "0 labeled, 3 were there already" in again.stdout
    assert len(json.loads((out / "coco/annotations.json").read_text())["images"]) == 3
    assert written == {path: path.stat().st_mtime_ns for path in written}
    (out / "labelme/odd.json").write_text("{}")
    kept = run(*command, "--no-overlays", *save)
    assert "labelme/odd.json: it was changed since it was written" in kept.stderr
    assert (out / "labelme/odd.json").read_text() == "{}"
    # No image of the annotation folders is mistaken for an input, and the folder converts back.
    back = run("data", "convert", "coco", out / "coco/annotations.json", photos, tmp_path / "back")
    assert back.exit_code == 0, back.output
    found = read_label(tmp_path / "back/annotations/odd.png")
    classes = (tmp_path / "back/classes.txt").read_text().splitlines()
    assert classes == [each["name"] for each in coco["categories"]]
    np.testing.assert_array_equal(found, before[out / "labels/odd.png"])


def test_annotation_files_need_images_and_a_known_format(
    run: Run, trained: Path, photos: Path, tmp_path: Path
) -> None:
    command = ("predict", trained / "best.pth", photos, "--out", tmp_path / "out")
    wrong = run(*command, "--save", "pascal")
    assert wrong.exit_code == 2 and "--save" in wrong.stderr and "geojson" in wrong.stderr
    assert not (tmp_path / "out").exists()
