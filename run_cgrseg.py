"""Train or evaluate CGRSeg on one device: edit the dictionary below and run this file.

The same from a shell (`python run_cgrseg.py --mode train --lr 0.0001`) and from Python:

    from run_cgrseg import run_single_gpu
    run_single_gpu("train", work_dir="./work_dirs/quick_start")
    run_single_gpu("eval", checkpoint="./work_dirs/quick_start/latest.pth")

Settings come from the config, this dictionary, flags and keyword arguments; the later ones win.
A value of the dictionary counts when it differs from the default config, so another config
brings its own settings.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if (Path(__file__).resolve().parent / "pyproject.toml").is_file():
    # A checkout runs its own code, installed or not; installed, this file changes nothing.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from cgrseg.training import single_gpu

DEFAULT_HPARAMS: dict[str, Any] = {
    "mode": "train",  # "train" or "eval"
    "config": "cgrseg-t_ade20k_160k",  # a config file, or the name of a run that is shipped
    "lr": 0.00012,  # learning rate; the decode head gets 10 times as much
    "batch_size": 4,  # number of images per step when training
    "eval_batch_size": 1,  # number of images per batch when evaluating
    "max_iters": 160000,  # total number of training iterations
    "eval_interval": 4000,  # number of iterations between evaluations
    "data_root": "data/ade/ADEChallengeData2016",  # folder of the dataset
    "work_dir": None,  # folder of the run; None: ./work_dirs/<config name>
    "checkpoint": None,  # eval: the weights; None: latest.pth in the run folder
    "show_dir": None,  # eval: folder for overlays with a legend; None: none
    "opacity": 0.5,  # eval: opacity of the labels in overlays, 0 to 1
    "precision": "fp32",  # eval: "fp32", "bf16", "fp16" or "auto"; training has train.precision
    "compile": False,  # eval: fold and compile the network: several times faster
    "threads": None,  # number of CPU threads; None: all usable cores
    "seed": 0,  # seed of all random numbers
    "deterministic": False,  # only deterministic kernels (slower)
    "no_validate": False,  # train: do not evaluate during training
    "resume_from": None,  # train: checkpoint of this run to resume from
    "auto_resume": False,  # train: resume the run in the run folder, if there is one
    "load_from": None,  # train: checkpoint to fine-tune from
    "gpu_id": None,  # number of the GPU; None: the first, or the CPU when there is none
}


def run_single_gpu(mode: str | None = None, **overrides: Any) -> dict[str, float]:
    """Train or evaluate with the dictionary above and the arguments.

    Args:
        mode: "train" or "eval"; None: the mode of the dictionary.
        **overrides: keys of `DEFAULT_HPARAMS`, or any setting of the config by its dotted
            name: `run_single_gpu("train", **{"train.precision": "bf16"})`.

    Returns:
        Metrics by name (0..1) of the evaluation, or of the training's last evaluation.

    Raises:
        cgrseg.errors.CGRSegError: the message says what to do.
    """
    if mode is not None:
        overrides["mode"] = mode
    return single_gpu.run(DEFAULT_HPARAMS, overrides)[0]


if __name__ == "__main__":
    sys.exit(single_gpu.main(DEFAULT_HPARAMS))
