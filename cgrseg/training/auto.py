"""Settings that fit the machine and the data: `train.batch_size=auto`.

Memory and time of an optimizer step are measured with real steps on random images.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cgrseg.config.schema import Config
from cgrseg.config.settings import build, merge
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.devices import Placement, keeping_all_freed_memory, return_freed_memory
from cgrseg.errors import ConfigError
from cgrseg.precision import choose_precision, dtype_of
from cgrseg.surroundings import available_memory, is_out_of_memory, memory_from_now, peak_memory
from cgrseg.training.failures import loader_memory, out_of_memory
from cgrseg.training.module import TrainingModule, build_model

LARGEST_STEP = 16
"""Images per optimizer step of the published recipe, for which its learning rates were set."""

_FIRST = 2  # images; batch norm at the coarsest scale of a small crop needs two
_MEASURED_ON_CPU = 4  # images; larger batches are not run: their steps take too long
# Share of the free memory that a step may take.  On a CPU, decoded images, evaluations and other
# programs need the rest; on a GPU, libraries and fragmentation.
_SHARE = {"cpu": 0.8, "cuda": 0.9}


@dataclass(frozen=True)
class StepCost:
    """Cost of one optimizer step.

    Attributes:
        images: batch size.
        seconds: wall-clock time of the step alone, without reading images.
        memory: bytes of network, optimizer and step; on a CPU also those of the data loader.
        fixed: bytes of these that do not depend on the batch size.
    """

    images: int
    seconds: float
    memory: int
    fixed: int

    def memory_for(self, images: int) -> int:
        """Bytes that suffice for a step with more images; fewer are needed per image then."""
        return self.fixed + max(0, self.memory - self.fixed) * images // self.images


def settle_batch_size(
    config: Config, spec: DatasetSpec, placement: Placement, say: Callable[[str], None]
) -> Config:
    """Replace `train.batch_size=auto` by the largest power of two that fits into memory.

    Neither weights nor random numbers of the run are touched.

    Args:
        config: config of the run.
        spec: classes of the dataset.
        placement: device and processes.
        say: called with a line on what was measured.

    Raises:
        ConfigError: several processes, or a device or system whose free memory is not known.
        EnvironmentProblem: not even two images fit.
    """
    if config.train.batch_size != "auto":
        return config
    most = max(1, LARGEST_STEP // config.train.accumulate)
    images, costs = largest_batch(config, spec, placement, 1 << (most.bit_length() - 1))
    last = costs[-1]
    say(
        f"train.batch_size=auto: {images} images, of at most {LARGEST_STEP} per optimizer step "
        f"(measured: {last.memory / 2**30:.1f} GiB and {last.seconds:.2g} s for {last.images}; "
        f"{memory_budget(placement) / 2**30:.1f} GiB may be used)"
    )
    return build(merge(config.model_dump(), {"train.batch_size": images}))


def largest_batch(
    config: Config, spec: DatasetSpec, placement: Placement, most: int
) -> tuple[int, list[StepCost]]:
    """The largest batch size whose step fits into memory, and what was measured.

    A GPU runs every batch size up to it, a CPU up to 4 images: larger ones are taken to need as
    much per image.

    Args:
        config: config of the run; its batch size does not matter.
        spec: classes of the dataset.
        placement: device.
        most: largest batch size, a power of two.

    Raises:
        ConfigError, EnvironmentProblem: as :func:`settle_batch_size`.
    """
    budget = memory_budget(placement)
    measured = min(most, _MEASURED_ON_CPU) if placement.kind == "cpu" else most
    costs = _measure_steps(config, spec, placement, measured, budget)
    if not costs:
        least = build(merge(config.model_dump(), {"train.batch_size": min(_FIRST, most)}))
        short = MemoryError(f"{budget / 2**30:,.1f} GiB may be used")
        raise out_of_memory(least, placement.description, short)
    images = costs[-1].images
    while measured <= images < most and costs[-1].memory_for(2 * images) <= budget:
        images *= 2
    return images, costs


def memory_budget(placement: Placement) -> int:
    """Bytes that an optimizer step may take.

    Raises:
        ConfigError: several processes, or a device or system whose free memory is not known.
    """
    free: int | None = None
    if placement.kind == "cuda":
        free, _ = torch.cuda.mem_get_info(placement.torch_device)
    elif placement.kind == "cpu":
        free = available_memory()
    if free is None or placement.world_size > 1:
        found = f"auto for {placement.world_size} processes"
        if free is None:
            found = f"auto on {placement.kind}, whose free memory is not known here"
        raise ConfigError(
            "train.batch_size",
            found=found,
            expected="one process on an NVIDIA GPU, or on a CPU under Linux",
            remedy="give a number, for example train.batch_size=8; for several GPUs, the one that "
            "a run of one process prints",
        )
    return int(free * _SHARE[placement.kind])


def _measure_steps(
    config: Config, spec: DatasetSpec, placement: Placement, most: int, budget: int
) -> list[StepCost]:
    """Costs of steps with 2, 4, ... images, up to `most` and to what fits into the budget."""
    device = placement.torch_device
    on_gpu = device.type == "cuda"
    kept = contextlib.nullcontext() if on_gpu else keeping_all_freed_memory()
    costs: list[StepCost] = []
    with torch.random.fork_rng([device] if on_gpu else []), kept:
        before = _memory_in_use(device)
        step = _RandomStep(config, spec, device)
        images = min(_FIRST, most)
        while images <= most and (not costs or costs[-1].memory_for(images) <= budget):
            try:
                seconds = step.run(images)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                break
            if on_gpu:
                memory = torch.cuda.max_memory_reserved(device) - before
            else:
                memory = peak_memory() - before + loader_memory(config, images)
            if memory > budget:
                break
            costs.append(StepCost(images, seconds, memory, step.fixed_memory))
            images *= 2
        del step
        gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return costs


def _memory_in_use(device: torch.device) -> int:
    """Bytes in use; the peak starts anew here."""
    gc.collect()
    if device.type != "cuda":
        return_freed_memory()
        return memory_from_now()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_reserved(device)


class _RandomStep:
    """Optimizer steps of the network of a run on random images.

    `torch.compile` is left out: it takes minutes for each batch size, and no more memory.
    """

    def __init__(self, config: Config, spec: DatasetSpec, device: torch.device) -> None:
        self.precision = config.train.precision
        if self.precision == "auto":
            self.precision = choose_precision(device).precision
        changes = {"train.compile": False, "train.precision": self.precision}
        config = build(merge(config.model_dump(), changes))
        model = build_model(config, spec)
        self.shape = (model.in_channels, *config.augment.crop_size)
        self.dtype = torch.float64 if self.precision == "fp64" else torch.float32
        self.classes, self.device = spec.num_classes, device
        self.module = TrainingModule(model.to(self.dtype), config, self.classes).to(device)
        self.module.on_fit_start()
        self.optimizer: Any = self.module.configure_optimizers()

    def run(self, images: int) -> float:
        """Run two steps and return the seconds of the second one."""
        seconds, (_, height, width) = 0.0, self.shape
        image = torch.rand(images, *self.shape, dtype=self.dtype)
        label = torch.randint(self.classes, (images, height, width))
        batch = {"image": image, "label": label}
        batch = self.module.transfer_batch_to_device(batch, self.device, 0)
        for _ in range(2):
            started = time.perf_counter()
            with self._autocast():
                loss = self.module.training_step(batch, 0)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - started
        return seconds

    @property
    def fixed_memory(self) -> int:
        """Bytes of weights, gradients and optimizer state."""
        moments = [each for state in self.optimizer.state.values() for each in state.values()]
        tensors = [*self.module.parameters(), *self.module.parameters(), *moments]
        return sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "bf16" or self.precision == "fp16":
            return torch.autocast(self.device.type, dtype_of(self.precision))
        return contextlib.nullcontext()
