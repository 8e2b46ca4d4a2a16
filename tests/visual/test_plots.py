"""Charts: what they draw, read back from the figure itself."""

from __future__ import annotations

import io
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


def png(figure: Any, dpi: int = 150) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()


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


def test_histogram_is_sorted_and_in_percent() -> None:
    (axes,) = plots.class_histogram(["a", "b", "c"], [10, 90, 0]).axes
    assert _lengths(axes, "height") == [90.0, 10.0, 0.0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["b", "a", "c (none)"]
    assert axes.get_yscale() == "log"


def test_histogram_of_nothing_can_be_drawn() -> None:
    assert png(plots.class_histogram(["a"], [0]))[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "call",
    [
        lambda: plots.class_histogram(["a"], [1, 2]),
        lambda: plots.class_histogram(["a", "b"], [1, -1]),
    ],
)
def test_misfits_are_refused(call: object) -> None:
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figures_are_written_by_suffix(tmp_path: Path, suffix: str) -> None:
    path = plots.save_figure(plots.class_histogram(["a", "b"], [5, 1]), tmp_path / f"chart{suffix}")
    head = path.read_bytes()[:200]
    assert {".png": b"PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix] in head
    assert [p.name for p in tmp_path.iterdir()] == [f"chart{suffix}"]


def test_a_failed_write_keeps_the_earlier_picture(tmp_path: Path) -> None:
    target = tmp_path / "chart.xyz"
    target.write_bytes(b"before")
    with pytest.raises(ValueError):
        plots.save_figure(plots.class_histogram(["a", "b"], [5, 1]), target)
    assert target.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["chart.xyz"]


def test_pictures_are_not_empty() -> None:
    data = np.frombuffer(png(plots.class_histogram(["a", "b"], [5, 1]), dpi=60), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert picture is not None and picture.std() > 10


def test_drawing_from_threads_gives_the_same_as_drawing_alone() -> None:
    alone = png(plots.class_histogram(["a", "b"], [5, 1]), dpi=50)
    found: list[bytes] = []

    def draw() -> None:
        found.append(png(plots.class_histogram(["a", "b"], [5, 1]), dpi=50))

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 3


def test_no_window_system_is_asked_for(tmp_path: Path) -> None:
    """A backend that needs a screen is set and there is no screen: charts are drawn all the same.

    Nothing may be left among pyplot's open figures either, which are never freed.
    """
    code = (
        "import sys\nfrom cgrseg.visual import plots\n"
        "plots.save_figure(plots.class_histogram(['a', 'b'], [5, 1]), sys.argv[1], dpi=40)\n"
        "import matplotlib._pylab_helpers as helpers\n"
        "assert not helpers.Gcf.figs\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    environment["MPLBACKEND"] = "tkagg"
    chart = tmp_path / "chart.png"
    subprocess.run([sys.executable, "-c", code, chart], env=environment, check=True, timeout=120)
    assert chart.read_bytes()[:4] == b"\x89PNG"
