"""Train or evaluate CGRSeg on one device: edit the dictionary below and press Run.

The same from a shell (`python run_cgrseg.py --mode train --lr 0.0001`) and from Python:

    from run_cgrseg import run_single_gpu
    run_single_gpu("train", work_dir="./work_dirs/quick_start")
    run_single_gpu("eval", checkpoint="./work_dirs/quick_start/latest.pth")

Where a setting comes from, the later winning: the config, this dictionary, flags and
keyword arguments.  A value of the dictionary counts when it differs from the default
config's own, so choosing another config brings that config's settings along.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if (Path(__file__).resolve().parent / "pyproject.toml").is_file():
    # A checkout runs its own code, installed or not; installed, this file changes nothing.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from cgrseg.training import single

DEFAULT_HPARAMS: dict[str, Any] = {
    "mode": "train",  # "train" or "eval"
    "config": "cgrseg-t_ade20k_160k",  # a config file, or the name of a run that is shipped
    "lr": 0.00012,  # learning rate; the decode head gets 10 times as much
    "batch_size": 4,  # images per step when training
    "eval_batch_size": 1,  # images at a time when evaluating
    "max_iters": 160000,  # training steps in all
    "eval_interval": 4000,  # steps between evaluations
    "data_root": "data/ade/ADEChallengeData2016",  # folder of the dataset
    "work_dir": None,  # folder of the run; None: ./work_dirs/<config name>
    "checkpoint": None,  # eval: the weights; None: latest.pth in the run's folder
    "show_dir": None,  # eval: folder for pictures of the predictions; None: none
    "opacity": 0.5,  # eval: of the prediction over the image in those pictures, 0 to 1
    "precision": "fp32",  # eval: "fp32", "bf16" or "fp16"; training has train.precision
    "compile": False,  # eval: fold and compile the network: several times faster
    "threads": None,  # of the CPU; None: all cores
    "seed": 0,  # of weights, order and augmentation
    "deterministic": False,  # only deterministic kernels (slower)
    "no_validate": False,  # train without evaluating on the way
    "resume_from": None,  # train: checkpoint of this run to go on from, exactly
    "auto_resume": False,  # train: go on from latest.pth in the run's folder when it is there
    "load_from": None,  # train: checkpoint whose weights the network starts from
    "gpu_id": None,  # number of the GPU; None: the first, or the CPU when there is none
}


def run_single_gpu(mode: str | None = None, **overrides: Any) -> dict[str, float]:
    """Train or evaluate with the dictionary above and whatever is given here.

    Args:
        mode: "train" or "eval"; none: as the dictionary says.
        **overrides: keys of `DEFAULT_HPARAMS`, or any setting of the config by its dotted
            name: `run_single_gpu("train", **{"train.precision": "bf16"})`.

    Returns:
        The metrics (0..1) by name: of the evaluation, or of the training's last one.

    Raises:
        cgrseg.errors.CGRSegError: with a message that says what to do.
    """
    if mode is not None:
        overrides["mode"] = mode
    return single.run(DEFAULT_HPARAMS, overrides).metrics


if __name__ == "__main__":
    sys.exit(single.main(DEFAULT_HPARAMS))
