"""Command line of `run_cgrseg.py`: one process, settings from a flat dictionary and flags.

The dictionary is in the script, where users edit it.  This module maps each key to its flag and
its setting, prints the active settings, and trains or evaluates.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgrseg.config.flags import FlagParser
from cgrseg.config.loading import load_config
from cgrseg.config.schema import Config
from cgrseg.config.settings import parse_overrides
from cgrseg.config.suggestions import meant_setting, misspelt
from cgrseg.devices import use_threads
from cgrseg.errors import ConfigError, option
from cgrseg.processes import is_first_process
from cgrseg.training.checkpointing import BEST, LATEST

if TYPE_CHECKING:
    from cgrseg.evaluation import EvaluationResult

_LOG = logging.getLogger("cgrseg.training")

DEFAULT_CONFIG = "cgrseg-t_ade20k_160k"

#: Keys of the dictionary to the settings of the config.
SETTINGS: dict[str, str] = {
    "lr": "optimizer.lr",
    "batch_size": "train.batch_size",
    "max_iters": "schedule.max_iters",
    "eval_interval": "train.eval_interval",
    "data_root": "data.root",
    "work_dir": "work_dir",
    "seed": "train.seed",
    "deterministic": "train.deterministic",
    "load_from": "train.load_from",
}

#: Flags: key of the dictionary to the arguments of argparse.
FLAGS: dict[str, dict[str, Any]] = {
    "mode": {"choices": ["train", "eval"], "help": "train a network, or evaluate a checkpoint"},
    "config": {"help": "config file, or the name of a run that is shipped"},
    "lr": {"type": float, "help": "learning rate; the decode head gets 10 times as much"},
    "batch_size": {
        "type": int,
        "help": "number of images per step (train) or per batch (eval, default 1)",
    },
    "max_iters": {"type": int, "help": "total number of training iterations"},
    "eval_interval": {"type": int, "help": "number of iterations between evaluations"},
    "data_root": {"help": "dataset root"},
    "work_dir": {"help": "run folder (default: ./work_dirs/<config name>)"},
    "checkpoint": {"help": "eval: checkpoint to evaluate (default: latest.pth in the run folder)"},
    "show_dir": {"help": "eval: folder for overlays with a legend"},
    "opacity": {"type": float, "help": "eval: opacity of the labels in overlays, 0 to 1"},
    "precision": {
        "choices": ["auto", "fp32", "bf16", "fp16"],
        "help": "eval: precision of the network (training has train.precision=...)",
    },
    "compile": {
        "action": "store_true",
        "help": "eval: run the folded and compiled network, several times faster after about a "
        "minute per image size",
    },
    "threads": {"type": int, "help": "number of CPU threads (default: all usable cores)"},
    "seed": {"type": int, "help": "seed of all random numbers"},
    "deterministic": {"action": "store_true", "help": "only deterministic kernels (slower)"},
    "no_validate": {"action": "store_true", "help": "train: do not evaluate during training"},
    "resume_from": {"help": "train: checkpoint of this run to resume from"},
    "auto_resume": {"action": "store_true", "help": "train: resume the run in the run folder"},
    "load_from": {"help": "train: checkpoint to fine-tune from"},
    "gpu_id": {"type": int, "help": "number of the GPU, from 0"},
}

#: Keys of an evaluation only, with the setting of a training instead.
EVAL_ONLY = {
    "precision": "train.precision, as in train.precision=bf16",
    "compile": "train.compile, as in train.compile=true",
}

#: Keys that have no effect in a mode.
IGNORED: dict[str, frozenset[str]] = {
    "train": frozenset({"checkpoint", "show_dir", "opacity", *EVAL_ONLY}),
    "eval": frozenset(
        {"lr", "max_iters", "eval_interval", "no_validate", "resume_from", "auto_resume"}
        | {"load_from", "seed", "deterministic"}
    ),
}


def build_parser(defaults: Mapping[str, Any]) -> FlagParser:
    """Flags of `run_cgrseg.py`; the help shows the values of the dictionary."""
    parser = FlagParser(
        prog="run_cgrseg.py",
        settings_flags={name: f"--{key.replace('_', '-')}" for key, name in SETTINGS.items()},
        description="Train or evaluate CGRSeg on one device.",
        argument_default=argparse.SUPPRESS,
    )
    for key, options in FLAGS.items():
        text = options["help"]
        if defaults.get(key) not in (None, False):
            text = f"{text} [{defaults[key]}]"
        names = [f"--{key.replace('_', '-')}", *(["--resume"] if key == "auto_resume" else [])]
        parser.add_argument(*names, dest=key, **{**options, "help": text})
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        default=[],
        help="any other setting of the config, such as train.precision=bf16",
    )
    return parser


def main(defaults: Mapping[str, Any], argv: Sequence[str] | None = None) -> int:
    """Run with the settings of the command line; return the exit status as `tools/train.py`."""
    from cgrseg.config.flags import run_script

    given = vars(build_parser(defaults).parse_intermixed_args(argv))

    def work() -> int:
        given.update(parse_overrides(given.pop("settings")))
        return run(defaults, given)[1]

    return run_script(work)


def run(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, float], int]:
    """Train or evaluate.

    Args:
        defaults: dictionary of the script.
        given: keys of the dictionary or dotted settings; they override dictionary and config.

    Returns:
        Metrics by name (0..1; empty after a training without evaluation), and the exit status.

    Raises:
        CGRSegError: an unknown key, or a problem of the training or the evaluation.
    """
    active, config = resolve(defaults, given)
    print(describe(active, config), flush=True)
    # Keys of the dictionary may stay there for the other mode; given keys deserve a warning.
    for key in sorted(IGNORED[active["mode"]] & given.keys()):
        hint = ""
        if key == "checkpoint":
            hint = "; load_from starts from its weights, resume_from resumes its run"
        _LOG.warning("%s has no effect in mode %s%s", key, active["mode"], hint)
    use_threads(active["threads"])
    device = "auto" if active["gpu_id"] is None else f"cuda:{active['gpu_id']}"
    if active["mode"] == "train":
        from cgrseg.training.runner import train

        result = train(
            config,
            device=device,
            resume_from=active["resume_from"],
            auto_resume=bool(active["auto_resume"]),
        )
        return result.metrics, result.exit_status
    return _evaluate(active, config, device), 0


def resolve(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], Config]:
    """Merge config, dictionary and given values.

    Returns:
        The active flat values, and the config with all of them applied.

    Raises:
        ConfigError: an unknown key or mode, or a wrong value.
    """
    flat = {key: value for key, value in given.items() if "." not in key}
    dotted = {key: value for key, value in given.items() if "." in key}
    _refuse_unknown(flat)
    active = {**defaults, **flat}
    if active["mode"] not in ("train", "eval"):
        raise ConfigError(
            "mode",
            found=repr(active["mode"]),
            expected="train or eval",
            remedy='for example run_single_gpu("train")',
        )
    for key in EVAL_ONLY if active["mode"] == "train" else ():
        if flat.get(key):
            raise ConfigError(
                key,
                found=f"{flat[key]!r} for a training",
                expected=f"{key} in mode eval only; a training has {EVAL_ONLY[key]}",
                remedy="leave it out",
            )
    usual = load_config(DEFAULT_CONFIG)
    changes: dict[str, Any] = {}
    for key, name in SETTINGS.items():
        if key == "batch_size" and active["mode"] == "eval":
            continue
        # A dictionary value that equals the default config does not change another config.
        if key in flat or active[key] != look_up(usual, name):
            changes[name] = active[key]
    if active["no_validate"]:
        changes["train.evaluate"] = False
    if "name" in flat:
        changes["name"] = flat["name"]
    config = load_config(active["config"], {**changes, **dotted})
    for key, name in SETTINGS.items():
        if key != "batch_size" or active["mode"] == "train":
            active[key] = look_up(config, name)
    if active["mode"] == "eval":
        active["batch_size"] = flat.get("batch_size", active["eval_batch_size"])
    active["work_dir"] = config.run_dir
    active.pop("eval_batch_size")
    return {**active, **dotted}, config


def look_up(config: Config, name: str) -> Any:
    """The value of a dotted setting."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def describe(active: Mapping[str, Any], config: Config) -> str:
    """The active settings as lines of text, without those of the other mode."""
    ignored = IGNORED[active["mode"]]
    shown = {key: value for key, value in active.items() if key not in ignored}
    width = max(len(key) for key in shown)
    lines = [f"  {key:<{width}}  {value}" for key, value in shown.items()]
    return "\n".join([f"active settings ({config.name})", *lines])


def _evaluate(active: Mapping[str, Any], config: Config, device: str) -> dict[str, float]:
    from cgrseg.evaluation import evaluate
    from cgrseg.evaluation.evaluate import result_name

    checkpoint = active["checkpoint"]
    if checkpoint is None:
        present = [Path(config.run_dir) / name for name in (LATEST, BEST)]
        present = [path for path in present if path.is_file()]
        if not present:
            raise ConfigError(
                "checkpoint",
                found=f"none given, and none in {config.run_dir}",
                expected="the weights to evaluate",
                remedy=f"give {option('--checkpoint', 'CHECKPOINT')}, or the "
                f"{option('--work-dir')} of a run that has one",
            )
        checkpoint = present[0]
    result = evaluate(
        config,
        checkpoint,
        device=None if device == "auto" else device,
        batch_size=active["batch_size"],
        precision=active["precision"],
        compile=active["compile"],
        show_dir=active["show_dir"],
        opacity=active["opacity"],
    )
    name = result_name(config, config.data.eval_split, False, None, result.settings["precision"])
    _print_scores(result, [Path(config.run_dir) / f"{name}.json", active["show_dir"]])
    return dict(result.metrics)


def _print_scores(result: EvaluationResult, written: Sequence[Path | str | None]) -> None:
    """Print the scores per class, the summary, and the written files."""
    from cgrseg.evaluation.result import print_scores

    if not is_first_process():
        return
    print_scores(result)
    for path in written:
        if path is not None:
            print(f"written: {path}", flush=True)


def _meant(key: str, known: Sequence[str]) -> str:
    """Remedy for an unknown key."""
    near = misspelt(key, known)
    if near is not None:
        return f"did you mean {near}?"
    meant = meant_setting(key)
    if meant is None:
        return "see run_cgrseg.py --help"
    flags = {name: flag for flag, name in SETTINGS.items()}
    return meant if " " in meant else f"did you mean {flags.get(meant, meant)}?"


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    known = [*FLAGS, "eval_batch_size", "name"]
    for key in given:
        if key not in known:
            raise ConfigError(
                key,
                found="there is no such setting",
                expected=", ".join(FLAGS) + ", or a dotted setting of the config",
                remedy=_meant(key, known),
            )
