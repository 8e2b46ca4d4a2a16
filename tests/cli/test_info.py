"""`cgrseg info`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cgrseg.config import list_presets

from .conftest import Run


def test_network_is_shown_beside_the_published_figures(run: Run) -> None:
    result = run("info", "cgrseg_t")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    (all_parts,) = (row for row in rows if row[:1] == ["all"])
    (published,) = (row for row in rows if row[:1] == ["published"])
    assert all_parts[1] == "9.36"
    assert float(all_parts[2]) == pytest.approx(4.0, rel=0.03)
    assert published[-2:] == ["9.4", "4.0"]


def test_json_has_the_same_numbers_for_other_classes_and_sizes(run: Run) -> None:
    small = json.loads(run("info", "cgrseg_t", "--json", "--size", "256x512").stdout)
    whole = json.loads(run("info", "cgrseg_t", "--json").stdout)
    few = json.loads(run("info", "cgrseg_t", "--json", "--num-classes", "2").stdout)
    assert small["size"] == [256, 512]
    assert small["parameters"] == whole["parameters"]
    assert small["published_macs"] < 0.52 * whole["published_macs"]
    # Classifier: weights and a bias per class; guide: one more row of weights per class.
    assert few["parameters"] < whole["parameters"]


def test_size_that_does_not_fit_gives_the_next_that_does(run: Run) -> None:
    result = run("info", "cgrseg_t", "--size", "500x10")
    assert result.exit_code == 2
    assert "500x10" in result.stderr
    assert "--size 512x32" in result.stderr


def test_presets_are_listed_with_what_they_are(run: Run) -> None:
    result = run("info", "--presets")
    assert result.exit_code == 0
    for name in list_presets():
        assert name in result.stdout
    assert "none were published" in result.stdout


def test_installation_is_shown(run: Run) -> None:
    result = run("info")
    assert result.exit_code == 0
    for word in ("cgrseg", "torch", "extra [export]", "cpu,"):
        assert word in result.stdout


def test_config_is_printed_in_full(run: Run, trained: Path) -> None:
    by_name = run("info", "cgrseg-l_ade20k_160k").stdout.splitlines()
    assert 'model.name = "cgrseg_l"' in by_name
    assert "optimizer.lr = 0.00012" in by_name
    of_run = run("info", trained).stdout.splitlines()
    assert "schedule.max_iters = 2" in of_run
    assert len(of_run) == len(by_name)


def test_checkpoint_tells_what_it_holds(run: Run, trained: Path) -> None:
    result = run("info", trained / "latest.pth")
    assert result.exit_code == 0, result.output
    assert "cgrseg_t, 11 classes" in result.stdout
    assert "iteration: 2" in result.stdout
    assert "run: cgrseg-t_synthetic" in result.stdout


def test_missing_checkpoint_is_a_message(run: Run) -> None:
    result = run("info", "nothing.pth")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: nothing.pth: ")
