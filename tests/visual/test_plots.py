"""Charts: what they draw, read back from the figure itself."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cgrseg.visual import plots


def _lengths(axes: Any, side: str) -> list[float]:
    return [getattr(bar, f"get_{side}")() for bar in axes.patches]


def test_series_takes_numbers_from_text_and_skips_the_rest() -> None:
    rows: list[dict[str, Any]] = [
        {"iteration": "10", "loss": "1.5"},
        {"iteration": "20", "loss": ""},
        {"iteration": "30", "loss": "nan"},
        {"iteration": 40, "loss": 0.5},
        {"loss": 3},
        {"iteration": 50},
    ]
    assert plots.series_of(rows, "loss") == ([10.0, 40.0], [1.5, 0.5])


def test_columns_go_to_their_panels() -> None:
    columns = ["iteration", "loss", "loss_ce", "rate", "images_per_second", "memory_gib", "mIoU"]
    assert plots.curve_panels(columns) == {
        "Loss": ["loss", "loss_ce"],
        "Score": ["mIoU"],
        "Learning rate": ["rate"],
        "Images/s": ["images_per_second"],
    }


def test_training_curves_draw_every_point_once() -> None:
    rows = [{"iteration": k, "loss": 1.0 / k, "loss_b": "", "rate": 0.1} for k in (1, 2, 4)]
    scores = [{"iteration": 4, "mIoU": 0.25, "aAcc": 0.5}]
    figure = plots.training_curves(rows, scores)
    drawn = {
        axes.get_title(loc="left"): [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
        for axes in figure.axes
    }
    assert drawn == {
        "Loss": [[[1, 1.0], [2, 0.5], [4, 0.25]]],
        "Score": [[[4, 0.25]], [[4, 0.5]]],
        "Learning rate": [[[1, 0.1], [2, 0.1], [4, 0.1]]],
    }


def test_training_curves_without_rows_say_so() -> None:
    (axes,) = plots.training_curves([]).axes
    assert [text.get_text() for text in axes.texts] == ["no rows were logged"]


def test_bars_are_sorted_best_on_top_with_the_mean_of_those_that_occur() -> None:
    figure = plots.class_bars(["a", "b", "c"], [0.2, np.nan, 0.9])
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["b", "a", "c"]  # bottom to top
    assert _lengths(axes, "width") == [0.0, 0.2, 0.9]
    texts = {text.get_text() for text in axes.texts}
    assert texts == {"does not occur", "20.0", "90.0", "mean 55.0"}
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [0.55, 0.55]


def test_bars_take_the_palette_of_their_class() -> None:
    palette = [(255, 0, 0), (0, 255, 0)]
    (axes,) = plots.class_bars(["a", "b"], [0.9, 0.1], palette=palette).axes
    assert [bar.get_facecolor()[:3] for bar in axes.patches] == [(0, 1, 0), (1, 0, 0)]


def test_row_shares_by_hand() -> None:
    found = plots.row_shares([[3, 1], [0, 0]])
    np.testing.assert_array_equal(found, [[0.75, 0.25], [0, 0]])


def test_confusion_draws_row_shares_and_numbers() -> None:
    figure = plots.confusion_figure([[3, 1], [0, 10]], ["sky", "tree"])
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 0.25], [0, 1]])
    placed = {text.get_position(): text.get_text() for text in axes.texts}
    assert placed == {(0, 0): "75", (1, 0): "25", (1, 1): "100"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sky", "tree"]


def test_confusion_of_150_classes_has_a_row_of_pixels_per_name() -> None:
    figure = plots.confusion_figure(np.eye(150), [f"class {k}" for k in range(150)])
    axes = figure.axes[0]
    assert len(axes.texts) == 0
    figure.canvas.draw()
    cell = axes.get_window_extent().height / 150  # at 100 dots per inch
    letter = axes.get_yticklabels()[0].get_window_extent().height
    assert letter <= cell * 1.25
    labels = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert min(label.x0 for label in labels) >= 0  # no name is cut


def test_histogram_is_sorted_and_in_percent() -> None:
    (axes,) = plots.class_histogram(["a", "b", "c"], [10, 90, 0]).axes
    assert _lengths(axes, "height") == [90.0, 10.0, 0.0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["b", "a", "c (none)"]
    assert axes.get_yscale() == "log"


def test_histogram_of_nothing_can_be_drawn() -> None:
    assert plots.figure_png(plots.class_histogram(["a"], [0]))[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "call",
    [
        lambda: plots.class_bars(["a"], [0.1, 0.2]),
        lambda: plots.confusion_figure(np.eye(3), ["a", "b"]),
        lambda: plots.row_shares(np.zeros((2, 3))),
        lambda: plots.class_histogram(["a", "b"], [1, -1]),
    ],
)
def test_misfits_are_refused(call: object) -> None:
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figures_are_written_by_suffix(tmp_path: Path, suffix: str) -> None:
    path = plots.save_figure(plots.class_bars(["a"], [0.5]), tmp_path / f"bars{suffix}")
    head = path.read_bytes()[:200]
    assert {".png": b"PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix] in head
    assert [p.name for p in tmp_path.iterdir()] == [f"bars{suffix}"]


def test_a_failed_write_keeps_the_earlier_picture(tmp_path: Path) -> None:
    target = tmp_path / "bars.xyz"
    target.write_bytes(b"before")
    with pytest.raises(ValueError):
        plots.save_figure(plots.class_bars(["a"], [0.5]), target)
    assert target.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["bars.xyz"]


def test_pictures_are_not_empty() -> None:
    data = np.frombuffer(plots.figure_png(plots.class_bars(["a"], [0.5]), dpi=60), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert picture is not None and picture.std() > 10


def test_drawing_from_threads_gives_the_same_as_drawing_alone() -> None:
    alone = plots.figure_png(plots.class_bars(["a", "b"], [0.5, 0.1]), dpi=50)
    found: list[bytes] = []

    def draw() -> None:
        found.append(plots.figure_png(plots.class_bars(["a", "b"], [0.5, 0.1]), dpi=50))

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 3


def test_no_window_system_is_asked_for() -> None:
    """A backend that needs a screen is set and there is no screen: charts are drawn all the same.

    Nothing may be left among pyplot's open figures either, which are never freed.
    """
    code = (
        "from cgrseg.visual import plots\n"
        "assert plots.figure_png(plots.class_bars(['a'], [0.5]), dpi=40)[:4] == b'\\x89PNG'\n"
        "import matplotlib._pylab_helpers as helpers\n"
        "assert not helpers.Gcf.figs\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    environment["MPLBACKEND"] = "tkagg"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
