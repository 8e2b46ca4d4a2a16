"""The command line of `tools/test.py`, with the flags that its users know."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cgrseg.config import load_config
from cgrseg.errors import CGRSegError, is_first_process, report_problem
from cgrseg.evaluation.evaluate import evaluate, result_name
from cgrseg.evaluation.loop import COUNTED, EXTRA
from cgrseg.evaluation.table import class_table, summary_line


def build_parser() -> argparse.ArgumentParser:
    """Flags of `tools/test.py`."""
    parser = argparse.ArgumentParser(
        prog="tools/test.py",
        description="Evaluate a checkpoint. Several GPUs: "
        "sh tools/dist_test.sh CONFIG CHECKPOINT GPUS.",
    )
    parser.add_argument("config", help="config file, or the name of a run that is shipped")
    parser.add_argument("checkpoint", help="a .pth file, a folder of save_pretrained, or a hub id")
    parser.add_argument(
        "--eval",
        nargs="+",
        metavar="METRIC",
        help=f"metrics to show, out of {', '.join((*COUNTED, *EXTRA))} (default: mIoU)",
    )
    parser.add_argument(
        "--aug-test",
        action="store_true",
        help="average over the published ratios (0.5 to 1.75), each plain and mirrored",
    )
    parser.add_argument(
        "--out",
        help="a folder for label PNGs, or a .json (scores) or .npz (counts) file; with "
        "--format-only the folder of the submission",
    )
    parser.add_argument("--show-dir", help="folder for overlays with a legend")
    parser.add_argument(
        "--opacity", type=float, default=0.5, help="of the labels in overlays, above 0 up to 1"
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
        help="any setting, such as data.eval_split=test test.mode=slide",
    )
    parser.add_argument(
        "--launcher",
        choices=["auto", "none", "pytorch", "slurm"],
        default="auto",
        help="who started the processes (default: told from the environment)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu-id", type=int, help="number of the GPU to use, from 0")
    where.add_argument("--device", help="cpu, cuda, cuda:<number> or mps (default: a GPU or cpu)")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="fp32",
        help="arithmetic of the network; auto: bf16 where the device computes it in hardware, "
        "else fp32 (default: fp32, as published)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="run the folded and compiled network: several times faster after about a minute "
        "per image size",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: all cores)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says.

    Returns:
        0, or 1 after a problem whose message was printed.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.eval and arguments.format_only:
        parser.error("--eval and --format-only exclude each other: a submission is not measured")
    if arguments.limit is not None and arguments.limit < 1:
        parser.error(f"--limit {arguments.limit}: expected 1 or more")
    try:
        _run(arguments)
    except CGRSegError as error:
        report_problem(error)
        return 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, arguments.cfg_options)
    metrics = arguments.eval or ["mIoU"]
    work_dir = Path(arguments.work_dir or config.run_dir)
    device = arguments.device
    if arguments.gpu_id is not None:
        device = f"cuda:{arguments.gpu_id}"
    result = evaluate(
        config,
        arguments.checkpoint,
        device=device,
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
        return
    if arguments.format_only:
        print(f"{len(result.stems)} label files: {arguments.out or work_dir / 'submission'}")
        return
    from rich.console import Console

    Console(highlight=False).print(class_table(result, metrics))
    print(summary_line(result, metrics))
    name = result_name(
        config,
        config.data.eval_split,
        arguments.aug_test,
        arguments.limit,
        result.settings["precision"],
    )
    for target in (work_dir / f"{name}.json", arguments.out, arguments.show_dir):
        if target is not None:
            print(f"written: {target}")
