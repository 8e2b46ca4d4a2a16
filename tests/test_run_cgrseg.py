"""`run_cgrseg.py`: dictionary, flags and config agree, and both modes work."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cgrseg.config.loading import load_config
from cgrseg.errors import ConfigError
from cgrseg.training import single_gpu
from tests.training import processes
from tests.training.small_run import write_dataset


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(
        "run_cgrseg", repository / "run_cgrseg.py"
    )
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


SMALL = [
    "data.dataset=custom",
    "data.workers=0",
    "augment.scale=[64,64]",
    "augment.crop_size=[64,64]",
    "test.resize=none",
    "train.log_interval=1",
]


def test_defaults_are_the_documented_ones(script: ModuleType) -> None:
    defaults = script.DEFAULT_HPARAMS
    assert defaults["lr"] == 0.00012
    assert (defaults["batch_size"], defaults["eval_batch_size"]) == (4, 1)
    assert (defaults["max_iters"], defaults["eval_interval"]) == (160000, 4000)
    active, config = single_gpu.resolve(defaults, {"mode": "train"})
    assert active["work_dir"] == config.run_dir == "work_dirs/cgrseg-t_ade20k_160k"
    assert active["batch_size"] == 4
    evaluating, _ = single_gpu.resolve(defaults, {"mode": "eval"})
    assert evaluating["batch_size"] == 1


def test_dictionary_flags_and_config_agree(script: ModuleType) -> None:
    defaults = script.DEFAULT_HPARAMS
    assert set(defaults) == set(single_gpu.FLAGS) | {"eval_batch_size"}
    parser = single_gpu.build_parser(defaults)
    flags = {action.dest for action in parser._actions} - {"help", "settings"}
    assert flags == set(single_gpu.FLAGS)
    assert defaults["config"] == single_gpu.DEFAULT_CONFIG
    config = load_config(defaults["config"])
    for key, name in single_gpu.SETTINGS.items():
        assert single_gpu.look_up(config, name) == defaults[key], key
    # untouched, the dictionary changes nothing
    assert single_gpu.resolve(defaults, {})[1] == config
    assert single_gpu.resolve(defaults, {"name": "mine"})[1].run_dir == "work_dirs/mine"


def test_every_flag_of_the_documents_is_there(script: ModuleType) -> None:
    text = single_gpu.build_parser(script.DEFAULT_HPARAMS).format_help()
    for flag in [
        "--mode",
        "--config",
        "--lr",
        "--batch-size",
        "--max-iters",
        "--eval-interval",
        "--data-root",
        "--work-dir",
        "--checkpoint",
        "--show-dir",
        "--opacity",
        "--precision",
        "--compile",
        "--threads",
        "--seed",
        "--deterministic",
        "--no-validate",
        "--resume-from",
        "--load-from",
        "--gpu-id",
    ]:
        assert f"{flag} " in text or f"{flag}\n" in text, flag


def test_edited_dictionary_counts_and_flags_win(script: ModuleType) -> None:
    edited = {**script.DEFAULT_HPARAMS, "lr": 0.01, "batch_size": 8, "work_dir": "here"}
    _, config = single_gpu.resolve(edited, {"batch_size": 2, "train.precision": "bf16"})
    assert config.optimizer.lr == 0.01
    assert config.train.batch_size == 2
    assert config.train.precision == "bf16"
    assert config.run_dir == "here"


def test_another_config_brings_its_own_settings(script: ModuleType) -> None:
    other = {"config": "cgrseg-t_pascal-context59_80k"}
    _, config = single_gpu.resolve(script.DEFAULT_HPARAMS, other)
    assert config == load_config("cgrseg-t_pascal-context59_80k")
    assert config.schedule.max_iters == 80_000
    _, config = single_gpu.resolve(script.DEFAULT_HPARAMS, {**other, "max_iters": 160000})
    assert config.schedule.max_iters == 160_000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": 1}, "there is no such setting"),
        ({"max_iter": 1}, "did you mean max_iters"),
        ({"mode": "test"}, "train or eval"),
        ({"optimizer.lrr": 1}, r"did you mean optimizer\.lr"),
        ({"lr": "fast"}, "optimizer.lr"),
        ({"mode": "train", "precision": "bf16"}, r"as in train\.precision=bf16"),
        ({"mode": "train", "compile": True}, "in mode eval only"),
    ],
)
def test_wrong_settings_are_explained(
    script: ModuleType, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        single_gpu.resolve(script.DEFAULT_HPARAMS, given)


def test_train_then_evaluate_from_another_folder(repository: Path, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")

    def run(*arguments: str, status: int = 0) -> str:
        log = tmp_path / "output.log"
        log.unlink(missing_ok=True)
        given = [*arguments, "--data-root", str(root), "--work-dir", "./runs/mine", *SMALL]
        process = processes.start(
            processes.run_script, repository / "run_cgrseg.py", tmp_path, *given, log=log
        )
        return processes.finish(process, log, status)

    trained = run(
        *("--mode", "train", "--lr", "0.0001", "--batch-size", "2", "--max-iters", "2"),
        *("--eval-interval", "2", "--seed", "3", "--deterministic", "--opacity", "0.5"),
    )
    lines = trained.splitlines()
    assert lines[0].startswith("active settings")
    begun = next(number for number, line in enumerate(lines) if not line.startswith("  "))
    begun = next(n for n, line in enumerate(lines) if n > begun and not line.startswith("  "))
    shown = dict(line.split(None, 1) for line in lines[1:begun])
    assert shown["lr"] == "0.0001" and shown["max_iters"] == "2" and shown["seed"] == "3"
    assert "warning: opacity has no effect in mode train" in trained
    assert "Traceback" not in trained
    latest = tmp_path / "runs" / "mine" / "latest.pth"
    assert latest.is_file()

    evaluated = run(
        *("--mode", "eval", "--checkpoint", str(latest), "--show-dir", "./results"),
        *("--opacity", "0.7", "--lr", "0.1", "--precision", "bf16", "--threads", "1"),
    )
    assert len(list((tmp_path / "results").iterdir())) == 2
    (file,) = (tmp_path / "runs" / "mine").glob("evaluation*.json")
    written = json.loads(file.read_text())
    assert written["settings"]["precision"] == "bf16" and not written["settings"]["compile"]
    assert "warning: lr has no effect in mode eval" in evaluated
    assert "opacity has no effect" not in evaluated

    again = run("--mode", "train", status=2)
    assert "it is not overwritten" in again and "Traceback" not in again


def test_installed_it_leaves_the_search_path_alone(repository: Path, tmp_path: Path) -> None:
    """Beside a package it would put every other package before the standard library."""
    for name, marker in (("installed", None), ("checkout", "pyproject.toml")):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(repository / "run_cgrseg.py", folder)
        (folder / "cgrseg").symlink_to(repository / "cgrseg")
        if marker is not None:
            (folder / marker).touch()
        before = list(sys.path)
        try:
            runpy.run_path(str(folder / "run_cgrseg.py"), run_name="run_cgrseg")
            assert sys.path == ([str(folder)] if marker else []) + before
        finally:
            sys.path[:] = before


def test_problems_are_messages_without_a_trace(repository: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "folder", tmp_path / "output.log"
    folder.mkdir()
    given = ["--mode", "train", "--data-root", "./nowhere"]
    process = processes.start(
        processes.run_script, repository / "run_cgrseg.py", folder, *given, log=log
    )
    said = processes.finish(process, log, status=2)
    assert "error: nowhere" in said and "what to do" in said
    assert "Traceback" not in said
    # nothing was made for a run that could not start
    assert list(folder.iterdir()) == []


def test_run_single_gpu_from_a_script_elsewhere(repository: Path, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    settings = dict(text.split("=", 1) for text in SMALL[:1])
    program = f"""
import sys
sys.path.insert(0, {str(repository)!r})
from run_cgrseg import DEFAULT_HPARAMS, run_single_gpu
small = {settings!r}
small.update({{"data.workers": 0, "augment.scale": [64, 64], "augment.crop_size": [64, 64],
              "test.resize": "none"}})
metrics = run_single_gpu("train", work_dir="./quick", data_root={str(root)!r}, batch_size=2,
                         max_iters=1, **small)
print("keys", sorted(metrics))
metrics = run_single_gpu("eval", checkpoint="./quick/latest.pth", work_dir="./quick",
                         data_root={str(root)!r}, **small)
print("miou", 0.0 <= metrics["mIoU"] <= 1.0)
"""
    (tmp_path / "notebook.py").write_text(program)
    said = processes.run(
        processes.run_script,
        tmp_path / "notebook.py",
        tmp_path,
        log=tmp_path / "output.log",
    )
    assert "'mIoU'" in said and "miou True" in said
