"""Messages are provoked, and what they say is done: it helps.

Each case gives the commands that fail, what of the message is typed, and the command that then
works.  Values are taken from the message itself, never repeated here.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cgrseg
from cgrseg.cli.options import size_of_option
from cgrseg.config import Config, load_config
from cgrseg.config.schema import find_setting
from cgrseg.errors import CGRSegError, FrontEnd, speaking_as
from cgrseg.models import create_model
from cgrseg.training import single_gpu
from cgrseg.training.failures import bad_numbers, out_of_memory, single_value
from cgrseg.training.train_script import main as train_script

from .conftest import SMALL, Run

CPU = ["--device", "cpu"]


@dataclass
class Place:
    """Where a case works: a small run, its data, and a folder of its own."""

    run: Run
    trained: Path
    scenes: Path
    folder: Path
    names: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> str:
        return str(self.trained / "best.pth")

    def refused(self, *arguments: Any) -> str:
        """The remedy of the message that a command ends with."""
        result = self.run(*map(str, arguments))
        assert result.exit_code == 2, result.output
        assert result.stderr.count("error: ") == 1, result.stderr
        return remedy_of(result.stderr)

    def works(self, *arguments: Any) -> str:
        """What a command prints that ends well."""
        result = self.run(*map(str, arguments))
        assert result.exit_code == 0, result.output
        return str(result.output)


@pytest.fixture
def place(run: Run, trained: Path, scenes: Path, tmp_path: Path) -> Place:
    return Place(run, trained, scenes, tmp_path)


def remedy_of(message: object) -> str:
    return str(message).rpartition("what to do: ")[2].split("\nweights from")[0].strip()


def settings_in(text: str) -> list[str]:
    """`key=value` of a remedy, as one would type them."""
    return [
        match[0].rstrip(".:")
        for match in re.finditer(r"[a-z_]+(?:\.[a-z_]+)+=(?:\[[^\]]*\]|[^\s,;)]+)", text)
    ]


def options_in(text: str) -> list[str]:
    """Options of a remedy with their values, as one would type them."""
    found = re.search(r"--[a-z-]+(?: [^\s,;)]+)?", text)
    assert found is not None, text
    return found[0].split()


def command_in(text: str) -> list[str]:
    """The whole command of a remedy, without `cgrseg`."""
    found = re.search(r"cgrseg ([^;`\n]+)", text)
    assert found is not None, text
    return shlex.split(found[1])


# --- a run folder that is taken -------------------------------------------------------------


def copy_of_run(place: Place) -> Path:
    return Path(shutil.copytree(place.trained, place.folder / "run"))


def test_taken_folder_command(place: Place) -> None:
    run = copy_of_run(place)
    remedy = place.refused("train", run, *CPU)
    assert place.works("train", run, "schedule.max_iters=3", *options_in(remedy), *CPU)
    other = ["--work-dir", place.folder / "other"]
    assert "--work-dir" in remedy and place.works("train", run, *other, *CPU)


def test_taken_folder_script(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    run = copy_of_run(place)
    given = [str(run), *CPU]
    assert train_script(given) == 2
    (option,) = options_in(remedy_of(capfd.readouterr().err))
    assert option == "--auto-resume"
    assert train_script([*given, option, "schedule.max_iters=3"]) == 0


def test_taken_folder_python(place: Place) -> None:
    config = load_config(copy_of_run(place))
    with pytest.raises(CGRSegError) as caught:
        cgrseg.train(config, device="cpu")
    assert "auto_resume=True" in remedy_of(caught.value)
    assert cgrseg.train(config, device="cpu", auto_resume=True).iterations == 2


# --- settings -------------------------------------------------------------------------------

WRONG_SETTINGS = [
    "augment.crop_size=[100, 70]",
    "augment.ratio_range=[2, 1]",
    "augment.photometric.contrast=[2, 1]",
    "model.cotext_blocks=3",
    "optimizer.learning_rate=0.001",
    "data.train.data_root=here",
    "lr0=0.01",
    "imgsz=64",
    "per_device_train_batch_size=3",
    "max_grad_norm=1",
    "num_workers=0",
    "ignore_label=255",
]


@pytest.mark.parametrize("wrong", WRONG_SETTINGS)
def test_wrong_setting(place: Place, wrong: str) -> None:
    name, _, value = wrong.partition("=")
    remedy = place.refused("train", "cgrseg-t_custom", wrong, "--print-config")
    meant = re.fullmatch(r"did you mean ([\w.]+)\?", remedy)
    if meant is not None:
        right = f"{meant[1]}={value}"
    else:
        value = re.findall(r"\[.*\]", remedy)[-1]
        right = f"{name}={value}"
    printed = place.works("train", "cgrseg-t_custom", right, "--print-config")
    assert right.partition("=")[0] + " = " in printed


@pytest.mark.parametrize(
    "wrong", ["train.epochs=3", "num_classes=7", "model.backbone=x", "optim=x"]
)
def test_setting_without_a_counterpart_is_told_what_to_set_instead(
    place: Place, wrong: str
) -> None:
    remedy = place.refused("train", "cgrseg-t_custom", wrong, "--print-config")
    assert "did you mean" not in remedy
    named = re.findall(r"\b(?:model|data|schedule|train)\.[a-z_]+", remedy) or ["optimizer.lr"]
    assert all(find_setting(each) is not None for each in named)


def test_stride_beyond_the_window(place: Place) -> None:
    given = ["test.crop_size=[96, 96]", "test.stride=[128, 96]"]
    remedy = place.refused("info", "cgrseg-t_custom", *given)
    assert "test.stride smaller (two thirds of test.crop_size" in remedy
    place.works("info", "cgrseg-t_custom", given[0], "test.stride=[64, 64]")


def test_memory_numbers_and_single_values() -> None:
    config = load_config(
        "cgrseg-b_custom", {"train.precision": "fp16", "train.batch_size": 6, "data.workers": 3}
    )
    messages = [
        out_of_memory(config, "cpu", MemoryError("out of memory")),
        single_value(config),
        bad_numbers(config, Path("run"), steps=3, rate=0.1, reports=[], write=False),
    ]
    for message in messages:
        proposed = settings_in(remedy_of(message))
        assert proposed
        changed = load_config("cgrseg-b_custom", proposed)
        assert changed != load_config("cgrseg-b_custom")


# --- options and sizes ----------------------------------------------------------------------


@pytest.mark.parametrize("size", ["500x10", "1x1"])
def test_size_that_does_not_fit(place: Place, size: str) -> None:
    remedy = place.refused("info", "cgrseg_t", "--size", size)
    place.works("info", "cgrseg_t", *options_in(remedy))


def test_size_that_is_none(place: Place) -> None:
    remedy = place.refused("info", "cgrseg_t", "--size", "large")
    name, size = options_in(remedy)
    assert name == "--size" and size_of_option(size) == (512, 704)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--lr", "0.1"), ("--batch-size", "3"), ("--max-steps", "9"), ("--workdir", "x")],
)
def test_option_that_train_lacks(place: Place, option: str, value: str) -> None:
    remedy = place.refused("train", "cgrseg-t_custom", option, value, "--print-config")
    setting = re.search(r"([\w.]+)=VALUE", remedy)
    given = [f"{setting[1]}={value}"] if setting else [*options_in(remedy.rstrip("?")), value]
    assert value in place.works("train", "cgrseg-t_custom", *given, "--print-config")


def test_script_flag_that_is_another(capfd: pytest.CaptureFixture[str]) -> None:
    parser = single_gpu.build_parser({})
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--learning-rate", "0.1"])
    assert ended.value.code == 2
    flag = options_in(remedy_of(capfd.readouterr().err))[0]
    assert parser.parse_args([flag, "0.1"]).lr == 0.1


# --- checkpoints ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def six_blocks(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network with six context blocks, as the published B config makes them."""
    path = tmp_path_factory.mktemp("six") / "six.pth"
    torch.save(create_model("cgrseg_t", 11, context_blocks=6).state_dict(), path)
    return path


def test_six_blocks_into_five(place: Place, six_blocks: Path) -> None:
    command = ["train", "cgrseg-t_synthetic", *SMALL, "--data-root", place.scenes, *CPU]
    command += ["--load-from", six_blocks, "--work-dir", place.folder / "run"]
    remedy = place.refused(*command)
    assert settings_in(remedy) == ["model.context_blocks=6"]
    place.works(*command, *settings_in(remedy))


def test_six_blocks_in_python(six_blocks: Path) -> None:
    with pytest.raises(CGRSegError) as caught:
        cgrseg.load_weights(create_model("cgrseg_b", 11), six_blocks)
    call = re.search(r"cgrseg\.load_model\(.*?\)", remedy_of(caught.value))
    assert call is not None
    model = eval(call[0], {"cgrseg": cgrseg})
    assert model.context_blocks == 6 and model.variant == "cgrseg_t"


def test_checkpoint_without_a_config(place: Place, six_blocks: Path) -> None:
    remedy = place.refused("evaluate", six_blocks, *CPU)
    config, named = command_in(remedy)[1:3]
    assert named == str(six_blocks)
    assert config in cgrseg.config.list_presets()  # type: ignore[attr-defined]
    own = ["evaluate", "cgrseg-t_synthetic", named, "--data-root", place.scenes, *CPU]
    place.works(*own, f"work_dir={place.folder}", "test.scale=64")


def test_misspelt_preset_and_path_to_a_preset(place: Place) -> None:
    near = re.search(
        r"did you mean the preset (\S+)\?", place.refused("info", "cgrseg-t_cutsom.py")
    )
    assert near is not None and place.works("info", near[1])
    alone = re.search(r"the name alone, (\S+),", place.refused("info", "x/cgrseg-t_camvid.py"))
    assert alone is not None and place.works("info", alone[1])


# --- results that are there already ---------------------------------------------------------


def test_predictions_of_another_kind(place: Place) -> None:
    image = next((place.scenes / "images" / "validation").iterdir())
    command = ["predict", place.best, image, "-o", place.folder / "out", "--no-overlays", *CPU]
    place.works(*command)
    remedy = place.refused(*command, "test.flip=true")
    place.works(*command, "test.flip=true", *options_in(remedy))


def test_report_and_sheet_and_scenes_that_are_there(place: Place) -> None:
    sheet = place.folder / "sheet.html"
    sheet.write_text("not ours")
    browse = ["data", "browse", "cgrseg-t_synthetic", "--data-root", place.scenes, "-o", sheet]
    place.works(*browse, *options_in(place.refused(*browse)))
    scenes = ["data", "synth", place.folder / "scenes", "--train-scenes", "2", "--val-scenes", "1"]
    place.works(*scenes, "--size", "64")
    place.works(*scenes, "--size", "96", *options_in(place.refused(*scenes, "--size", "96")))


def test_demo_with_other_scenes_proposes_nothing_that_it_lacks(place: Place) -> None:
    data = ["--train-scenes", "9", "--val-scenes", "3"]
    place.works("data", "synth", place.folder / "data", "--size", "192", *data)
    remedy = place.refused("demo", "-o", place.folder, "--train-scenes", "8", *data[2:])
    assert remedy == "choose another folder"


def test_conversion_into_a_taken_folder(place: Place) -> None:
    source = place.folder / "source"
    for name in ("images", "masks"):
        (source / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(source / name / "a.png")
    colors = place.folder / "colors.txt"
    command = ["data", "convert", "rgb", source / "images", source / "masks"]
    out = place.folder / "out"
    command += ["-o", out]
    assert options_in(place.refused(*command)) == ["--colors"]
    colors.write_text("thing 9 9 9\n")
    (out / "annotations").mkdir(parents=True)
    shutil.copy(source / "masks" / "a.png", out / "annotations")
    remedy = place.refused(*command, "--colors", colors)
    place.works(*command, "--colors", colors, *options_in(remedy))


# --- data -----------------------------------------------------------------------------------


def test_data_that_is_not_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    command = ["train", "cgrseg-t_synthetic", *SMALL, *CPU]
    remedy = place.refused(*command)
    assert "--data-root" in remedy
    drawn = command_in(remedy)
    place.works(*drawn, "--train-scenes", "4", "--val-scenes", "2", "--size", "64")
    place.works(*command)
    place.works(*command, "--data-root", place.scenes, "--work-dir", "again")


def test_dataset_option_with_a_config(place: Place) -> None:
    command = ["data", "check", "cgrseg-t_synthetic", "--data-root", place.scenes]
    remedy = place.refused(*command, "--dataset", "synthetic")
    place.works(*command, *settings_in(remedy))


def test_evaluation_of_a_script_without_a_checkpoint(
    place: Place, script_defaults: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--mode", "eval", "--config", str(place.trained / "config.json")]
    empty = ["--work-dir", str(place.folder / "empty")]
    assert single_gpu.main(script_defaults, [*given, *empty]) == 2
    flag, _ = options_in(remedy_of(capfd.readouterr().err))
    assert single_gpu.main(script_defaults, [*given, *empty, flag, place.best]) == 0
    printed = capfd.readouterr().out
    assert "mIoU" in printed and "IoU" in printed
    written = re.search(r"written: (.*evaluation\.json)", printed)
    assert written is not None and Path(written[1]).is_file()


@pytest.fixture(scope="module")
def script_defaults(repository: Path) -> dict[str, Any]:
    text = (repository / "run_cgrseg.py").read_text(encoding="utf-8")
    table = re.search(r"DEFAULT_HPARAMS: dict\[str, Any\] = (\{.*?^\})", text, re.M | re.S)
    assert table is not None
    found: dict[str, Any] = eval(table[1])
    return found


# --- exported files -------------------------------------------------------------------------


@pytest.mark.slow
def test_exported_labels_and_sizes(place: Place) -> None:
    image = next((place.scenes / "images" / "validation").iterdir())
    target = place.folder / "small.pt2"
    export = ["export", place.best, "--format", "pt2", "-o", target]
    remedy = place.refused(*export, "--size", "64x65")
    size = re.search(r"\d+x\d+", remedy)
    assert size is not None
    place.works(*export, "--size", size[0], "--output", "labels")
    remedy = place.refused(*export, "--size", size[0])
    place.works(*export, "--size", size[0], "--output", "labels", "--overwrite")
    assert "--overwrite" in remedy
    out = ["-o", place.folder / "out", "--no-overlays"]
    remedy = place.refused("predict", target, image, "test.flip=true", *out)
    again = [place.best if word == "CHECKPOINT" else word for word in command_in(remedy)]
    place.works(*again, "--format", "pt2", "-o", target, "--overwrite")
    command = ["predict", target, image, "test.flip=true", *out]
    place.works(*command, *options_in(place.refused(*command)))  # results of the other file


def test_front_ends_of_one_message(tmp_path: Path) -> None:
    config = Config()
    make: Callable[[], str] = lambda: remedy_of(  # noqa: E731
        bad_numbers(config, tmp_path, steps=3, rate=0.1, reports=[], write=False)
    )
    for name in ("latest.pth", "previous.pth"):
        (tmp_path / name).touch()
    with speaking_as(FrontEnd.DEMO):
        assert "with the same command" in make() and "--resume-from" not in make()
    with speaking_as(FrontEnd.SCRIPT):
        assert "--auto-resume" in make() and "--resume-from" in make()
    assert "auto_resume=True" in make() and "resume_from=" in make()
