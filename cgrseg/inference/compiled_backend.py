"""The folded network compiled for the machine that it runs on, once per input shape.

On a CPU: ahead of time (AOTInductor) with frozen weights, cached on disk, so that a restarted
program is fast from its first image.  On a GPU: `torch.compile`, which captures CUDA graphs.
Without a compiler the folded network runs uncompiled, with a warning.

Each exact input shape is compiled on its own.  Rounding sizes up to fewer shapes would change
what is predicted (the network averages whole rows and columns, padding included); sides are
multiples of 32 as it is, and a camera or a dataset has few of them.  Where there are many, a
shape is compiled only when it comes up again and again, up to a maximum number of shapes: the
others run uncompiled.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cgrseg.devices import keep_freed_memory, resolve_device
from cgrseg.errors import CGRSegError, EnvironmentProblem
from cgrseg.inference import compiled_cache
from cgrseg.inference.backends import Backend
from cgrseg.inference.compiled_cache import missing_compiler
from cgrseg.inference.fast.network import FastNetwork, fast_form
from cgrseg.models import CGRSeg
from cgrseg.models.digest import weights_digest
from cgrseg.precision import AnyPrecision

_LOG = logging.getLogger("cgrseg.inference")

Shape = tuple[int, int, int]
CHOOSING = threading.RLock()
"""One thread chooses and prepares the form of the network; the others wait for it."""
How = Literal["compiled", "loaded", "ready", "uncompiled"]


@dataclass(frozen=True)
class Preparation:
    """What was done to get ready for an input shape.

    Attributes:
        how: "compiled" now, "loaded" from disk, "ready" already, or "uncompiled": the folded
            network runs uncompiled.
        seconds: duration, warm-up included.
        reason: why it is not compiled; empty otherwise.
    """

    how: How
    seconds: float
    reason: str = ""


class CompiledBackend(Backend):
    """The folded network, compiled for the input shapes that come often.

    Args:
        model: trained; read, never changed.
        device: where to run; None: where the model is.
        precision: "fp32", "bf16", "fp16" or "auto" (bf16 where the device computes it in
            hardware, else fp32), of weights and features; logits come in float32.
        folder: cache of compiled networks; None: :func:`compiled_cache.default_folder`.
        compile_after: number of images of a size after which it is compiled; until then the
            folded network runs uncompiled.  Cached ones are used from the first image.  0: only
            what :meth:`prepare` is called for.
        most_sizes: maximum number of sizes that are compiled or loaded unasked; later sizes run
            uncompiled, and :meth:`prepare` replaces the one used longest ago.  Each holds its
            own copy of the weights.
        keep_memory: let the C library keep freed memory for the next image (Linux, whole
            process; see :func:`~cgrseg.devices.keep_freed_memory`).

    Raises:
        ConfigError: unknown precision.
        EnvironmentProblem: no such device.
    """

    compiled = True
    side_by_side = True

    def __init__(
        self,
        model: CGRSeg,
        device: str | torch.device | None = None,
        precision: AnyPrecision = "fp32",
        *,
        folder: Path | str | None = None,
        compile_after: int = 4,
        most_sizes: int = 6,
        keep_memory: bool = True,
    ) -> None:
        home = next(model.parameters()).device
        self.device = home if device is None else resolve_device(device)
        self.num_classes, self.in_channels = model.num_classes, model.in_channels
        self.use_precision(precision)
        self.compile_after = compile_after
        self.most_sizes = most_sizes
        self.folder = Path(folder) if folder is not None else compiled_cache.default_folder()
        self._network: FastNetwork = fast_form(model, precision=self.precision).to(self.device)
        self._weights = weights_digest(model)
        self._runners: OrderedDict[Shape, Callable[[Tensor], Tensor]] = OrderedDict()
        self._seen: Counter[Shape] = Counter()
        self._refused: dict[Shape, str] = {}
        self._warned_of_many_sizes = False
        self._keep_memory = keep_memory
        if keep_memory and self.device.type == "cpu":
            keep_freed_memory()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{height}x{width}" for _, height, width in self._runners) or "none yet"
        return (
            f"CompiledBackend({self._network.variant}, {self.device}, {self.precision}, "
            f"compiled sizes: {sizes})"
        )

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code stays behind: on a CPU the cache on disk has it.
        return {**super().__getstate__(), "_runners": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._keep_memory and self.device.type == "cpu":
            keep_freed_memory()

    def digest(self) -> str:
        """SHA-256 of the weights of the network as it was given, before it was folded."""
        return self._weights

    def prepare(
        self, height: int, width: int, batch: int = 1, *, warm_up: bool = True
    ) -> Preparation:
        """Get ready for an input shape, so that no later image waits.

        Args:
            height: height of the network's input, a multiple of 32.
            width: width of the network's input, a multiple of 32.
            batch: number of images per batch.
            warm_up: run it as well, since first runs are slower.

        Returns:
            What was done; without a compiler it has the reason, as does the log.
        """
        shape = (batch, height, width)
        start = time.perf_counter()
        if shape in self._runners:
            return Preparation("ready", 0.0)
        example = torch.zeros(batch, self.in_channels, height, width, device=self.device)
        example = example.to(memory_format=torch.channels_last)
        how: How = "uncompiled"
        if shape not in self._refused:
            try:
                runner, how = self._obtain(shape, example)
                if warm_up or self.device.type == "cuda":  # where the first call compiles
                    with torch.inference_mode():
                        for _ in range(3):  # CUDA graphs are captured at the second call
                            runner(example)
                self._runners[shape] = runner
                if len(self._runners) > max(1, self.most_sizes):
                    self._runners.popitem(last=False)
            except Exception as error:  # compilers raise anything; the network runs uncompiled
                how = "uncompiled"
                self._refuse(shape, error)
        if how == "uncompiled" and warm_up:
            with torch.inference_mode():
                self._network(example)
        seconds = time.perf_counter() - start
        self.seconds_preparing += seconds
        return Preparation(how, seconds, self._refused.get(shape, ""))

    def logits(self, batch: Tensor) -> Tensor:
        """See :class:`~cgrseg.inference.backends.Backend`."""
        images, _, height, width = batch.shape
        batch = batch.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode():
            with CHOOSING:
                runner = self._runner((images, height, width))
            if runner is not None:
                return runner(batch)
            if images > 1 and self.device.type == "cpu":
                # On a CPU a batch is no faster than its images one after another.
                with CHOOSING:
                    single = self._runner((1, height, width))
                if single is not None:
                    return torch.cat([single(image) for image in batch.split(1)])
            return self._network(batch)

    def _runner(self, shape: Shape) -> Callable[[Tensor], Tensor] | None:
        """The compiled network of a shape, or None as long as it is not worth having."""
        runner = self._runners.get(shape)
        if runner is not None:
            self._runners.move_to_end(shape)
            return runner
        on_cpu = self.device.type == "cpu"
        if shape in self._refused or not self.compile_after or (on_cpu and shape[0] > 1):
            return None
        self._seen[shape] += 1
        often = self._seen[shape] >= self.compile_after
        if often or (on_cpu and self._seen[shape] == 1 and compiled_cache.find(self._path(shape))):
            if len(self._runners) < self.most_sizes:
                self.prepare(shape[1], shape[2], shape[0])
            elif not self._warned_of_many_sizes:
                self._warned_of_many_sizes = True
                _LOG.warning(
                    "images come in more than %d sizes: %dx%d and others after it run uncompiled, "
                    "same results, about half as fast",
                    self.most_sizes,
                    shape[1],
                    shape[2],
                )
        return self._runners.get(shape)

    def _path(self, shape: Shape) -> Path:
        full = (shape[0], self.in_channels, shape[1], shape[2])
        return compiled_cache.target_path(
            self.folder, self._weights, self._network.variant, self.precision, full
        )

    def _obtain(self, shape: Shape, example: Tensor) -> tuple[Callable[[Tensor], Tensor], How]:
        """Load or compile; raises whatever goes wrong."""
        path = self._path(shape)
        on_cpu = self.device.type == "cpu"
        runner = cached_network(path) if on_cpu else None
        if runner is not None:
            return runner, "loaded"
        lacking = missing_compiler(self.device)
        if lacking:
            raise EnvironmentProblem(lacking)
        self._network.prepare(shape[1], shape[2])

        def log(message: str) -> None:
            _LOG.info(message, *shape)

        about_to_compile = "compiling the network for %d images of %dx%d, about a minute"
        if not on_cpu:
            log(about_to_compile)
            return _compile_for_gpu(self._network), "compiled"
        waiting = "another process compiles the network for %d images of %dx%d: waiting"
        with compiled_cache.compile_lock(path, lambda: log(waiting)):
            runner = cached_network(path)  # of the process that was waited for
            if runner is not None:
                return runner, "loaded"
            log(about_to_compile)
            compiled = compiled_cache.compile_to_file(self._network, example, path)
            return compiled_cache.load(compiled), "compiled"

    def _refuse(self, shape: Shape, error: Exception) -> None:
        first = str(error).strip().splitlines() or [type(error).__name__]
        known = isinstance(error, CGRSegError)
        reason = str(error) if known else f"compiling failed: {first[0]}"
        self._refused[shape] = reason
        _LOG.warning(
            "the network runs uncompiled at %dx%d, same results, about half as fast: %s",
            shape[1],
            shape[2],
            reason,
        )


def cached_network(path: Path) -> Callable[[Tensor], Tensor] | None:
    """The cached network if it is there and runs; one that does not is removed."""
    kept = compiled_cache.find(path)
    if kept is None:
        return None
    try:
        return compiled_cache.load(kept)
    except RuntimeError as error:
        _LOG.warning("%s", error)
        return None


def _compile_for_gpu(network: FastNetwork) -> Callable[[Tensor], Tensor]:
    """`torch.compile` with tuned kernels and CUDA graphs, one graph per input shape."""
    compiled = torch.compile(network, fullgraph=True, dynamic=False, mode="max-autotune")

    def run(batch: Tensor) -> Tensor:
        # A CUDA graph writes every result to the same memory: a later image would
        # overwrite logits that the caller still holds.
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(batch).clone()

    return run
