"""Label maps of a collection, by the workers of a Ray cluster (extra `ray`).

Each worker is an actor with a predictor of its own.  This process hands out groups of images, and
counts an image once, by the answer that arrives: the images of a worker that died are handed out
again, and its files are written whole or not at all.  An evaluation on Ray
(:mod:`cgrseg.evaluation.on_ray`) has the same workers.  Ray Data would hide which images a dead
worker had, so plain actors are used.

A table has one row per image, with what other programs need to choose images by.  Its rows are
kept in a journal until the end, so that the same call resumes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from cgrseg.cpus import usable_cpus
from cgrseg.data.label_files import label_note
from cgrseg.errors import MALFORMED, CGRSegError, ConfigError, DataError, EnvironmentProblem
from cgrseg.extras import require, require_extra
from cgrseg.files import atomic_path, atomic_write_text, explained, remove_leftovers
from cgrseg.inference.image_sources import FoundImage, find_images
from cgrseg.inference.prediction import Prediction, Timing
from cgrseg.inference.predictor import Predictor
from cgrseg.inference.records import FolderRecord, Maker
from cgrseg.inference.results import FolderOutput, FolderReport, add_annotations
from cgrseg.input_files import open_input, read_input_text
from cgrseg.locks import NAME, locking
from cgrseg.progress import Progress

if TYPE_CHECKING:
    from cgrseg.inference.annotation_files import AnnotationSettings

_LOG = logging.getLogger("cgrseg.inference")

Item = TypeVar("Item", contravariant=True)
Answer = TypeVar("Answer", covariant=True)

TABLE = "predictions.parquet"
"""Table of a folder of results: `image` (address or path), `name` (of its files), `sha256`,
`confidence` (mean over the image, 0..1), `shares` (of each class, 0..1), `error` (null: none),
`note` (of the label file: of which network and content it is)."""

_COLUMNS = ("image", "name", "sha256", "confidence", "shares", "error", "note")

_JOURNAL = f"{TABLE}.rows"
_FIRST = 8  # images of a worker's first group; later ones grow
_SECONDS = 10.0  # that a group takes: long beside its beginning and end, short to do again
_DEATHS = 20  # per worker, without an answer between them, after which none will come
_TRIES = 3  # of an image whose worker dies
_ROWS = 10_000  # of the table, written at a time


@dataclass(frozen=True)
class RayCluster:
    """Where the workers run.

    Attributes:
        address: of a running cluster, or `auto`; None: a cluster on this machine, for this call.
        workers: number of workers; None: as many as the cluster has room for.
        threads: number of CPU threads, and of Ray's CPUs, per worker.
        gpus: number of GPUs per worker; a part of one shares it.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1
    gpus: float = 0.0


class RayJob(Protocol[Item, Answer]):
    """What workers do with each group of items, such as images."""

    @property
    def maker(self) -> Maker:
        """Description of the predictors that all workers must have."""
        ...

    def run(self, predictor: Predictor, items: Sequence[Item]) -> Answer:
        """Answer of a worker for a group."""
        ...

    def lost(self, item: Item, reason: str) -> Answer:
        """Answer for an item whose workers died."""
        ...


@dataclass(frozen=True)
class _Labeling:
    """Writing label maps of images."""

    maker: Maker
    output: FolderOutput
    record: FolderRecord
    batch_size: int

    def run(self, predictor: Predictor, items: Sequence[FoundImage]) -> list[_Outcome]:
        """Outcomes of images, in their order."""
        labeled = self.output.label(
            predictor, items, self.record, batch_size=self.batch_size, confidence="coarse"
        )
        outcomes = []
        for image, found in labeled:
            note = label_note(self.output.labels(image))
            outcomes.append(_outcome(image, found, predictor.backend.choice, note))
        return outcomes

    def lost(self, item: FoundImage, reason: str) -> list[_Outcome]:
        """The error of an image."""
        return [_outcome(item, worker_died(item.path, reason))]


@dataclass(frozen=True)
class _Outcome:
    """What a worker says of one image.

    Attributes:
        row: its line in the journal.
        error: why it has no label map; None: it has one.
        timing: time of the network.
        form: forms of the network that this worker used so far.
    """

    row: str
    error: CGRSegError | None
    timing: Timing | None = None
    form: str = ""


class _Worker:
    """An actor: a predictor, in a process of its own."""

    def __init__(
        self, open_predictor: Callable[[], Predictor], checkpoint: str | Path | None, folder: str
    ) -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)  # relative paths mean the same here
        self._problem: CGRSegError | None = None
        try:
            self._predictor = open_predictor()
            self._maker = Maker.of(self._predictor, checkpoint)
        except CGRSegError as error:  # Ray would wrap it
            self._problem = error

    def maker(self) -> Maker:
        if self._problem is not None:
            raise self._problem
        return self._maker

    def run(self, items: Sequence[Any], job: RayJob[Any, Any], coming: int) -> Any:
        """Answer for a group; `coming`: number of items that this worker will get, with these."""
        if self.maker() != job.maker:
            raise other_network("another network, or other settings, on another machine")
        self._predictor.backend.expect(coming)
        return job.run(self._predictor, items)


def _outcome(
    image: FoundImage,
    found: Prediction | CGRSegError,
    form: str = "",
    note: str | None = None,
) -> _Outcome:
    row: dict[str, Any] = {"image": str(image.path), "name": image.name}
    if isinstance(found, CGRSegError):
        return _Outcome(json.dumps({**row, "error": str(found)}), found)
    row["note"] = note
    row["sha256"] = found.sha256
    row["shares"] = {name: round(share, 6) for name, share in found.shares.items()}
    if found.confidence is not None:
        row["confidence"] = round(float(np.mean(found.confidence, dtype=np.float64)), 6)
    return _Outcome(json.dumps(row), None, found.timing, form)


@locking(lambda given: given["out"], below=True)
def predict_on_ray(
    open_predictor: Callable[[], Predictor],
    inputs: str | Path | Iterable[str | Path],
    out: str | Path,
    cluster: RayCluster,
    *,
    overlays: bool = True,
    legend: bool = True,
    opacity: float = 0.5,
    overwrite: bool = False,
    batch_size: int = 1,
    checkpoint: str | Path | None = None,
    annotations: AnnotationSettings | None = None,
    progress: Progress | None = None,
) -> FolderReport:
    """Write label maps (and overlays) of many images, as :func:`predict_folder`, and a table.

    The results are those of :func:`predict_folder`, which goes on with them.  Here images without
    a row in the table are labeled again, but for label maps that somebody retouched.
    `out/predictions.parquet` has a row per image (:data:`TABLE`).

    Args:
        open_predictor: called once in each worker, so that it must be picklable.
        inputs: files, folders and glob patterns, or addresses of these, that all workers see.
        out: folder of the results that all workers see.
        cluster: where the workers run.
        overlays: also write the images with their labels laid over them.
        legend: add class names and shares at the side of the overlays.
        opacity: opacity of the labels in the overlays, 0..1.
        overwrite: predict images again whose results are there.
        batch_size: maximum number of images of equal size per batch.
        checkpoint: source of the network, recorded in `prediction.json`.
        annotations: also write annotation files to `out/<format>/`.
        progress: called with the finished images and all images.

    Raises:
        ConfigError: a cluster without room for one worker, or workers whose networks differ.
        DataError: as :func:`predict_folder`.
        EnvironmentProblem: Ray is missing or cannot be reached, results cannot be written, or
            workers die whatever they do.
    """
    require_extra("ray", "--engine ray")
    output = FolderOutput(
        Path(out).absolute(), overlays, legend, opacity, scores=annotations is not None
    )
    report = FolderReport()
    with ray_workers(cluster, open_predictor, checkpoint) as pool:
        maker = pool.maker()
        channels = maker.test.image_channels
        images = find_images(inputs, leave_out=output.parts, channels=channels)
        record = output.record(maker, checkpoint, overwrite)
        table = _Table(output.folder)
        todo: list[FoundImage] = []
        for image, kept in zip(images, output.kept(images, record, overwrite), strict=True):
            note = label_note(output.labels(image)) if kept else None
            # Without a note somebody retouched it.
            if kept and (note is None or table.has(image, note)):
                report.kept.append(image.path)
            else:
                todo.append(image)
        form = ""
        with table.writing(todo) as add:
            for group, outcomes in pool.run(todo, _Labeling(maker, output, record, batch_size)):
                for image, outcome in zip(group, outcomes, strict=True):
                    add(outcome.row)
                    report.speed.add(outcome.timing)
                    form = outcome.form or form
                    if outcome.error is None:
                        report.done.append(image.path)
                    else:
                        report.failed.append((image.path, outcome.error))
                if progress is not None:
                    progress(report.count, len(images))
    remove_leftovers(output.folder, below=True, other_lock=NAME)  # of workers that died
    table.finish(maker.made["classes"])
    if annotations is not None:
        add_annotations(output, images, report, maker, annotations, overwrite)
    report.failed.sort(key=lambda failure: str(failure[0]))
    record.finish(form, overwritten=not report.failed)
    return report


@dataclass(frozen=True)
class _Group:
    """Items that a worker gets at a time.

    Attributes:
        items: several seconds of work, or what a worker died of.
        deaths: number of workers that died while they had this item alone.
        begun: when a worker got it, as of `time.monotonic`.
    """

    items: Sequence[Any]
    deaths: int = 0
    begun: float = 0.0


class RayPool:
    """The workers; one that is not ready, or begins again after its death, gets no items."""

    def __init__(self, ray: Any, workers: Sequence[Any]) -> None:
        self._ray = ray
        self._count = len(workers)
        self._ready: list[Any] = []
        self._running: dict[Any, tuple[Any, _Group | None]] = {}
        self._size = _FIRST
        self._deaths = 0
        for worker in workers:
            self._begin(worker)

    def maker(self) -> Maker:
        """Description of the predictors, from the first worker that is ready."""
        while True:
            _, answer, _ = self._next()
            if answer is not None:
                return answer

    def run(
        self, items: Sequence[Item], job: RayJob[Item, Answer]
    ) -> Iterator[tuple[Sequence[Item], Answer]]:
        """Each item once, in groups in any order, with the answer of each group."""
        shared = self._ray.put(job)
        again: deque[_Group] = deque()  # what workers died of
        taken, left = 0, len(items)
        finished: list[tuple[Sequence[Item], Answer]] = []
        while left:
            while self._ready and (again or taken < len(items)):
                if taken == len(items):  # those that may be to blame come last
                    group = again.popleft()
                else:  # smaller ones near the end, so that all workers end together
                    size = max(1, min(self._size, (len(items) - taken) // (2 * self._count)))
                    group = _Group(items[taken : taken + size])
                    taken += size
                worker = self._ready.pop()
                coming = max(len(group.items), left // self._count)
                answer = worker.run.remote(group.items, shared, coming)
                self._running[answer] = (worker, replace(group, begun=time.monotonic()))
            yield from finished  # while the workers have items again
            finished = []
            done, found, reason = self._next()
            if done is None:  # a worker is ready, or not yet
                continue
            if found is None and len(done.items) > 1:
                half = len(done.items) // 2
                again += [_Group(done.items[:half]), _Group(done.items[half:])]
                continue
            if found is None and done.deaths + 1 < _TRIES:
                again.append(replace(done, deaths=done.deaths + 1))
                continue
            if found is not None and time.monotonic() - done.begun < _SECONDS:
                self._size = max(self._size, 2 * len(done.items))
            if found is None:
                found = job.lost(done.items[0], reason)
            finished = [(done.items, found)]
            self._deaths = 0
            left -= len(done.items)
        yield from finished

    def _begin(self, worker: Any) -> None:
        self._running[worker.maker.remote()] = (worker, None)

    def _next(self) -> tuple[_Group | None, Any, str]:
        """A group (None: a worker began), its answer (None: none will come), and why."""
        errors = self._ray.exceptions
        (reference, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        worker, group = self._running.pop(reference)
        try:
            answer = self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, CGRSegError):
                raise error.cause from None
            dead, reason = False, f"{type(error.cause).__name__}: {error.cause}"
        except errors.RayError as error:
            dead, reason = isinstance(error, errors.ActorDiedError), str(error)
        else:
            self._ready.append(worker)
            return group, answer, ""
        reason = " ".join(reason.split())
        if group is not None:
            _LOG.warning("a worker of Ray died, and its images are done again: %s", reason)
        self._deaths += 1
        if not dead:
            self._begin(worker)  # Ray starts it again
        if self._deaths > _DEATHS * self._count or not (self._running or self._ready):
            raise EnvironmentProblem(
                "--engine ray",
                found=f"workers died {self._deaths} times without an answer ({reason})",
                expected="workers that live",
                remedy="give each more memory (fewer --workers), and read Ray's logs; finished "
                "images are kept",
            )
        return group, None, reason


def other_network(found: str) -> ConfigError:
    """The error of processes whose networks differ."""
    return ConfigError(
        "CHECKPOINT",
        found=f"{found} of the cluster",
        expected="the same on all machines",
        remedy="put the checkpoint into a folder that all machines see, or use a hub id",
    )


def worker_died(image: object, reason: str) -> DataError:
    """The error of an image whose workers died."""
    return DataError(
        image,
        found=f"the worker died {_TRIES} times while it had this image ({reason})",
        expected="an image that a worker can label",
        remedy="look at its size and at the memory of the workers",
    )


@contextlib.contextmanager
def ray_workers(
    cluster: RayCluster,
    open_predictor: Callable[[], Predictor],
    checkpoint: str | Path | None,
) -> Iterator[RayPool]:
    """The workers on a running cluster, or on one of this machine that lives in the block."""
    ray = require("ray", "--engine ray")

    local = {} if cluster.address else {"num_cpus": usable_cpus(), "include_dashboard": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(cluster.address or "local", logging_level="error", log_to_driver=False, **local)
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has taken it
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            "--ray-address",
            found=f"no cluster of Ray can be used ({' '.join(str(error).split())})",
            expected="the address of a running cluster, or none for one on this machine",
            remedy="check the address, the network and that both sides have one version of Ray",
        ) from error
    try:
        has = ray.cluster_resources()
        room = int(has.get("CPU", 0) // cluster.threads)
        if cluster.gpus:
            room = min(room, int(has.get("GPU", 0) / cluster.gpus))
        count = cluster.workers or room
        if not room:
            raise ConfigError(
                "--engine ray",
                found=f"a cluster of {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs",
                expected=f"{cluster.threads} CPUs and {cluster.gpus:g} GPUs for a worker",
                remedy="change --threads or --gpus-per-worker",
            )
        if count > room:
            _LOG.warning("the cluster has room for %d of %d workers now", room, count)
        actor = ray.remote(_Worker).options(
            num_cpus=cluster.threads,
            num_gpus=cluster.gpus,
            max_restarts=-1,
            max_task_retries=0,
        )
        yield RayPool(
            ray, [actor.remote(open_predictor, checkpoint, os.getcwd()) for _ in range(count)]
        )
    finally:
        ray.shutdown()


class _Table:
    """Rows of the folder's table, as lines of JSON; those of this call go to a journal first."""

    def __init__(self, folder: Path) -> None:
        self._file, self._journal = folder / TABLE, folder / _JOURNAL
        self._rows: dict[str, str] = {}
        for line in [*_stored_rows(self._file), *_journal_rows(self._journal)]:
            self._rows[json.loads(line)["image"]] = line

    def has(self, image: FoundImage, note: str) -> bool:
        """Whether there is a row of an image, made with the label file of this note."""
        row = self._rows.get(str(image.path))
        return row is not None and json.loads(row).get("note") == note

    @contextlib.contextmanager
    def writing(self, again: Iterable[FoundImage]) -> Iterator[Callable[[str], None]]:
        """A function that adds a line; the rows of images that are labeled again are dropped."""
        for image in again:
            self._rows.pop(str(image.path), None)
        # All other rows, since the table still has those that were dropped.
        atomic_write_text(self._journal, "".join(f"{row}\n" for row in self._rows.values()))
        self._file.unlink(missing_ok=True)
        with explained(self._journal), self._journal.open("a", encoding="utf-8") as stream:

            def add(row: str) -> None:
                stream.write(f"{row}\n")
                stream.flush()
                self._rows[json.loads(row)["image"]] = row

            yield add

    def finish(self, classes: Sequence[str]) -> None:
        """Write the table, and remove the journal."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        shares = pa.struct([(name, pa.float32()) for name in classes])
        schema = pa.schema(
            [
                *((name, pa.string()) for name in ("image", "name", "sha256")),
                ("confidence", pa.float32()),
                ("shares", shares),
                ("error", pa.string()),
                ("note", pa.string()),
            ]
        )
        rows = [self._rows[image] for image in sorted(self._rows)]
        with atomic_path(self._file) as target, pq.ParquetWriter(target, schema) as writer:
            for start in range(0, len(rows), _ROWS):
                filled = [json.loads(row) for row in rows[start : start + _ROWS]]
                for row in filled:
                    for key in ("image", "name", "error"):
                        if key in row:  # names of files need not be text
                            row[key] = row[key].encode("utf-8", "backslashreplace").decode()
                    if "error" not in row:
                        row["shares"] = dict.fromkeys(classes, 0.0) | row["shares"]
                writer.write_table(pa.Table.from_pylist(filled, schema))
        self._journal.unlink()


def _journal_rows(path: Path) -> Iterator[str]:
    """Whole lines of a journal; a killed process may leave a part of one."""
    if path.is_file():
        for line in read_input_text(path).splitlines():
            with contextlib.suppress(*MALFORMED):
                json.loads(line)["image"]
                yield line


def _stored_rows(path: Path) -> Iterator[str]:
    """Rows of a table as lines of JSON.

    Raises:
        DataError: a file of that name that is no table of this module.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return
    with open_input(path) as stream:
        try:
            table = pq.ParquetFile(stream)
            if set(table.schema_arrow.names) != set(_COLUMNS):
                raise ValueError(f"its columns are {', '.join(table.schema_arrow.names)}")
            for batch in table.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    kept = {key: value for key, value in row.items() if value is not None}
                    if "shares" in kept:
                        kept["shares"] = {k: v for k, v in kept["shares"].items() if v}
                    yield json.dumps(kept)
        except (pa.ArrowException, *MALFORMED) as error:
            raise DataError(
                path,
                found=f"a file that is no table of predictions ({error})",
                expected="none of this name, or one that this command wrote",
                remedy="move it away, or choose another folder",
            ) from error
