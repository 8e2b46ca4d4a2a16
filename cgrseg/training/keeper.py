"""What of a run is kept: its checkpoints, and which of them is best.

`latest.pth` can be resumed from; `best.pth` (and `best_<iteration>.pth` when several
are wanted) holds the weights of the best evaluation, without training state.  The
history of scores is `scores.csv`; it is what best-k and early stopping look at, so
both go on correctly after a resume.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import cgrseg
from cgrseg.config.schema import Config
from cgrseg.errors import ConfigError, WeightsError
from cgrseg.training.checkpointing import BEST, FORMAT, LATEST, PREVIOUS, write_checkpoint
from cgrseg.training.groups import parameter_groups
from cgrseg.training.module import TrainingModule
from cgrseg.training.tables import SCORES, damaged_table, read_table


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

    Raises:
        DataError: the table is damaged.
    """
    history = []
    for row in read_table(run_dir / SCORES):
        try:
            score = float(row.get("mIoU") or "nan")
        except ValueError as error:
            raise damaged_table(run_dir / SCORES, str(error)) from error
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
            "resume-from",
            found="a checkpoint of another network than the settings describe "
            f"({' '.join(line.strip() for line in lines[1:3])[:300]})",
            expected=f"{module.config.model.name} with the same classes and context blocks",
            remedy="resume with the config.json of that run; to start from its weights with "
            "other settings use load-from",
        ) from error
    if module.averaged is not None:
        module.averaged.module.load_state_dict(checkpoint["state_dict"])
        if "averaged_steps" in training:
            module.averaged.updates = int(training["averaged_steps"])


def refuse_other_optimizer(module: TrainingModule, checkpoint: dict[str, Any]) -> None:
    """Make sure that the saved optimizer state fits the optimizer to come.

    The fused step reads moments as plain memory: a moment with another shape than its
    parameter ends the process, so every value is checked before the optimizer gets it.

    Raises:
        ConfigError: different parameter groups.
        WeightsError: optimizer state that no training writes; the message names the parameter.
    """
    saved = checkpoint["training"]["optimizer"]
    groups = parameter_groups(module.model, module.config.optimizer)
    if [group.get("names") for group in saved["param_groups"]] != [g["names"] for g in groups]:
        raise ConfigError(
            "resume-from",
            found="different optimizer parameter groups",
            expected="the groups that the optimizer.* settings and model.freeze_backbone make",
            remedy="resume with these settings as that run had them, or use load-from",
        )
    owners: dict[Any, tuple[str, torch.Tensor]] = {}
    for old, group in zip(saved["param_groups"], groups, strict=True):
        if len(old["params"]) != len(group["params"]):
            raise _damaged_optimizer(
                "optimizer", f"{len(old['params'])} parameters in a group", len(group["params"])
            )
        named = zip(old["params"], group["names"], group["params"], strict=True)
        owners.update({key: (name, parameter) for key, name, parameter in named})
    for key, state in saved["state"].items():
        if key not in owners:
            raise _damaged_optimizer("optimizer", f"state of an unknown parameter {key!r}", "none")
        _refuse_bad_state(*owners[key], state)


def _refuse_bad_state(name: str, parameter: torch.Tensor, state: Any) -> None:
    """Raise unless a parameter's state is what AdamW keeps: steps and two moments."""
    names = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
    if names != ["exp_avg", "exp_avg_sq", "step"]:
        raise _damaged_optimizer(name, f"the state {names}", "step, exp_avg and exp_avg_sq")
    step = state["step"]
    if isinstance(step, torch.Tensor):
        plain = step.layout == torch.strided and step.device.type == "cpu"
        step = step.item() if plain and step.numel() == 1 and not step.is_complex() else None
    if not isinstance(step, (int, float)) or not 0 <= step < 2**53 or step != int(step):
        raise _damaged_optimizer(name, f"step {step!r}", "a whole number of steps, 0 or more")
    for moment in ("exp_avg", "exp_avg_sq"):
        value = state[moment]
        if not isinstance(value, torch.Tensor):
            raise _damaged_optimizer(name, f"{moment} of type {type(value).__name__}", "a tensor")
        kind = f"{str(value.dtype)[6:]}, {str(value.layout)[6:]}, on {value.device.type}"
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if value.shape != parameter.shape or not plain or not value.is_floating_point():
            raise _damaged_optimizer(
                name,
                f"{moment} of shape {tuple(value.shape)} ({kind})",
                f"shape {tuple(parameter.shape)} (a dense tensor of floating-point numbers)",
            )
        if not torch.isfinite(value).all():
            raise _damaged_optimizer(name, f"non-finite values in {moment}", "finite values")
        if moment == "exp_avg_sq" and (value < 0).any():
            raise _damaged_optimizer(name, f"negative values in {moment}", "values of 0 or more")


def _damaged_optimizer(where: str, found: str, expected: object) -> WeightsError:
    return WeightsError(
        f"resume-from, optimizer state of {where}",
        found=found,
        expected=f"{expected}, as a training writes it",
        remedy=f"the checkpoint is damaged or foreign: resume from {PREVIOUS} in the same "
        "folder, or start from its weights with load-from",
    )


def restore_optimizer(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Put a checkpoint's moments and loss scale back, once the optimiser exists.

    Rates, decays and betas stay those of the present settings; that the groups are the
    same was made sure of before (:func:`refuse_other_optimizer`).
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
