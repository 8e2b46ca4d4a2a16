"""The command line of `tools/test.py`, with the flags that its users know."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cgrseg.config import load_config
from cgrseg.config.flags import FlagParser, run_script
from cgrseg.config.settings import parse_overrides
from cgrseg.evaluation.evaluate import evaluate, result_name
from cgrseg.evaluation.loop import COUNTED, EXTRA
from cgrseg.evaluation.result import print_scores
from cgrseg.processes import is_first_process


def build_parser() -> FlagParser:
    """Flags of `tools/test.py`."""
    parser = FlagParser(
        prog="tools/test.py",
        settings_flags={"data.root": "--data-root", "work_dir": "--work-dir"},
        description="Evaluate a checkpoint. Several GPUs: "
        "sh tools/dist_test.sh CONFIG CHECKPOINT GPUS.",
    )
    parser.add_argument("config", help="config file, or the name of a run that is shipped")
    parser.add_argument(
        "checkpoint",
        help="a .pth file, a folder of save_pretrained, a hub id, or a name of `cgrseg models`",
    )
    parser.add_argument(
        "--eval",
        nargs="+",
        metavar="METRIC",
        help=f"metrics to show, out of {', '.join((*COUNTED, *EXTRA))} (default: mIoU)",
    )
    parser.add_argument(
        "--aug-test",
        "--multi-scale",
        "--tta",
        action="store_true",
        help="average over the published scales, each with and without a horizontal flip",
    )
    parser.add_argument("--data-root", help="dataset root (default: data.root of the config)")
    parser.add_argument("--split", help="name of the split (default: data.eval_split)")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="number of images per batch"
    )
    parser.add_argument(
        "--out",
        help="output path: a folder for label PNGs, or a .json (scores) or .npz (counts) file; "
        "with --format-only the folder of the submission",
    )
    parser.add_argument("--show-dir", help="folder for overlays with a legend")
    parser.add_argument(
        "--opacity", type=float, default=0.5, help="opacity of the labels in overlays, 0 to 1"
    )
    parser.add_argument(
        "--format-only",
        action="store_true",
        help="write label files for the benchmark's server, without measuring",
    )
    parser.add_argument(
        "--work-dir", help="folder for the results (default: ./work_dirs/<config name>)"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="any setting, such as data.eval_split=test test.mode=slide; KEY=VALUE without the "
        "flag is the same",
    )
    parser.add_argument(
        "--launcher",
        choices=["auto", "none", "pytorch", "slurm"],
        default="auto",
        help="launcher of the processes (default: read from the environment)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu-id", type=int, help="number of the GPU to use, from 0")
    where.add_argument("--device", help="cpu, cuda, cuda:<number> or mps (default: a GPU or cpu)")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="fp32",
        help="precision of the network; auto: bf16 where the device computes it in hardware, "
        "else fp32 (default: fp32, as published)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="run the folded and compiled network: several times faster after about a minute "
        "per image size",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="number of CPU threads (default: all usable cores)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="maximum number of images")
    parser.add_flags_of_mmsegmentation("--gpu-collect", "--tmpdir")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says.

    Returns:
        0, 2 after a problem whose message was printed, 128 plus the number of a signal that ended
        it.
    """
    parser = build_parser()
    arguments = parser.parse_with_settings(argv)
    if arguments.eval and arguments.format_only:
        parser.error("argument --eval: not allowed with --format-only, which measures nothing")
    return run_script(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    given = {"data.root": arguments.data_root}
    flags = {key: value for key, value in given.items() if value is not None}
    config = load_config(arguments.config, {**flags, **parse_overrides(arguments.cfg_options)})
    metrics = arguments.eval or ["mIoU"]
    work_dir = Path(arguments.work_dir or config.run_dir)
    device = arguments.device
    if arguments.gpu_id is not None:
        device = f"cuda:{arguments.gpu_id}"
    result = evaluate(
        config,
        arguments.checkpoint,
        split=arguments.split,
        device=device,
        batch_size=arguments.batch_size,
        out=arguments.out,
        show_dir=arguments.show_dir,
        opacity=arguments.opacity,
        metrics=metrics,
        aug_test=arguments.aug_test,
        format_only=arguments.format_only,
        limit=arguments.limit,
        work_dir=work_dir,
        precision=arguments.precision,
        compile=arguments.compile,
        threads=arguments.threads,
        launcher=arguments.launcher,
    )
    if not is_first_process():
        return 0
    if arguments.format_only:
        print(f"{len(result.stems)} label files: {arguments.out or work_dir / 'submission'}")
        return 0
    print_scores(result, metrics)
    name = result_name(
        config,
        arguments.split or config.data.eval_split,
        arguments.aug_test,
        arguments.limit,
        result.settings["precision"],
    )
    for target in (work_dir / f"{name}.json", arguments.out, arguments.show_dir):
        if target is not None:
            print(f"written: {target}")
    return 0
