"""Command line of `tools/train.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from cgrseg.config.flags import FlagParser, run_script
from cgrseg.config.loading import load_config
from cgrseg.config.settings import parse_overrides
from cgrseg.devices import use_threads
from cgrseg.training.runner import train


def build_parser() -> FlagParser:
    """Flags of `tools/train.py`."""
    parser = FlagParser(
        prog="tools/train.py",
        settings_flags={
            "data.root": "--data-root",
            "train.load_from": "--load-from",
            "train.seed": "--seed",
            "work_dir": "--work-dir",
        },
        description="Train a network. Several GPUs: sh tools/dist_train.sh CONFIG GPUS.",
    )
    parser.add_argument("config", help="config file, or the name of a run that is shipped")
    parser.add_argument("--data-root", help="dataset root (default: data.root of the config)")
    parser.add_argument("--work-dir", help="run folder (default: ./work_dirs/<config name>)")
    parser.add_argument("--load-from", help="checkpoint to fine-tune from")
    resume = parser.add_mutually_exclusive_group()
    resume.add_argument("--resume-from", help="checkpoint of this run to resume from")
    resume.add_argument(
        "--auto-resume",
        "--resume",
        action="store_true",
        help="resume the run in the run folder, if there is one",
    )
    parser.add_argument(
        "--no-validate", action="store_true", help="do not evaluate during training"
    )
    parser.add_argument("--seed", type=int, help="seed of all random numbers")
    parser.add_argument(
        "--deterministic", action="store_true", help="only deterministic kernels (slower)"
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--gpu-id", type=int, help="number of the GPU to use, from 0")
    place.add_argument("--device", help="auto, cpu, cuda, cuda:<number> or mps (default: auto)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting, such as optimizer.lr=1e-4 train.precision=bf16; KEY=VALUE without "
        "the flag is the same",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="number of CPU threads")
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm"],
        default="none",
        help="who started the processes; detected automatically, accepted for older scripts",
    )
    parser.add_flags_of_mmsegmentation("--amp", "--gpus", "--gpu-ids", "--diff_seed")
    return parser


def overrides_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Flags as settings by dotted name; `--cfg-options` overrides the other flags."""
    settings: dict[str, Any] = {
        "data.root": arguments.data_root,
        "work_dir": arguments.work_dir,
        "train.load_from": arguments.load_from,
        "train.seed": arguments.seed,
        "train.deterministic": True if arguments.deterministic else None,
        "train.evaluate": False if arguments.no_validate else None,
        "train.precision": "auto" if arguments.amp else None,
    }
    flags = {key: value for key, value in settings.items() if value is not None}
    return {**flags, **parse_overrides(arguments.cfg_options)}


def main(argv: Sequence[str] | None = None) -> int:
    """Train with the settings of the command line; return the exit status.

    0 when the run is complete, 2 after a printed problem, 128 plus the number of the signal that
    ended it early.
    """
    arguments = build_parser().parse_with_settings(argv)
    device = arguments.device or "auto"
    gpu = arguments.gpu_id if arguments.gpu_ids is None else arguments.gpu_ids[0]
    if gpu is not None:
        device = f"cuda:{gpu}"

    def work() -> int:
        use_threads(arguments.threads)
        return train(
            load_config(arguments.config, overrides_of(arguments)),
            device=device,
            resume_from=arguments.resume_from,
            auto_resume=arguments.auto_resume,
        ).exit_status

    return run_script(work)
