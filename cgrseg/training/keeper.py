"""What of a run is kept: its checkpoints, and which of them is best.

`latest.pth` can be resumed from; `best.pth` (and `best_<iteration>.pth` when several
are wanted) holds the weights of the best evaluation, without training state.  The
history of scores is `scores.csv`; it is what best-k and early stopping look at, so
both go on correctly after a resume.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import torch

import cgrseg
from cgrseg.config.schema import Config
from cgrseg.errors import ConfigError, explain
from cgrseg.training.checkpointing import BEST, FORMAT, LATEST, write_checkpoint
from cgrseg.training.groups import parameter_groups
from cgrseg.training.module import TrainingModule
from cgrseg.training.tables import SCORES, read_table


class Keeper:
    """Writes the checkpoints of one run and ranks its evaluations.

    Args:
        run_dir: the run's folder.
        config: the run.
        meta: entries of `meta` that stay the same: variant, context blocks, classes, palette.
        start: iteration that this part of the run starts from; later scores of an
            earlier part do not count.
        active: false in every process but the first: nothing is written.
    """

    def __init__(
        self, run_dir: Path, config: Config, meta: dict[str, Any], *, start: int, active: bool
    ) -> None:
        self.run_dir = run_dir
        self.config = config
        self.active = active
        self.history = [
            (iteration, score) for iteration, score in read_history(run_dir) if iteration <= start
        ]
        self._meta = {
            "format": FORMAT,
            **meta,
            "config": config.model_dump(mode="json"),
            "version": cgrseg.__version__,
        }

    def save_latest(self, module: TrainingModule, trainer: Any) -> None:
        """Write `latest.pth`, from which training goes on exactly."""
        if not self.active:
            return
        training: dict[str, Any] = {
            "iteration": module.iteration,
            "world_size": trainer.world_size,
            "optimizer": trainer.optimizers[0].state_dict(),
            "scaler": None,
        }
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            training["scaler"] = scaler.state_dict()
        if module.averaged is not None:
            training["state_dict"] = module.model.state_dict()
            training["averaged_steps"] = module.averaged.updates
        write_checkpoint(
            self.run_dir / LATEST,
            {**self._weights(module), "training": training},
            keep_previous=True,
        )

    def note_scores(self, module: TrainingModule, score: float) -> bool:
        """Remember the mIoU of an evaluation; write `best.pth` when it is the best so far.

        Args:
            module: holds the weights that were evaluated.
            score: mIoU in 0..1; one that is not a number is never the best.

        Returns:
            Whether it is the best.
        """
        score = -math.inf if math.isnan(score) else score
        is_best = score > max((value for _, value in self.history), default=-math.inf)
        self.history.append((module.iteration, score))
        if not self.active:
            return is_best
        if is_best:
            write_checkpoint(self.run_dir / BEST, self._weights(module, score))
        if self.config.train.keep_best:
            self._keep_best(module, score)
        return is_best

    def _keep_best(self, module: TrainingModule, score: float) -> None:
        ranked = sorted(self.history, key=lambda entry: (-entry[1], entry[0]))
        kept = {iteration for iteration, _ in ranked[: self.config.train.keep_best]}
        if module.iteration in kept:
            write_checkpoint(
                self.run_dir / f"best_{module.iteration}.pth", self._weights(module, score)
            )
        for iteration, _ in self.history:
            if iteration not in kept:
                with contextlib.suppress(FileNotFoundError):
                    (self.run_dir / f"best_{iteration}.pth").unlink()

    @property
    def evaluations_without_progress(self) -> int:
        """Evaluations since the best one."""
        if not self.history:
            return 0
        scores = [score for _, score in self.history]
        return len(scores) - 1 - scores.index(max(scores))

    @property
    def out_of_patience(self) -> bool:
        """Whether early stopping applies."""
        patience = self.config.train.patience
        return patience is not None and self.evaluations_without_progress >= patience

    def _weights(self, module: TrainingModule, score: float | None = None) -> dict[str, Any]:
        meta = {**self._meta, "iteration": module.iteration}
        if score is not None:
            meta["mIoU"] = score
        return {"state_dict": module.evaluated_model.state_dict(), "meta": meta}


def read_history(run_dir: Path) -> list[tuple[int, float]]:
    """(iteration, mIoU) of every evaluation that a run's folder knows of.

    An mIoU that was not a number counts as minus infinity.
    """
    history = []
    for row in read_table(run_dir / SCORES):
        score = float(row.get("mIoU") or "nan")
        history.append((int(row["iteration"]), -math.inf if math.isnan(score) else score))
    return history


def restore_weights(module: TrainingModule, checkpoint: dict[str, Any]) -> None:
    """Put a checkpoint's weights into a module, before it is moved to its device.

    Raises:
        ConfigError: when the network of the checkpoint is another one.
    """
    training = checkpoint["training"]
    raw = training.get("state_dict", checkpoint["state_dict"])
    try:
        module.model.load_state_dict(raw)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(
            explain(
                "resume-from",
                found="a checkpoint of another network than the settings describe "
                f"({' '.join(line.strip() for line in lines[1:3])[:300]})",
                expected=f"{module.config.model.name} with the same classes and context blocks",
                remedy="resume with the config.json of that run; to start from its weights with "
                "other settings use load-from",
            )
        ) from error
    if module.averaged is not None:
        module.averaged.module.load_state_dict(checkpoint["state_dict"])
        if "averaged_steps" in training:
            module.averaged.updates = int(training["averaged_steps"])


def refuse_other_groups(module: TrainingModule, checkpoint: dict[str, Any]) -> None:
    """Make sure that the optimiser to come has the groups of the saved one.

    Raises:
        ConfigError: when the parameters are grouped in another way.
    """
    saved = checkpoint["training"]["optimizer"]["param_groups"]
    groups = parameter_groups(module.model, module.config.optimizer)
    if [group.get("names") for group in saved] != [group["names"] for group in groups]:
        raise ConfigError(
            explain(
                "resume-from",
                found="an optimiser whose groups of parameters are others",
                expected="the groups that the optimizer.* settings make",
                remedy="resume with the optimizer settings of that run, or use load-from",
            )
        )


def restore_optimizer(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Put a checkpoint's moments and loss scale back, once the optimiser exists.

    Rates, decays and betas stay those of the present settings; that the groups are the
    same was made sure of before (:func:`refuse_other_groups`).
    """
    optimizer = trainer.optimizers[0]
    saved = checkpoint["training"]["optimizer"]
    # Before loading, because PyTorch decides by them on which device the counts of steps go.
    groups = [
        {**group, "params": old["params"]}
        for group, old in zip(optimizer.param_groups, saved["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            # The fused step goes through memory as it lies: moments that were saved in another
            # layout (train.channels_last) would meet the wrong weights.
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = checkpoint["training"].get("scaler")
    if scaler is not None and scale:
        scaler.load_state_dict(scale)


def device_memory_gib(device: torch.device) -> float:
    """Largest memory that tensors took on a GPU so far, in GiB; 0 elsewhere."""
    if device.type != "cuda":
        return 0.0
    return float(torch.cuda.max_memory_allocated(device)) / 2**30
