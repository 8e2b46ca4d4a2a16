"""Evaluate a checkpoint as a config says: the one path under every command.

`cgrseg evaluate`, `tools/test.py`, `tools/dist_test.sh` and `run_cgrseg.py --mode eval`
all end here; the validation during training uses :func:`evaluate_model` below it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cgrseg.class_names import differences, listed, numbered_names
from cgrseg.config import Config
from cgrseg.config.fields import LARGEST_BATCH
from cgrseg.config.loading import as_config
from cgrseg.data.dataset import EvalDataset
from cgrseg.data.image_files import read_image
from cgrseg.data.pairs import Pair, find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.devices import use_threads
from cgrseg.distributed import Place, from_first, joined_processes
from cgrseg.errors import (
    ConfigError,
    EnvironmentProblem,
    option,
)
from cgrseg.evaluation.loop import EvalItems, check_metrics, evaluate_model
from cgrseg.evaluation.outputs import (
    LabelWriter,
    OverlayWriter,
    SubmissionWriter,
    refuse_own_data,
)
from cgrseg.evaluation.result import EvaluationResult
from cgrseg.inference.backends import Backend
from cgrseg.inference.compiled_backend import make_backend
from cgrseg.inference.segmenting import augmented
from cgrseg.locks import output_lock
from cgrseg.models import CGRSeg, load_model
from cgrseg.models.digest import weights_digest
from cgrseg.precision import AnyPrecision, resolve_precision
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
    compile: bool = False,
    threads: int | None = None,
    batch_size: int = 1,
    launcher: Launcher = "auto",
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
        checkpoint: a file, folder or hub id; or a network.
        split: name of the split; None: `data.eval_split`.
        device: device; None: a GPU if there is one.
        out: a folder for label PNGs (ids as indices, in the dataset's colors), or a
            `.json` or `.npz` file for a copy of the scores or of the counts; with
            `format_only` the folder of the submission.
        show_dir: folder for overlays with a legend.
        opacity: opacity of the labels in those overlays, 0 to 1.
        metrics: mIoU, mDice and mFscore are always there; mBoundaryIoU and ECE cost time
            and are computed when named.
        aug_test: average over the published ratios, each plain and mirrored.
        format_only: write label files for the benchmark's server and count nothing; works
            for splits without labels.
        limit: maximum number of images.
        work_dir: folder for the results; None: the config's.
        precision: "fp32", "bf16", "fp16" or "auto" (bf16 where the device computes it in
            hardware, else fp32).
        compile: run the folded and compiled form of the network (docs/speed.md); the
            arithmetic as published is the default.
        threads: number of CPU threads; None: all cores.
        batch_size: number of images of equal size per batch.
        launcher: launcher of the processes, see
            :func:`cgrseg.distributed.joined_processes`.
        progress: show progress.

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
    config = as_config(config)
    spec = resolve_spec(config.data)
    split = split or config.data.eval_split
    _refuse_kind(out, format_only)
    pairs = find_pairs(spec, config.data.root, split)
    stems = [pair.stem for pair in pairs[:limit]]
    sinks = _sinks(config, spec, stems, out, show_dir, opacity, format_only, work_dir)
    for sink in sinks:
        refuse_own_data(sink.folder, pairs, config.data.root)
    if not format_only:
        _refuse_unwritable(Path(work_dir or config.run_dir))
    dataset = _dataset(spec, pairs, format_only, config.test.image_bits)
    model = checkpoint if isinstance(checkpoint, CGRSeg) else load_model(checkpoint)
    _check_fit(model, config, spec, checkpoint)
    test = augmented(config.test) if aug_test else config.test
    use_threads(threads)
    results = None if format_only else Path(work_dir or config.run_dir)
    copy = out if Path(out or "").suffix.lower() in (".json", ".npz") else None
    with _locked(results, copy, sinks), joined_processes(launcher, device) as place:
        precision = resolve_precision(precision, place.device)
        network: CGRSeg | Backend = model
        if compile:
            network = make_backend(model, place.device, precision, compile=True)
        with shown_progress("evaluating", progress and place.rank == 0) as report:
            result = evaluate_model(
                network,
                dataset,
                test,
                classes=spec.classes,
                ignore_index=spec.ignore_index,
                metrics=metrics,
                device=place.device,
                precision=precision,
                rank=place.rank,
                world_size=place.world_size,
                workers=config.data.workers,
                batch_size=batch_size,
                limit=limit,
                sinks=sinks,
                progress=report,
            )
        settings: dict[str, Any] = {
            "run": config.name,
            "checkpoint": "a network in memory" if checkpoint is model else str(checkpoint),
            "weights": weights_digest(model),
            "variant": model.variant,
            "dataset": spec.name,
            "split": split,
            "limit": limit,
            "precision": precision,
            "compile": compile,
            "test": test.model_dump(mode="json"),
        }
        result = replace(result, settings=settings)
        with _first_writes(place):
            if place.rank == 0 and not format_only:
                name = result_name(config, split, aug_test, limit, precision)
                _write(result, Path(work_dir or config.run_dir), name, out)
    return result


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


def _refuse_unwritable(folder: Path) -> None:
    """Stop before the work whose result could not be written."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise EnvironmentProblem(
            folder,
            found=f"results cannot be written there ({nearest} is read-only for this user)",
            expected="a folder for evaluation.json",
            remedy="name another folder: work_dir=FOLDER (in Python work_dir=...)",
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
    """A split without labels, image by image."""

    def __init__(self, pairs: Sequence[Pair], image_bits: int) -> None:
        self.pairs = pairs
        self.image_bits = image_bits

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Image and stem; the label is None."""
        pair = self.pairs[index]
        image = read_image(pair.image, bits=self.image_bits)
        return {"image": image, "label": None, "stem": pair.stem}


def _dataset(
    spec: DatasetSpec, pairs: Sequence[Pair], format_only: bool, image_bits: int
) -> EvalItems:
    return ImagesOnly(pairs, image_bits) if format_only else EvalDataset(spec, pairs, image_bits)


def _refuse_kind(out: str | Path | None, format_only: bool) -> None:
    """Refuse an unknown kind of `out`."""
    suffix = Path(out).suffix.lower() if out is not None else ""
    if suffix in (".pkl", ".pickle"):
        raise ConfigError(
            "out",
            found=f"{out}: pickles are not written, since opening one runs what is in it",
            expected="a folder for label PNGs, or a .json or .npz file",
            remedy="name a folder, or end the file in .npz",
        )
    if format_only and suffix in (".json", ".npz"):
        raise ConfigError(
            "out",
            found=f"{out} together with format_only",
            expected="a folder for the files of the submission",
            remedy="name a folder",
        )


def _sinks(
    config: Config,
    spec: DatasetSpec,
    stems: Sequence[str],
    out: str | Path | None,
    show_dir: str | Path | None,
    opacity: float,
    format_only: bool,
    work_dir: str | Path | None,
) -> list[LabelWriter | OverlayWriter | SubmissionWriter]:
    """Writers for each predicted image."""
    sinks: list[LabelWriter | OverlayWriter | SubmissionWriter] = []
    suffix = Path(out).suffix.lower() if out is not None else ""
    if format_only:
        folder = Path(out) if out is not None else Path(work_dir or config.run_dir) / "submission"
        sinks.append(SubmissionWriter(folder, spec, stems))
    elif out is not None and suffix not in (".json", ".npz"):
        sinks.append(LabelWriter(out, spec))
    if show_dir is not None:
        sinks.append(OverlayWriter(show_dir, spec, opacity))
    return sinks


def _check_fit(
    model: CGRSeg, config: Config, spec: DatasetSpec, checkpoint: str | Path | CGRSeg
) -> None:
    """Refuse a checkpoint whose classes are not the dataset's."""
    where = "checkpoint" if isinstance(checkpoint, CGRSeg) else str(checkpoint)
    if model.num_classes != spec.num_classes:
        raise ConfigError(
            where,
            found=f"a network with {model.num_classes} classes",
            expected=f"the {spec.num_classes} classes of {spec.title}, which {config.name} "
            "evaluates",
            remedy="choose the config that the checkpoint was trained with, or a checkpoint "
            "for this dataset",
        )
    if model.variant != config.model.name and is_first_process():
        _LOG.warning(
            "%s holds %s, while %s names %s; what the file holds is evaluated",
            where,
            model.variant,
            config.name,
            config.model.name,
        )
    if model.classes is None or model.classes == numbered_names(model.num_classes):
        return
    ours, theirs = _plain(spec.classes), _plain(model.classes)
    changed = differences(theirs, ours)
    if changed is None:
        return
    moved = [name for k, name in enumerate(theirs) if name in ours and ours[k] != name]
    if moved:
        raise ConfigError(
            where,
            found=f"classes in another order than {spec.title} has them: {changed}\n"
            f"  checkpoint: {listed(model.classes)}\n  data: {listed(spec.classes)}",
            expected=f"each class at one id: {moved[0]!r} stands at two",
            remedy="use the class list that the checkpoint was trained with (classes.txt, "
            "data.classes)",
        )
    if is_first_process():
        _LOG.warning("%s: other class names than %s has: %s", where, spec.title, changed)


def _plain(names: Sequence[str]) -> list[str]:
    return [name.strip().lower() for name in names]


@contextlib.contextmanager
def _locked(
    results: Path | None,
    copy: str | Path | None,
    sinks: Sequence[LabelWriter | OverlayWriter | SubmissionWriter],
) -> Iterator[None]:
    """Hold the locks of all folders that an evaluation writes to."""
    with contextlib.ExitStack() as locks:
        if results is not None:
            locks.enter_context(output_lock(results))
        if copy is not None:
            locks.enter_context(output_lock(Path(copy).parent))
        for sink in sinks:
            locks.enter_context(output_lock(sink.folder, below=True))
        yield


def _write(result: EvaluationResult, folder: Path, name: str, out: str | Path | None) -> None:
    kept = result.write(folder, name).earlier
    suffix = Path(out).suffix.lower() if out is not None else ""
    if out is not None and suffix in (".json", ".npz"):
        kept += result.write_copy(out)
    for path in kept:
        _LOG.warning("an earlier result is kept as %s", path)


@contextlib.contextmanager
def _first_writes(place: Place) -> Iterator[None]:
    """Wait in all processes until the first one has written; its failure is raised in all.

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
