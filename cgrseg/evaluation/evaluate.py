"""Evaluate a checkpoint on the dataset of a config.

`cgrseg evaluate`, `tools/test.py`, `tools/dist_test.sh` and `run_cgrseg.py --mode eval` all call
:func:`evaluate`; the validation during training calls :func:`evaluate_model` below it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from cgrseg.class_names import differences, listed, numbered_names
from cgrseg.config import Config
from cgrseg.config.fields import LARGEST_BATCH
from cgrseg.config.loading import as_config
from cgrseg.config.schema import ChannelTestConfig, TestConfig
from cgrseg.config.settings import stored_test_settings
from cgrseg.data.channels import read_pixels
from cgrseg.data.dataset import EvalDataset
from cgrseg.data.pairs import Pair, find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.devices import use_threads
from cgrseg.distributed import Place, from_first, joined_processes
from cgrseg.errors import ConfigError, EnvironmentProblem, option
from cgrseg.evaluation.loop import EvalItems, check_metrics, evaluate_model
from cgrseg.evaluation.outputs import Outputs, refuse_kind
from cgrseg.evaluation.result import EvaluationResult
from cgrseg.inference.backends import Backend
from cgrseg.inference.predictor import Predictor
from cgrseg.inference.ray_engine import RayCluster
from cgrseg.inference.ready_backend import make_backend
from cgrseg.inference.segmenting import augmented
from cgrseg.models import CGRSeg, load_model
from cgrseg.models.digest import weights_digest
from cgrseg.precision import AnyPrecision, choose_precision
from cgrseg.processes import Launcher, is_first_process
from cgrseg.progress import shown_progress

__all__ = ["evaluate", "evaluate_model"]

_LOG = logging.getLogger("cgrseg.evaluation")


def evaluate(
    config: Config | str | Path,
    checkpoint: str | Path | CGRSeg,
    *,
    split: str | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    show_dir: str | Path | None = None,
    opacity: float = 0.5,
    metrics: Sequence[str] = ("mIoU",),
    aug_test: bool = False,
    format_only: bool = False,
    limit: int | None = None,
    work_dir: str | Path | None = None,
    precision: AnyPrecision = "fp32",
    compile: bool | Literal["auto"] = False,
    threads: int | None = None,
    batch_size: int = 1,
    launcher: Launcher = "auto",
    cluster: RayCluster | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Measure a checkpoint on a split.

    Writes `evaluation.json` and `evaluation.npz` into the run folder; the name says so
    when it is not the plain evaluation of the config's own split (for example
    `evaluation_test_multiscale.json`).  An earlier result of that name that says something
    else is kept, as `evaluation_earlier1.json` and so on.  Started in several processes, each
    image is evaluated once and the first process writes.

    Args:
        config: a config, or a name, file or run folder that gives one.
        checkpoint: a file, folder, hub id or name; or a network.
        split: name of the split; None: `data.eval_split`.
        device: device to run on; None: a GPU where there is one.
        out: a folder for label PNGs (ids as indices, in the dataset's colors), or a
            `.json` or `.npz` file for a copy of the scores or of the counts; with
            `format_only` the folder of the submission.
        show_dir: folder for overlays with a legend.
        opacity: opacity of the labels in those overlays, 0 to 1.
        metrics: mIoU, mDice and mFscore are always computed; mBoundaryIoU and ECE cost time
            and are computed when named.
        aug_test: average over the published ratios, each plain and mirrored.
        format_only: write label files for the server of the benchmark and measure nothing;
            works for splits without labels.
        limit: maximum number of images.
        work_dir: folder for the results; None: the config's.
        precision: "fp32", "bf16", "fp16" or "auto" (bf16 where the device computes it in
            hardware, else fp32).
        compile: run the folded and compiled form of the network (docs/speed.md); "auto": on a
            CPU, the fastest form that is ready; False: the arithmetic as published.
        threads: number of CPU threads; None: all that the process may use.
        batch_size: number of images of equal size per batch.
        launcher: what started the processes, see :func:`cgrseg.distributed.joined_processes`.
        cluster: workers of Ray that share the images (extra `ray`), with its own number of
            threads; None: this process, or those of the launcher.  It needs a checkpoint by
            name and a precision that is not "auto".
        progress: show the progress.

    Returns:
        The result, the same in each process.  With `format_only` its scores are undefined.

    Raises:
        ConfigError: settings or classes that do not fit, or an unknown metric.
        DataError: an image or label that cannot be used.
        WeightsError: a checkpoint that cannot be used.
        EnvironmentProblem: a missing device, or results that cannot be written (raised in
            all processes).
    """
    check_metrics(metrics)
    _refuse_out_of_range(batch_size, limit, opacity)
    if cluster is not None:
        _refuse_on_ray(checkpoint, precision)
        # Workers have working folders of their own.
        out, show_dir = (path and Path(path).absolute() for path in (out, show_dir))
    config = as_config(config)
    spec = resolve_spec(config.data)
    split = split or config.data.eval_split
    refuse_kind(out, format_only)
    pairs = find_pairs(spec, config.data.root, split)
    outputs = Outputs.plan(
        spec,
        [pair.stem for pair in pairs[:limit]],
        Path(work_dir or config.run_dir),
        out=out,
        show_dir=show_dir,
        opacity=opacity,
        format_only=format_only,
    )
    outputs.refuse_unusable(pairs, config.data.root)
    kind = ImagesOnly if format_only else functools.partial(EvalDataset, spec)
    model = checkpoint if isinstance(checkpoint, CGRSeg) else load_model(checkpoint)
    where = "checkpoint" if checkpoint is model else str(checkpoint)
    test = _with_channels_of(model, config, where)
    dataset: EvalItems = kind(pairs, test)
    refuse_other_classes(model.classes, model.num_classes, spec, where)
    if model.variant != config.model.name and is_first_process():
        _LOG.warning(
            "%s holds %s, while %s names %s; what the file holds is evaluated",
            *(where, model.variant, config.name, config.model.name),
        )
    if aug_test:
        test = augmented(test)
    use_threads(threads)
    with contextlib.ExitStack() as stack:
        stack.enter_context(outputs.locked())
        if cluster is None:
            place = stack.enter_context(joined_processes(launcher, device))
        else:
            place = Place(0, 1, torch.device("cpu"))
        choice = choose_precision(place.device, precision)
        if choice.reason and place.rank == 0:
            _LOG.info("precision: %s", choice)
        report = stack.enter_context(shown_progress("evaluating", progress and place.rank == 0))
        shared: dict[str, Any] = {
            "classes": spec.classes,
            "ignore_index": spec.ignore_index,
            "metrics": metrics,
            "batch_size": batch_size,
            "limit": limit,
            "sinks": outputs.writers,
            "progress": report,
        }
        if cluster is not None:
            from cgrseg.evaluation.on_ray import evaluate_on_ray

            opened = functools.partial(
                Predictor.from_pretrained,
                where,
                device or ("cuda" if cluster.gpus else "cpu"),
                precision,
                compile=compile,
                threads=cluster.threads,
            )
            result = evaluate_on_ray(
                opened,
                dataset,
                test,
                cluster,
                checkpoint=where,
                stems=[pair.stem for pair in pairs],
                weights=weights_digest(model),
                **shared,
            )
        else:
            network: CGRSeg | Backend = model
            if compile:
                network = make_backend(model, place.device, choice.precision, compile=compile)
            result = evaluate_model(
                network,
                dataset,
                test,
                device=place.device,
                precision=choice.precision,
                rank=place.rank,
                world_size=place.world_size,
                workers=config.data.loader_processes,
                **shared,
            )
        settings: dict[str, Any] = {
            "run": config.name,
            "checkpoint": "a network in memory" if checkpoint is model else str(checkpoint),
            "weights": weights_digest(model),
            "initial weights": model.initial_weights or "not recorded",
            "variant": model.variant,
            "dataset": spec.name,
            "split": split,
            "limit": limit,
            "precision": choice.precision,
            **choice.record(),
            "compile": compile,
            "test": test.model_dump(mode="json"),
        }
        result = replace(result, settings=settings)
        with _first_writes(place):
            if place.rank == 0:
                outputs.write(result, result_name(config, split, aug_test, limit, choice.precision))
    return result


def _with_channels_of(model: CGRSeg, config: Config, where: str) -> TestConfig:
    """Test settings of a config, with the channels of the images as a network keeps them.

    Raises:
        ConfigError: the config names other channels.
    """
    names = config.data.channels.names
    if "channels" not in (model.preprocessing or {}):
        return config.preprocessing
    kept = stored_test_settings(model.preprocessing, where).image_channels
    assert kept is not None
    if names is not None and names != kept.names:
        raise ConfigError(
            "data.channels.names",
            found=", ".join(names),
            expected=f"{', '.join(kept.names or [])}, the channels that {where} was trained with",
            remedy="choose the config that the checkpoint was trained with, or leave the "
            "setting out",
        )
    return ChannelTestConfig(**config.test.model_dump(), channels=kept)


def _refuse_on_ray(checkpoint: str | Path | CGRSeg, precision: AnyPrecision) -> None:
    if isinstance(checkpoint, CGRSeg):
        raise ConfigError(
            "cluster",
            found="a network in memory",
            expected="a checkpoint that each worker opens",
            remedy="save it, and name the file",
        )
    if precision == "auto":
        raise ConfigError(
            option("--precision"),
            found="auto, which may mean another precision on another machine",
            expected="the precision of all workers: fp32, bf16 or fp16",
            remedy="name it",
        )


def _refuse_out_of_range(batch_size: int, limit: int | None, opacity: float) -> None:
    values = {
        option("--batch-size"): (batch_size, 1, LARGEST_BATCH),
        "limit": (limit, 1, 2**31 - 1),
        option("--opacity"): (opacity, 0, 1),
    }
    for name, (value, low, high) in values.items():
        if value is not None and not low <= value <= high:
            raise ConfigError(
                name,
                found=repr(value),
                expected=f"{low} to {high}",
                remedy="correct it, or leave it out for its default",
            )


def result_name(
    config: Config,
    split: str,
    aug_test: bool,
    limit: int | None,
    precision: str = "fp32",
) -> str:
    """File name, without suffix, of an evaluation in its run folder."""
    parts = ["evaluation"]
    if split != config.data.eval_split:
        parts.append(split)
    if aug_test:
        parts.append("multiscale")
    if precision != "fp32":
        parts.append(precision)
    if limit is not None:
        parts.append(f"first{limit}")
    return "_".join(parts)


class ImagesOnly:
    """A split of which only the images are read."""

    def __init__(self, pairs: Sequence[Pair], test: TestConfig) -> None:
        self.pairs = pairs
        self.test = test

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Image and stem; the label is None."""
        pair = self.pairs[index]
        image = read_pixels(pair.image, self.test)
        channels = self.test.image_channels
        return {"image": image, "channels": channels, "label": None, "stem": pair.stem}


def refuse_other_classes(
    classes: Sequence[str] | None, num_classes: int, spec: DatasetSpec, where: str
) -> None:
    """Refuse a network for other classes than a dataset has; other names give a warning.

    Args:
        classes: names in the network's order; None: unknown.
        num_classes: number of the network's classes.
        spec: the dataset.
        where: name of the checkpoint, for messages.

    Raises:
        ConfigError: another number of classes, or the same names in another order.
    """
    if num_classes != spec.num_classes:
        raise ConfigError(
            where,
            found=f"a network with {num_classes} classes",
            expected=f"the {spec.num_classes} classes of {spec.title}",
            remedy="choose the config that the checkpoint was trained with, or a checkpoint "
            "for this dataset",
        )
    if classes is None or tuple(classes) == numbered_names(num_classes):
        return
    ours, theirs = _plain(spec.classes), _plain(classes)
    changed = differences(theirs, ours)
    if changed is None:
        return
    moved = [name for k, name in enumerate(theirs) if name in ours and ours[k] != name]
    if moved:
        raise ConfigError(
            where,
            found=f"classes in another order than {spec.title} has them: {changed}\n"
            f"  checkpoint: {listed(classes)}\n  data: {listed(spec.classes)}",
            expected=f"each class at one id: {moved[0]!r} stands at two",
            remedy="use the class list that the checkpoint was trained with (classes.txt, "
            "data.classes)",
        )
    if is_first_process():
        _LOG.warning("%s: other class names than %s has: %s", where, spec.title, changed)


def _plain(names: Sequence[str]) -> list[str]:
    return [name.strip().lower() for name in names]


@contextlib.contextmanager
def _first_writes(place: Place) -> Iterator[None]:
    """Let all processes wait for what the first one writes in this block.

    Raises:
        EnvironmentProblem: in the other processes, when the first one could not write.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    told = None if problem is None else str(problem)
    try:
        told = from_first(told, place.world_size)
    except EnvironmentProblem:
        if problem is None:
            raise
    if problem is not None:
        raise problem
    if told is not None:
        raise EnvironmentProblem(f"the first process could not write the results: {told}")
