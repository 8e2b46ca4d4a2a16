"""The whole path from config and checkpoint to scores, on real street scenes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgrseg.config import Config, load_config
from cgrseg.datasets import get_spec
from cgrseg.datasets.label_rules import LabelRule
from cgrseg.errors import ConfigError, DataError
from cgrseg.evaluation import evaluate
from cgrseg.evaluation.outputs import SubmissionWriter, submission_ids
from cgrseg.evaluation.result import EvaluationResult, print_scores
from cgrseg.inference import TorchBackend, segment
from cgrseg.models import CGRSeg
from tests.golden_weights import set_golden_weights
from tests.training.small_run import write_dataset

CAMVID = get_spec("camvid")


@pytest.fixture(scope="module")
def network() -> CGRSeg:
    model = CGRSeg("cgrseg_t", 11, classes=CAMVID.classes, palette=CAMVID.palette)
    set_golden_weights(model)
    return model.eval()


@pytest.fixture
def config(shared_data: Path, tmp_path: Path) -> Config:
    return load_config(
        "cgrseg-t_camvid",
        {
            "data.root": str(shared_data / "camvid"),
            "data.workers": 0,
            "test.scale": [160, 96],
            "test.resize": "keep_ratio",
            "work_dir": str(tmp_path / "run"),
        },
    )


def test_scores_files_and_pictures(
    config: Config, network: CGRSeg, shared_data: Path, tmp_path: Path
) -> None:
    result = evaluate(
        config,
        network,
        device="cpu",
        split="test",
        limit=3,
        out=tmp_path / "labels",
        show_dir=tmp_path / "shown",
        progress=False,
    )
    assert len(result.stems) == 3 and result.classes == CAMVID.classes
    hits = labelled = 0
    for stem in result.stems:
        photo = np.array(Image.open(shared_data / "camvid/images/test" / f"{stem}.jpg"))
        truth = np.array(Image.open(shared_data / "camvid/annotations/test" / f"{stem}.png"))
        written = Image.open(tmp_path / "labels" / f"{stem}.png")
        labels = np.array(written)
        assert np.array_equal(labels, segment(TorchBackend(network), photo, config.test).labels)
        assert written.getpalette()[:33] == [v for colour in CAMVID.palette for v in colour]  # type: ignore[index]
        hits += int((labels == truth)[truth != 255].sum())
        labelled += int((truth != 255).sum())
        with Image.open(tmp_path / "shown" / f"{stem}.jpg") as shown:
            assert shown.width > 480 and shown.height >= 360
    assert result.scores.pixel_accuracy == hits / labelled
    stored = json.loads((tmp_path / "run" / "evaluation_test_first3.json").read_text())
    assert stored["scores"]["aAcc"] == hits / labelled
    assert stored["settings"]["split"] == "test"
    assert (tmp_path / "run" / "evaluation_test_first3.npz").is_file()


def test_names_of_results_keep_kinds_apart(config: Config, network: CGRSeg, tmp_path: Path) -> None:
    config.test.scale = (64, 48)
    evaluate(config, network, device="cpu", limit=1, out=tmp_path / "a.json", progress=False)
    evaluate(
        config,
        network,
        device="cpu",
        limit=1,
        aug_test=True,
        out=tmp_path / "b.npz",
        progress=False,
    )
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == [
        "evaluation_first1.json",
        "evaluation_first1.npz",
        "evaluation_multiscale_first1.json",
        "evaluation_multiscale_first1.npz",
    ]
    assert json.loads((tmp_path / "a.json").read_text())["settings"]["test"]["ratios"] == [1.0]
    multiscale = json.loads((tmp_path / "run" / names[2]).read_text())["settings"]["test"]
    assert multiscale["ratios"] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75] and multiscale["flip"]
    assert (tmp_path / "b.npz").is_file()


def test_submission_of_images_without_labels(
    shared_data: Path, network: CGRSeg, tmp_path: Path
) -> None:
    model = CGRSeg("cgrseg_t", 150)
    set_golden_weights(model)
    config = load_config(
        "cgrseg-t_ade20k_160k",
        {
            "data.root": str(shared_data / "ade20k_samples"),
            "test.scale": [160, 96],
            "data.workers": 0,
        },
    )
    result = evaluate(
        config, model, device="cpu", format_only=True, out=tmp_path / "out", progress=False
    )
    assert len(result.stems) == 3 and np.isnan(result.scores.mean_iou)
    assert not list(tmp_path.glob("**/*.json"))
    for stem in result.stems:
        written = np.array(Image.open(tmp_path / "out" / f"{stem}.png"))
        photo = np.array(
            Image.open(shared_data / "ade20k_samples/images/validation" / f"{stem}.jpg")
        )
        expected = segment(TorchBackend(model), photo, config.test).labels.astype(int) + 1
        assert np.array_equal(written, expected)


def test_a_submission_with_one_name_twice_is_refused(tmp_path: Path) -> None:
    spec = get_spec("camvid")
    SubmissionWriter(tmp_path, spec, ["a/1", "a/2"])
    with pytest.raises(DataError, match="a/1 and b/1, whose label files would have the same name"):
        SubmissionWriter(tmp_path, spec, ["a/1", "a/2", "b/1"])


def test_submission_ids() -> None:
    assert submission_ids(get_spec("ade20k")).tolist() == list(range(1, 151))
    assert submission_ids(get_spec("cityscapes"))[[0, 13, 18]].tolist() == [7, 26, 33]
    assert submission_ids(get_spec("camvid")).tolist() == list(range(11))
    stuff = submission_ids(get_spec("coco_stuff164k"))
    rule = get_spec("coco_stuff164k").label_rule
    assert [rule.lookup[raw] for raw in stuff] == list(range(171))


def test_merged_classes_have_no_way_back() -> None:
    from dataclasses import replace

    merged = replace(
        CAMVID,
        classes=("a", "b"),
        palette=CAMVID.palette[:2],
        label_rule=LabelRule.from_mapping({0: 0, 1: 0, 2: 1}),
    )
    with pytest.raises(ConfigError, match=r"'a' stands for the stored ids \[0, 1\]"):
        submission_ids(merged)


def test_what_does_not_fit_is_refused_before_any_work(
    config: Config, network: CGRSeg, tmp_path: Path
) -> None:
    def run(**changes: object) -> None:
        evaluate(config, network, device="cpu", limit=1, progress=False, **changes)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="pickles are not written"):
        run(out=tmp_path / "x.pkl")
    with pytest.raises(ConfigError, match="mIou"):
        run(metrics=["mIou"])
    with pytest.raises(ConfigError, match="opacity: 0"):
        run(show_dir=tmp_path / "s", opacity=0)
    with pytest.raises(DataError, match="split 'tset'"):
        run(split="tset")
    with pytest.raises(ConfigError, match="folder for the files of the submission"):
        run(format_only=True, out=tmp_path / "x.json")
    with pytest.raises(ConfigError, match=r"150 classes\n.*11 classes of"):
        evaluate(config, CGRSeg("cgrseg_t", 150), device="cpu", progress=False)
    assert not (tmp_path / "run").exists() and not (tmp_path / "s").exists()


def test_classes_in_another_order_are_refused_and_other_names_told(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    turned = CGRSeg("cgrseg_t", 11, classes=CAMVID.classes[::-1])
    with pytest.raises(ConfigError, match=r"another order.*id 0: .*\n  checkpoint: .*\n  data: "):
        evaluate(config, turned, device="cpu", limit=1, progress=False)
    names = [CAMVID.classes[1], CAMVID.classes[0], "himmel", *CAMVID.classes[3:]]
    with pytest.raises(ConfigError, match="another order"):
        evaluate(
            config, CGRSeg("cgrseg_t", 11, classes=names), device="cpu", limit=1, progress=False
        )
    renamed = CGRSeg("cgrseg_t", 11, classes=("himmel", *CAMVID.classes[1:]))
    config.model.name = "cgrseg_b"
    with caplog.at_level(logging.WARNING, "cgrseg.evaluation"):
        evaluate(config, renamed, device="cpu", limit=1, progress=False)
    assert "'himmel'" in caplog.text and "names cgrseg_b" in caplog.text


def test_results_never_land_in_the_dataset(tmp_path: Path) -> None:
    # On files of its own: were the refusal to fail, it would spoil what it writes into.
    root = write_dataset(tmp_path / "data")
    config = load_config("cgrseg-t_custom", {"data.root": str(root), "data.workers": 0})
    network = CGRSeg("cgrseg_t", 3).eval()
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    places = [root, root / "images" / "val", root / "images" / "train", root / "annotations" / "x"]
    for place in places:
        with pytest.raises(ConfigError, match="the dataset itself"):
            evaluate(config, network, device="cpu", show_dir=place, progress=False)
        with pytest.raises(ConfigError, match="the dataset itself"):
            evaluate(config, network, device="cpu", out=place, progress=False)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == files


@pytest.mark.parametrize(
    ("given", "named"),
    [({"batch_size": 0}, "batch_size"), ({"limit": 0}, "limit"), ({"opacity": 7.0}, "opacity")],
)
def test_values_out_of_range_are_refused_before_anything_is_read(
    given: dict[str, float], named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{named}: "):
        evaluate("cgrseg-t_custom", "missing.pth", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", ["0", "20", "200"])
def test_scores_are_printed_whole_at_any_width(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    confusion = np.array([[3, 1], [0, 4]])
    counts = np.array([[[3, 4], [3, 5], [4, 4]]])
    result = EvaluationResult(("sky", "road with a long name"), ("a",), confusion, counts)
    print_scores(result)
    printed = capsys.readouterr().out
    assert "75.00" in printed and "Precision" in printed
