"""The report of a run: what it says, that it stands alone, and what lies beside it."""

from __future__ import annotations

import base64
import csv
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cgrseg.errors import DataError
from cgrseg.html import data_url, percent
from cgrseg.reporting.records import ReportInput, Sample, flatten
from cgrseg.reporting.report import (
    encode_picture,
    software_versions,
    top_confusions,
    write_report,
)
from cgrseg.visual.overlay import RIGHT_COLOR, WRONG_COLOR

VOID = {"meta", "img", "br", "line", "circle", "rect", "polyline", "link", "input"}


class _Structure(HTMLParser):
    """Collects addresses, text and headings, and checks that elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.addresses += [str(named[key]) for key in ("src", "href", "action") if key in named]
        if tag == "img":
            self.images.append(named)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (self.open[-5:], tag)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def _parse(path: Path) -> _Structure:
    structure = _Structure()
    structure.feed(path.read_text(encoding="utf-8"))
    structure.close()
    assert structure.open == []
    return structure


def _decode(source: str | None) -> np.ndarray:
    assert source is not None
    data = base64.b64decode(source.split(",", 1)[1])
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return np.asarray(found[..., ::-1])


def test_page_stands_alone(tmp_path: Path, report_input: ReportInput) -> None:
    files = write_report(tmp_path / "report.html", report_input)
    structure = _parse(files.html)
    outside = [
        address for address in structure.addresses if not address.startswith(("#", "data:image/"))
    ]
    assert outside == []
    source = files.html.read_text(encoding="utf-8")
    assert "default-src 'none'" in source
    style = "".join(re.findall(r"<style>(.*?)</style>", source, re.S))
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon", source)


def test_page_says_the_numbers(tmp_path: Path, report_input: ReportInput) -> None:
    text = " ".join(_parse(write_report(tmp_path / "r.html", report_input).html).text)
    # mIoU is the mean of 80 and 75; aAcc 14 of 16.
    for expected in ("77.5", "87.5", "80.0", "75.0", "does not occur", "7.0", "3.25", "2.13.0"):
        assert expected in text, expected
    for heading in ("Summary", "Training", "Classes", "Confusion", "Worst images", "optimizer.lr"):
        assert heading in text, heading
    assert "cgrseg_t · camvid · test · 2 images" in text
    assert "Calibration" not in text  # nothing was measured, so no empty part


def test_names_cannot_inject_markup(tmp_path: Path, report_input: ReportInput) -> None:
    page = write_report(tmp_path / "r.html", report_input).html
    source = page.read_text(encoding="utf-8")
    assert "<car>" not in source and "Run <1>" not in source and "a/<b>" not in source
    text = "".join(_parse(page).text)
    assert "Run <1> & more" in text and "road & <car>" in text


def test_script_data_survives_hostile_names(tmp_path: Path, report_input: ReportInput) -> None:
    names = ["</script><script>alert(1)</script>", "<!--", "\u2028 & 'x'"]
    for record, name in zip(report_input.evaluation["per_class"], names, strict=True):
        record["class"] = name
    source = write_report(tmp_path / "r.html", report_input).html.read_text(encoding="utf-8")
    block = re.search(r'<script id="data" type="application/json">(.*?)</script>', source)
    assert block is not None and "<" not in block[1] and ">" not in block[1]
    assert json.loads(block[1])["confusion"]["classes"] == names
    assert "alert(1)</script>" not in source


def test_classes_are_sorted_best_first_and_undefined_last(
    tmp_path: Path, report_input: ReportInput
) -> None:
    source = write_report(tmp_path / "r.html", report_input).html.read_text(encoding="utf-8")
    table = source[source.index('class="sortable classes"') :]
    order = re.findall(r'<td class="word" data-value="([^"]+)">', table)[:3]
    assert order == ["sky", "tree", "road &amp; &lt;car&gt;"]


def test_pictures_show_image_label_prediction_and_errors(
    tmp_path: Path, report_input: ReportInput, sample: Sample
) -> None:
    palette = np.array([(200, 0, 0), (0, 200, 0), (0, 0, 200)], np.uint8)
    coloured = replace(report_input, palette=palette)
    images = _parse(write_report(tmp_path / "r.html", coloured).html).images
    shown = {str(image["alt"]): image["src"] for image in images if image.get("src")}
    assert list(shown) == ["image", "label", "prediction", "error map"]
    assert np.abs(_decode(shown["image"]).astype(int) - 120).max() <= 3
    label, prediction = _decode(shown["label"]), _decode(shown["prediction"])
    assert label[0, 0].tolist() == [200, 0, 0] and label[0, 5].tolist() == [0, 200, 0]
    assert label[3, 0].tolist() == [0, 0, 0]
    assert prediction[0, 3].tolist() == [200, 0, 0]
    errors = _decode(shown["error map"]).astype(int)
    weight = 0.65
    wrong = weight * np.array(WRONG_COLOR) + (1 - weight) * 120
    right = weight * np.array(RIGHT_COLOR) + (1 - weight) * 120
    assert np.abs(errors[0, 3] - wrong).sum() < np.abs(errors[0, 3] - right).sum()
    assert np.abs(errors[0, 0] - right).sum() < np.abs(errors[0, 0] - wrong).sum()


def test_large_pictures_are_reduced_and_labels_keep_their_colours() -> None:
    labels = np.zeros((1000, 2000, 3), np.uint8)
    labels[:, 1000:] = (10, 200, 30)
    picture = encode_picture(labels, "label", longest=500, exact=True)
    assert (picture.width, picture.height, picture.media_type) == (500, 250, "image/png")
    found = _decode(data_url(picture.content, picture.media_type))
    assert found.shape == (250, 500, 3)
    assert {tuple(colour) for colour in found.reshape(-1, 3)} == {(0, 0, 0), (10, 200, 30)}


def test_samples_without_labels_show_no_error_map(
    tmp_path: Path, report_input: ReportInput, sample: Sample
) -> None:
    bare = replace(report_input, samples=[replace(sample, label=None)])
    structure = _parse(write_report(tmp_path / "r.html", bare).html)
    assert [i["alt"] for i in structure.images if i.get("src")] == ["image", "prediction"]
    assert "Colors of the error maps" not in " ".join(structure.text)


def test_minimal_input_makes_a_page(tmp_path: Path, report_input: ReportInput) -> None:
    bare = ReportInput("bare", report_input.evaluation)
    text = " ".join(_parse(write_report(tmp_path / "r.html", bare).html).text)
    assert "Summary" in text and "Training" not in text and "Images" not in text


def test_files_beside_hold_the_same_numbers(tmp_path: Path, report_input: ReportInput) -> None:
    files = write_report(tmp_path / "deep" / "report.html", report_input)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == [
        "report.html",
        "report.json",
        "report_classes.csv",
        "report_confusion.csv",
        "report_images.csv",
    ]
    numbers = json.loads(files.json.read_text(encoding="utf-8"))
    assert numbers["evaluation"]["scores"]["mIoU"] == pytest.approx(0.775)
    assert numbers["versions"] == {"torch": "2.13.0"}
    classes, images, confusion = (
        list(csv.reader(path.read_text(encoding="utf-8").splitlines())) for path in files.tables
    )
    assert classes[0][:2] == ["class", "IoU"]
    assert classes[1][:2] == ["sky", "0.8"] and classes[3][:2] == ["road & <car>", ""]
    assert images[0] == ["image", "aAcc", "mIoU", "pixels"]
    # Image 1: sky 3 / 5, tree 6 / 8.
    assert images[2][0] == "image_1" and float(images[2][2]) == pytest.approx((0.6 + 0.75) / 2)
    assert confusion[1] == ["sky", "8", "2", "0"]


def test_top_confusions_by_hand() -> None:
    matrix = np.array([[90, 10, 0], [5, 5, 0], [30, 0, 0]], np.int64)
    assert top_confusions(matrix, 2) == [(2, 0, 30, 1.0), (0, 1, 10, 0.1)]
    assert top_confusions(np.eye(3, dtype=np.int64)) == []


def test_short_palette_is_refused_before_anything_is_written(
    tmp_path: Path, report_input: ReportInput
) -> None:
    with pytest.raises(DataError, match="palette of 2 colors"):
        write_report(tmp_path / "r.html", replace(report_input, palette=[(0, 0, 0), (9, 9, 9)]))
    assert list(tmp_path.iterdir()) == []


def test_a_page_never_takes_the_name_of_an_evaluation(
    tmp_path: Path, report_input: ReportInput
) -> None:
    (tmp_path / "evaluation_test.json").write_text("{}")
    with pytest.raises(DataError, match="could replace a run's own files"):
        write_report(tmp_path / "evaluation_test.html", report_input)
    assert (tmp_path / "evaluation_test.json").read_text() == "{}"
    assert len(list(tmp_path.iterdir())) == 1


def test_flatten_and_percent() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == [
        ("a.b", 1),
        ("a.c.d", [2]),
        ("e", {}),
    ]
    assert (percent(0.12345), percent(None), percent(1.0, 2)) == ("12.3", "–", "100.00")


def test_versions_are_those_that_run() -> None:
    import platform

    import torch

    found = software_versions()
    assert found["Python"] == platform.python_version()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]


def _browser() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium is installed; the page's script is not run here")
    return found


@pytest.mark.slow
def test_script_runs_in_a_browser_without_errors_or_requests(
    tmp_path: Path, report_input: ReportInput
) -> None:
    browser = _browser()
    page = write_report(tmp_path / "report.html", report_input).html
    probe = """<script>
    const problems = [];
    window.addEventListener("error", (e) => problems.push(e.message));
    window.addEventListener("securitypolicyviolation", (e) => problems.push(e.blockedURI));
    </script>"""
    act = """<script>
    document.querySelectorAll("table.classes th")[1].click();
    document.querySelectorAll("table.classes th")[1].click();
    for (const button of document.querySelectorAll("button")) button.click();
    const view = document.getElementById("confusion-view");
    const box = view.getBoundingClientRect();
    view.dispatchEvent(new PointerEvent("pointermove", {
      clientX: box.right - 30, clientY: box.top + 130 }));
    document.querySelector("figure img").click();
    const rows = [...document.querySelectorAll("table.classes tbody tr")];
    document.title = JSON.stringify({
      problems,
      asked: performance.getEntriesByType("resource")
        .map((entry) => entry.name).filter((name) => !name.startsWith("data:")),
      order: rows.map((row) => row.cells[0].dataset.value),
      dark: document.documentElement.dataset.theme, height: view.height,
      open: document.getElementById("large").open });
    </script>"""
    source = page.read_text(encoding="utf-8")
    page.write_text(
        source.replace("<style>", probe + "<style>", 1).replace("</body>", act + "</body>"),
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    found: dict[str, Any] = json.loads(html.unescape(title.group(1)))
    assert found["problems"] == []
    # Sorted by IoU: one click descends, the next ascends; what is undefined stays last.
    assert found["order"] == ["tree", "sky", "road & <car>"]
    assert found["dark"] in ("light", "dark") and found["height"] > 150 and found["open"]
    assert found["asked"] == []
