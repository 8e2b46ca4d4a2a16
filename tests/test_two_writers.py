"""Two commands that begin to write into one folder at the same moment: one of them is refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cgrseg.training.run_log import read_table
from tests import commands

CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commands.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def evaluated(inputs: Path) -> Path:
    """The folder of a run with an evaluation."""
    folder = inputs / "evaluated"
    best = inputs / "trained" / "latest.pth"
    commands.run("evaluate", best, f"work_dir={folder}", *CPU, log=inputs / "evaluate.log")
    return folder / "evaluation.json"


def command(name: str, inputs: Path, out: Path, second: bool) -> list[str | Path]:
    """A command that writes into `out`, with other results when it is the second of its kind."""
    best, images, data = inputs / "trained" / "latest.pth", inputs / "images", inputs / "data"
    colors = inputs / ("two.txt" if second else "one.txt")
    report: list[str | Path] = ["report", inputs / "evaluated" / "evaluation.json"]
    report += ["--data-root", data, *CPU, "--overwrite"]
    masks = inputs / "masks"
    known: dict[str, list[str | Path]] = {
        "train": [*commands.train(data, out, f"optimizer.lr={'1e-2' if second else '1e-4'}")],
        "evaluate": ["evaluate", best, f"work_dir={out}", *CPU],
        "labels": ["evaluate", best, f"work_dir={out.parent / str(second)}", "--out", out, *CPU],
        "predict": ["predict", best, images, "--out", out, *CPU],
        "video": ["predict", best, inputs / "clip.avi", "--out", out / "clip.avi", *CPU],
        "convert": ["data", "convert", "rgb", images, masks, out, "--colors", colors],
        "synth": ["data", "synth", out, "--train-scenes", "30", "--size", "96"],
        "export": ["export", best, "--format", "pt2", "--size", "64", "--out", out / "model.pt2"],
        "report": [*report, "--out", out / "report.html"],
        "browse": ["data", "browse", data, "--out", out / "sheet.html"],
        "check": ["data", "check", data, "--plot", out / "classes.png"],
    }
    return known[name]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("convert", "convert"),
        ("predict", "labels"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [
                ("train", "train"),
                ("train", "evaluate"),
                ("train", "export"),
                ("evaluate", "evaluate"),
                ("evaluate", "report"),
                ("labels", "labels"),
                ("predict", "predict"),
                ("predict", "train"),
                ("predict", "video"),
                ("video", "video"),
                ("video", "export"),
                ("convert", "predict"),
                ("convert", "synth"),
                ("synth", "synth"),
                ("synth", "predict"),
                ("export", "export"),
                ("report", "report"),
                ("report", "browse"),
                ("browse", "check"),
                ("check", "check"),
            ]
        ),
    ],
)
def test_one_of_two_is_refused(
    first: str, second: str, inputs: Path, evaluated: Path, tmp_path: Path
) -> None:
    assert evaluated.is_file()
    out, gate = tmp_path / "out", tmp_path / "gate"
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    # The one that gets the lock keeps it until the other one has tried.
    places = {"GATE": str(gate), "KEPT": str(out)}
    both = [
        commands.start(*command(name, inputs, out, number == 1), log=logs[number], **places)
        for number, name in enumerate((first, second))
    ]
    gate.touch()
    deadline = time.monotonic() + 300
    while all(process.is_alive() for process in both) and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / "ended").touch()
    for process in both:
        process.join(timeout=300)
    said = [log.read_text() for log in logs]
    status = [process.exitcode for process in both]
    print(f"{first} and {second} end with {status}")
    assert sorted(map(str, status)) == ["0", "2"], said
    refused = said[status.index(2)]
    assert f"{out}: another command writes into this folder" in refused
    assert "what to do" in refused and "Traceback" not in "".join(said)
    assert commands.hidden(out) == []
    if first == second == "train":
        rows = [row["iteration"] for row in read_table(out / "metrics.csv")]
        assert rows == ["1", "2", "3", "4"]
