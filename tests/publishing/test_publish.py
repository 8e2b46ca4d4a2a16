"""`cgrseg publish`: a folder that predicts what the checkpoint predicts, its card, its upload."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

import cgrseg
from cgrseg.cli.main import app
from cgrseg.config.schema import Config
from cgrseg.data.label_files import read_label
from cgrseg.errors import EnvironmentProblem, WeightsError
from cgrseg.evaluation import evaluate
from cgrseg.hub import upload
from cgrseg.models import load_model
from cgrseg.models.digest import weights_digest
from cgrseg.published import PUBLISHED, PublishedWeights
from cgrseg.publishing import publish
from cgrseg.publishing.card import nearest_preset
from cgrseg.publishing.publish import _replace
from cgrseg.training.checkpointing import FORMAT, model_meta
from cgrseg.training.initial_weights import load_initial_weights
from tests.golden_weights import set_golden_weights
from tests.loopback_hub import TOKEN, Hub, loopback_hub
from tests.training.small_run import small_config, write_dataset

ID = "someone/small"


def command(*arguments: object) -> Result:
    """`cgrseg publish` in this process."""
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    return runner.invoke(app, ["publish", *map(str, arguments)])


def checkpoint_of(config: Config, path: Path) -> Path:
    """A checkpoint as a run writes it, with weights whose labels vary."""
    model = cgrseg.create_model(
        config.model.name,
        3,
        classes=["sky", "ground", "thing | [*x*](y)"],
        palette=[(200, 60, 60), (60, 200, 60), (60, 60, 200)],
    )
    set_golden_weights(model)
    meta = {
        "format": FORMAT,
        **model_meta(model),
        "config": config.model_dump(mode="json"),
        "version": "0.0.9",
        "iteration": 6,
        "mIoU": 0.25,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": model.state_dict(), "meta": meta}, path)
    return path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run below a folder whose name nobody may see, evaluated."""
    secret = tmp_path_factory.mktemp("users") / "home" / "jane-secret"
    root = write_dataset(secret / "private-data", train=2, val=2)
    (root / "classes.txt").write_text("sky\nground\nthing | [*x*](y)\n")
    changes = {"model__pretrained": str(secret / "backbone.pth"), "train__load_from": str(secret)}
    config = small_config(root, secret / "run", **changes)
    checkpoint = checkpoint_of(config, secret / "run" / "best.pth")
    evaluate(config, checkpoint, device="cpu", progress=False)
    return secret / "run"


@pytest.fixture(scope="module")
def folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published") / "small"
    done = command(run_folder, "--out", out, "--license", "cc-by-4.0")
    assert done.exit_code == 0, done.output
    assert "labels and confidences of 2 images equal the checkpoint's" in done.stdout
    return out


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with loopback_hub(tmp_path_factory.mktemp("cache")) as found:
        yield found


def test_the_folder_predicts_what_the_checkpoint_predicts(folder: Path, run_folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    image = next((run_folder.parent / "private-data/images/val").iterdir())
    before = cgrseg.Predictor.from_pretrained(run_folder / "best.pth", device="cpu")
    after = cgrseg.Predictor.from_pretrained(folder, device="cpu")
    labels = before(image).labels
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(after(image).labels, labels)
    assert (after.classes, after.palette, after.test) == (
        before.classes,
        before.palette,
        before.test,
    )
    ours = cgrseg.load_model(run_folder / "best.pth", verbose=False)
    assert weights_digest(cgrseg.load_model(folder, verbose=False)) == weights_digest(ours)


def test_the_card_says_what_the_records_say(folder: Path, run_folder: Path) -> None:
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    head = yaml.safe_load(front)
    scores = json.loads((run_folder / "evaluation.json").read_text())["scores"]
    [result] = head["model-index"][0]["results"]
    values = {each["name"]: each["value"] for each in result["metrics"]}
    assert values == {name: scores[name] for name in ("mIoU", "aAcc", "mAcc")}
    assert head["license"] == "cc-by-4.0"
    assert head["pipeline_tag"] == "image-segmentation"
    assert "datasets" not in head  # a person's own data has no public name
    assert f"| split val, 2 images, one scale, fp32 | {100 * scores['mIoU']:.2f} |" in body
    assert "| 2 | thing \\| \\[\\*x\\*](y) | `#3c3cc8` |" in body
    assert "cgrseg 0.0.9" in body
    assert "schedule.max_iters=6" in body
    assert "data.root=DATA_ROOT" in body


def test_no_file_says_where_the_run_was(folder: Path) -> None:
    for path in folder.iterdir():
        content = path.read_bytes()
        for word in (b"jane", b"secret", b"private-data", b"/home", b"users"):
            assert word not in content, path.name


def test_without_an_evaluation_the_card_says_so(run_folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(run_folder / "best.pth", alone / "best.pth")
    done = command(alone / "best.pth")
    assert done.exit_code == 0, done.output
    assert "no license: the card says that none was given" in done.stderr
    assert "the mIoU of the validation during the training; evaluate first" in done.stderr
    card = (alone / "published" / "README.md").read_text()
    assert "| split val, during the training | 25.00 |" in card
    assert "gave no license" in card
    content = torch.load(alone / "best.pth", weights_only=True)
    assert "transformers" in card
    slide = {"mode": "slide", "crop_size": [32, 32], "stride": [32, 32], "scale": [64, 64]}
    meta = {"preprocessing": slide}
    torch.save({"state_dict": content["state_dict"], "meta": meta}, alone / "bare.pth")
    bare = publish(alone / "bare.pth", out=alone / "bare", tell=lambda text: None)
    assert bare.scores == {}
    card = (alone / "bare/README.md").read_text()
    assert "without an evaluation" in card
    assert "transformers cannot do them" in card
    assert "import pipeline" not in card


def test_records_of_other_weights_are_not_taken(run_folder: Path, tmp_path: Path) -> None:
    record = json.loads((run_folder / "evaluation.json").read_text())
    record["settings"]["weights"] = "0" * 64
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    shutil.copy(run_folder / "best.pth", tmp_path / "best.pth")
    said: list[str] = []
    done = publish(tmp_path, tell=said.append)
    assert done.scores == {"mIoU": 0.25}
    assert "not of these weights: evaluation.json" in said


def test_nothing_is_overwritten_unasked(folder: Path, run_folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    refused = command(run_folder, "--out", folder)
    assert refused.exit_code == 2
    assert "a folder of that name" in refused.stderr
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    refused = command(run_folder, "--out", mine, "--overwrite")
    assert refused.exit_code == 2
    assert "more than published weights (thesis.txt)" in refused.stderr
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert "--overwrite" not in refused.stderr
    file = tmp_path / "file"
    file.write_text("years of work")
    refused = command(run_folder, "--out", file)
    assert refused.exit_code == 2 and "--overwrite" not in refused.stderr
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert command(run_folder, "--out", copy, "--overwrite").exit_code == 0
    assert "gave no license" in (copy / "README.md").read_text()
    (copy / "README.md").write_text("my own words")
    kept = command(run_folder, "--out", copy, "--overwrite")
    assert kept.exit_code == 0 and "README.md was edited by hand: it stays" in kept.stderr
    assert (copy / "README.md").read_text() == "my own words"
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "dropout": 0.5}))
    refused = command(run_folder, "--out", copy, "--overwrite")
    assert refused.exit_code == 2 and "whose README.md was edited by hand" in refused.stderr
    assert (copy / "README.md").read_text() == "my own words"
    (copy / "README.md").unlink()
    assert command(run_folder, "--out", copy, "--overwrite").exit_code == 0
    # The names of published files are no mark of a published folder.
    (copy / "config.json").write_text('{"model_type": "bert"}')
    refused = command(run_folder, "--out", copy, "--overwrite")
    assert refused.exit_code == 2 and "this command did not write" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "file", "mine"]


def test_the_earlier_folder_comes_back_if_the_new_one_cannot_be_moved(tmp_path: Path) -> None:
    target = tmp_path / "published"
    target.mkdir()
    (target / "README.md").write_text("earlier")
    with pytest.raises(FileNotFoundError):
        _replace(target, tmp_path / "missing", tmp_path / "old")
    assert (target / "README.md").read_text() == "earlier"


def test_a_folder_that_predicts_otherwise_is_discarded(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = cgrseg.models.CGRSeg.save_pretrained

    def damaged(model: cgrseg.models.CGRSeg, place: Path) -> None:
        with torch.no_grad():
            model.decode_head.conv_seg.bias[0] += 3
        save(model, place)
        with torch.no_grad():
            model.decode_head.conv_seg.bias[0] -= 3

    monkeypatch.setattr(cgrseg.models.CGRSeg, "save_pretrained", damaged)
    done = command(run_folder, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "its predictions are not those of the checkpoint" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "name"], "owner/name"),
        (["--license", "My Own"], "identifier of the hub"),
        (["--name", "a\n# b"], "a title of one line"),
    ],
)
def test_wrong_texts_are_refused_before_any_work(
    arguments: list[str], message: str, run_folder: Path, tmp_path: Path
) -> None:
    done = command(run_folder, "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_uploaded_folder_is_downloaded_by_its_id(
    hub: Hub, run_folder: Path, folder: Path, tmp_path: Path
) -> None:
    done = command(run_folder, "--out", tmp_path / "out", "--to", ID, "--license", "cc-by-4.0")
    assert done.exit_code == 0, done.output
    assert "uploading README.md, config.json, model.safetensors, preprocessor" in done.stderr
    assert f"uploaded: {hub.address}/{ID}, commit {hub.commit_of(ID)}" in done.stdout
    digest = hashlib.sha256(hub.files[ID]["model.safetensors"]).hexdigest()
    assert f"sha256 of model.safetensors: {digest}" in done.stdout
    sent = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files[ID] == sent
    image = next((run_folder.parent / "private-data/images/val").iterdir())
    there = cgrseg.Predictor.from_pretrained(ID, device="cpu")(image).labels
    here = cgrseg.Predictor.from_pretrained(folder, device="cpu")(image).labels
    np.testing.assert_array_equal(there, here)
    shown = done.stdout.partition("cgrseg/published.py: ")[2]
    row = eval(shown, {"PublishedWeights": PublishedWeights})
    assert (row.name, row.sha256, row.hub_id) == ("small", digest, ID)
    assert row.revision == hub.commit_of(ID) and row.scores["mIoU"] > 0

    taken = command(run_folder, "--out", tmp_path / "again", "--to", ID)
    assert taken.exit_code == 2
    assert "the repository exists" in taken.stderr
    assert (tmp_path / "again" / "model.safetensors").is_file()
    assert hub.files[ID] == sent
    # What the message says works as typed: another name, the same folder, an update.
    again = (run_folder, "--out", tmp_path / "again", "--to")
    assert "--overwrite" not in taken.stderr and "--update" in taken.stderr
    assert command(*again, f"{ID}-other").exit_code == 0
    taken = command(*again, ID, "--overwrite")
    assert taken.exit_code == 2 and hub.files[ID] == sent
    (tmp_path / "again/README.md").write_text("my own words")
    assert command(*again, ID, "--update").exit_code == 0
    assert hub.files[ID]["README.md"] == b"my own words"


def test_weights_by_name(
    hub: Hub, run_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row in the table is enough: Predictor, commands and load_from take its name."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.files["someone/named"] = files
    row = PublishedWeights(
        "scenes", "cgrseg_t", "custom", 3, {"mIoU": 0.25},
        hashlib.sha256(files["model.safetensors"]).hexdigest(), "cc0-1.0", "someone/named",
        hub.commit_of("someone/named"),
    )  # fmt: skip
    monkeypatch.setitem(PUBLISHED, "scenes", row)
    image = next((run_folder.parent / "private-data/images/val").iterdir())
    monkeypatch.chdir(tmp_path)
    here = cgrseg.Predictor.from_pretrained(folder, device="cpu")(image).labels
    there = cgrseg.Predictor.from_pretrained("scenes", device="cpu")(image).labels
    np.testing.assert_array_equal(there, here)
    done = CliRunner().invoke(app, ["predict", "scenes", str(image), "--out", "found"])
    assert done.exit_code == 0, done.output
    (written,) = (tmp_path / "found/labels").iterdir()
    np.testing.assert_array_equal(read_label(written), here)
    fresh = cgrseg.create_model("cgrseg_t", 3)
    cgrseg.load_weights(fresh, "scenes", verbose=False)
    assert weights_digest(fresh) == weights_digest(load_model(folder, verbose=False))
    tuned = Config.model_validate({"train": {"load_from": "scenes"}})
    lines: list[str] = []
    origin = load_initial_weights(cgrseg.create_model("cgrseg_t", 3), tuned, lines.append)
    assert origin == f"checkpoint: scenes, SHA-256 {row.sha256}"
    meta = torch.load(run_folder / "best.pth", weights_only=True)["meta"]
    Path("run.json").write_text(json.dumps(meta["config"]))
    done = CliRunner().invoke(app, ["evaluate", "run.json", "scenes", "work_dir=scores"])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "scores/evaluation.json").read_text())["scores"]
    before = json.loads((run_folder / "evaluation.json").read_text())["scores"]
    assert found["mIoU"] == pytest.approx(before["mIoU"], abs=1e-6)
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    listed = runner.invoke(app, ["models"]).stdout
    assert "scenes" in listed and "25.0" in listed and "someone/named@" in listed
    assert json.loads(runner.invoke(app, ["models", "--json"]).stdout)["segmentation"] == [
        asdict(row)
    ]

    monkeypatch.setitem(PUBLISHED, "scenes", replace(row, sha256="0" * 64))
    refused = CliRunner().invoke(app, ["predict", "scenes", str(image), "--out", "other"])
    assert refused.exit_code == 2 and f"expected: SHA-256 {'0' * 64}" in refused.stderr
    assert not (tmp_path / "other").exists()
    with pytest.raises(WeightsError, match=r"a name that `cgrseg models` lists \(scenes\)"):
        load_model("scene")


def test_the_table_is_in_order_and_its_absence_is_said() -> None:
    assert all(name == row.name and "/" not in name for name, row in PUBLISHED.items())
    listed = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["models"])
    assert listed.exit_code == 0
    assert PUBLISHED or "nobody has published any" in listed.stdout
    assert "timm/efficientformerv2_s2.snap_dist_in1k" in listed.stdout


@pytest.mark.parametrize(
    ("token", "to", "message"),
    [
        ("hf_wrong", ID + "2", "the hub was given no valid token"),
        (TOKEN, "stranger/small", "the token may not write there"),
        ("no server", ID + "2", "the upload failed (ConnectError"),
    ],
)
def test_a_refused_upload_leaves_the_folder(
    token: str, to: str, message: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    if token == "no server":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EnvironmentProblem, match=re.escape(message)) as caught:
        upload(tmp_path, to, private=True, update=False, tell=lambda text: None)
    assert f"the folder {tmp_path} is complete and stays" in str(caught.value)
    assert "run the same command again" in str(caught.value)
    assert (tmp_path / "config.json").read_text() == "{}"
    assert to not in hub.files


def test_the_command_of_the_card_gives_the_settings_of_the_run() -> None:
    config = cgrseg.load_config(
        "cgrseg-t_custom",
        {
            "name": "mine",
            "optimizer.lr": 1e-3,
            "data.extra": {"/home/x": 2.0},
            "data.images": "~/a",
            "data.labels": "labels/{split}",
            "train.mlflow": True,
        },
    )
    base, changed = nearest_preset(config)
    assert base == "cgrseg-t_custom"
    assert changed == {
        "optimizer.lr": "0.001",
        "data.extra": "FURTHER_DATA",
        "data.images": "PATH",
        "data.labels": "labels/{split}",
    }
