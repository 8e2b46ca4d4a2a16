"""Settings that fit the machine and the data: `train.batch_size=auto`, `cgrseg train --auto`.

Memory and time of an optimizer step are measured with real steps on random images.  The rules of
:func:`plan_training` are ours; each writes its reason into the config file.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cgrseg.addresses import local_folder
from cgrseg.class_names import CLASS_LIST, listed
from cgrseg.config.loading import load_config
from cgrseg.config.presets import DATASETS, config_file, preset_name
from cgrseg.config.schema import Config
from cgrseg.config.settings import build, merge, parse_overrides
from cgrseg.cpus import usable_cpus
from cgrseg.data.check import check_dataset, proposed_settings
from cgrseg.data.check.report import CheckReport, SplitSummary
from cgrseg.data.convert import convert_rgb_masks
from cgrseg.data.convert.formats.rgb import list_colors
from cgrseg.data.dataset import EvalDataset, TrainDataset, with_measurements
from cgrseg.data.file_index import cut_suffix, visible_files
from cgrseg.data.folder_layout import IMAGE_SUFFIXES
from cgrseg.data.folder_survey import READING, NeedsSettings
from cgrseg.data.guess import guess_dataset
from cgrseg.data.resolve import resolve_spec
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.devices import (
    Placement,
    find_placement,
    keeping_all_freed_memory,
    return_freed_memory,
)
from cgrseg.errors import ConfigError, hidden_secrets
from cgrseg.evaluation.loop import evaluate_model
from cgrseg.files import atomic_write_text
from cgrseg.precision import choose_precision, dtype_of
from cgrseg.progress import Progress, format_seconds
from cgrseg.surroundings import available_memory, is_out_of_memory, memory_from_now, peak_memory
from cgrseg.training.distillation import Teacher
from cgrseg.training.failures import loader_memory, out_of_memory, refuse_single_value
from cgrseg.training.initial_weights import NoImageNetWeights, locate_initial_weights
from cgrseg.training.module import TrainingModule, build_model
from cgrseg.variants import NETWORK_STRIDE

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
        memory: bytes of network, optimizer and step; on a CPU also those of the data loader; 0
            where they were not measured.
        fixed: bytes of these that do not depend on the batch size.
    """

    images: int
    seconds: float
    memory: int
    fixed: int

    def memory_for(self, images: int) -> int:
        """Bytes that suffice for a step with more images; fewer are needed per image then."""
        return self.fixed + max(0, self.memory - self.fixed) * images // self.images

    def __str__(self) -> str:
        memory = f" and {self.memory / 2**30:.1f} GiB" if self.memory else ""
        return f"{self.seconds:.2g} s{memory} for {self.images} images"


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
    budget = memory_budget(placement)
    if budget is None or placement.world_size > 1:
        found = f"auto for {placement.world_size} processes"
        if budget is None:
            found = f"auto on {placement.kind}, whose free memory is not known here"
        raise ConfigError(
            "train.batch_size",
            found=found,
            expected="one process on an NVIDIA GPU, or on a CPU under Linux",
            remedy="give a number, for example train.batch_size=8; for several GPUs, the one that "
            "a run of one process prints",
        )
    most = _power_of_two(LARGEST_STEP // config.train.accumulate)
    images, costs = largest_batch(config, spec, placement, most, budget)
    say(
        f"train.batch_size=auto: {images} images, of at most {LARGEST_STEP} per optimizer step "
        f"(measured: {costs[-1]}; {budget / 2**30:.1f} GiB may be used)"
    )
    return build(merge(config.model_dump(), {"train.batch_size": images}))


def largest_batch(
    config: Config, spec: DatasetSpec, placement: Placement, most: int, budget: float | None
) -> tuple[int, list[StepCost]]:
    """The largest batch size whose step fits into memory, and what was measured.

    A GPU runs every batch size up to it, a CPU up to 4 images: larger ones are taken to need as
    much per image.

    Args:
        config: config of the run; its batch size does not matter.
        spec: classes of the dataset.
        placement: device.
        most: largest batch size, a power of two.
        budget: bytes that a step may take; None: unknown, so memory is not measured.

    Raises:
        ConfigError: batches of one image whose crops are too small for batch norm.
        EnvironmentProblem: not even two images fit.
    """
    measured = min(most, _MEASURED_ON_CPU) if placement.kind == "cpu" else most
    least = build(merge(config.model_dump(), {"train.batch_size": min(_FIRST, most)}))
    refuse_single_value(least)
    costs = _measure_steps(config, spec, placement, measured, budget)
    if not costs:
        room = "a step failed" if budget is None else f"{budget / 2**30:,.1f} GiB may be used"
        raise out_of_memory(least, placement.description, MemoryError(room))
    images = costs[-1].images
    while measured <= images < most and _fits(costs[-1], 2 * images, budget):
        images *= 2
    return images, costs


def _fits(cost: StepCost, images: int, budget: float | None) -> bool:
    return budget is None or cost.memory_for(images) <= budget


def memory_budget(placement: Placement) -> int | None:
    """Bytes that an optimizer step may take; None: the free memory is not known here."""
    free: int | None = None
    if placement.kind == "cuda":
        free, _ = torch.cuda.mem_get_info(placement.torch_device)
    elif placement.kind == "cpu":
        free = available_memory()
    return None if free is None else int(free * _SHARE[placement.kind])


def _measure_steps(
    config: Config, spec: DatasetSpec, placement: Placement, most: int, budget: float | None
) -> list[StepCost]:
    """Costs of steps with 2, 4, ... images, up to `most` and to what fits into the budget."""
    device = placement.torch_device
    on_gpu = device.type == "cuda"
    kept = contextlib.nullcontext() if on_gpu else keeping_all_freed_memory()
    costs: list[StepCost] = []
    with torch.random.fork_rng([device] if on_gpu else []), kept:
        before = 0 if budget is None else _memory_in_use(device)
        step = _RandomStep(config, spec, device)
        images = min(_FIRST, most)
        while images <= most and (not costs or _fits(costs[-1], images, budget)):
            try:
                seconds = step.run(images)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                break
            memory = 0
            if on_gpu:
                memory = torch.cuda.max_memory_reserved(device) - before
            elif budget is not None:
                memory = peak_memory() - before + loader_memory(config, images)
            cost = StepCost(images, seconds, memory, step.fixed_memory)
            if not _fits(cost, images, budget):
                break
            costs.append(cost)
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
        teacher = None if config.train.teacher is None else Teacher(config, spec)
        module = TrainingModule(model.to(self.dtype), config, self.classes, teacher=teacher)
        self.module = module.to(device)
        self.module.on_fit_start()
        self.optimizer: Any = self.module.configure_optimizers()

    def run(self, images: int) -> float:
        """Run two steps and return the seconds of the second one."""
        seconds, (_, height, width) = 0.0, self.shape
        image = torch.rand(images, *self.shape, dtype=self.dtype)
        # Nine blocks: an image of a dataset holds a few classes, and losses cost time for each.
        label = torch.randint(self.classes, (images, 3, 3))
        rows, columns = torch.arange(height) * 3 // height, torch.arange(width) * 3 // width
        label = label[:, rows[:, None], columns]  # (N, H, W)
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
            elif self.device.type == "mps":
                torch.mps.synchronize()
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


# ---- A config for a dataset --------------------------------------------------------------------

_GIVEN = "given on the command line"
_SIDE = 512  # pixels; short side of the published recipe, and its crop
_CROP_ON_CPU = 256  # pixels; as in the preset of CamVid, which two cores train within an hour
_SMALLEST_CROP = 64  # pixels
_SEEN = 16  # pixels across an object: two cells of the logits
_MOST_COLORS = 32  # more are no classes, but smooth borders or instances
_RARE = 0.01  # share of the labeled pixels
_PASSES = 50  # over the images; 2,300 steps of 8 images on CamVid
_FEWEST, _MOST = 4_000, 2_560_000  # crops seen; the most is that of the published recipe
_STEPS = 2_000  # optimizer steps wanted before larger batches
_SMALLEST_STEP = 4  # images
_LONGEST = 12 * 3600  # seconds; one night
_EVALUATIONS, _EVALUATING = 10, 0.1  # number of evaluations; their largest share of the time


@dataclass
class Plan:
    """Settings of a training, each with its reason.

    Attributes:
        base: preset that the settings lie over.
        settings: value by dotted name.
        reasons: reason by dotted name.
        head: lines about data, machine and expected time.
    """

    base: str
    settings: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    head: list[str] = field(default_factory=list)

    @property
    def config(self) -> Config:
        """The preset with the settings."""
        return load_config(self.base, self.settings)

    @property
    def path(self) -> Path:
        """The config file, in the working directory."""
        return Path(f"{self.settings['name']}.py")

    @property
    def command(self) -> str:
        """The command that trains with the config file."""
        return shlex.join(["cgrseg", "train", str(self.path)])

    def choose(self, name: str, value: Any, reason: str) -> None:
        """Set a setting that was not given."""
        if name not in self.settings:
            self.settings[name] = value
        if self.reasons.get(name) != _GIVEN:
            self.reasons[name] = reason

    def write(self) -> Path:
        """Write the config file, and return its path.

        Raises:
            ConfigError: the file exists.
        """
        self.refuse_existing()
        order = [name for name in self.reasons if self.reasons[name] != _GIVEN]
        settings = {name: self.settings[name] for name in [*order, *self.settings]}
        atomic_write_text(
            self.path, config_file("\n".join(self.head), self.base, settings, self.reasons)
        )
        return self.path

    def refuse_existing(self) -> None:
        """Raise where the config file exists."""
        if os.path.lexists(self.path):
            raise ConfigError(
                self.path,
                found="there is such a config file; it is not overwritten",
                expected="a name without a file",
                remedy=f"train with it: {self.command}; or choose another name: "
                "name=NAME; or remove the file",
            )


def plan_training(
    folder: str,
    given: Mapping[str, Any],
    *,
    device: str = "auto",
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Plan:
    """Choose the settings of a training from its data and this machine.

    Args:
        folder: folder of a dataset.
        given: settings by dotted name, which are kept.
        device: as for :func:`cgrseg.train`.
        say: called with lines on what is being done.
        progress: called with the number of files checked and of all.

    Raises:
        CGRSegError: a folder that no settings read (the message names the conversion, where there
            is one), another folder as `data.root`, data that cannot be trained on, several
            processes, or a config file that exists.
    """
    placement = find_placement(device)
    if placement.world_size > 1:
        raise ConfigError(
            "cgrseg train --auto",
            found=f"{placement.world_size} processes",
            expected="one process, which writes the config file",
            remedy="write the file with `cgrseg train --auto FOLDER --write-only` in one process, "
            "then start several processes with the file",
        )
    root = str(given.get("data.root", folder))
    if Path(root).resolve() != Path(folder).resolve():
        raise ConfigError(
            "data.root",
            found=f"{hidden_secrets(root)}, beside the folder {hidden_secrets(folder)}",
            expected="one dataset folder",
            remedy="give the folder once, as in `cgrseg train --auto FOLDER`",
        )
    variant = given.get("model.name", "cgrseg_t")
    plan = Plan(preset_name(variant, DATASETS["custom"]), dict(given))
    plan.reasons = dict.fromkeys(given, _GIVEN)
    stem = local_folder(folder).resolve().name
    plan.choose("name", f"{variant.replace('_', '-')}_{stem}_auto", "name of run and run folder")
    plan.refuse_existing()
    report = _choose_data(plan, folder, say, progress)
    train = report.splits[plan.config.data.train_split]
    validation = report.splits.get(plan.config.data.eval_split)
    plan.choose("model.name", variant, "the smallest variant; cgrseg_b and cgrseg_l are slower")
    _choose_start(plan, say)
    _choose_sizes(plan, train, on_cpu=placement.kind == "cpu")
    _choose_balance(plan, report.classes, train)
    precision = choose_precision(placement.torch_device)
    plan.choose("train.precision", "auto", f"here {precision}")
    say("measuring steps of the network on this machine")
    images = validation.pairs if validation is not None else 0
    _choose_schedule(plan, placement, train.pairs, images)
    return plan


def _choose_data(
    plan: Plan, folder: str, say: Callable[[str], None], progress: Progress | None
) -> CheckReport:
    """The settings that read a folder, and the doctor's report with them."""
    root = folder
    dataset = "custom" if "data.classes" in plan.settings else ""
    reason = "by its class list and folders"
    if not dataset and "data.dataset" not in plan.settings:
        try:
            dataset = guess_dataset(folder).dataset
        except NeedsSettings as error:
            survey = error.survey
            if survey.conversions:
                root = _convert_colors(error, folder, plan.settings, say, progress)
            elif survey.reason or not survey.settings:
                raise
            dataset, reason = "custom", f"{survey.where}; the masks hold {survey.masks}"
            for name, value in parse_overrides(survey.settings).items():
                words = ": put the names of your classes here" if name == "data.classes" else ""
                plan.choose(name, value, f"the masks hold {survey.masks}{words}")
    plan.choose("data.dataset", dataset, reason)
    plan.choose("data.root", root, "the dataset")
    if root != folder:
        plan.settings["data.root"] = root
        plan.reasons["data.root"] = (
            f"made from {hidden_secrets(folder)}; class names: {CLASS_LIST} in it"
        )

    def check() -> CheckReport:
        config = plan.config
        return check_dataset(
            config.data,
            quick=True,
            evaluate=config.train.evaluate,
            test=config.preprocessing,
            progress=progress,
        )

    def fails_for(code: str) -> bool:
        return {finding.code for finding in report.of("error")} == {code}

    report = check()
    spec = resolve_spec(plan.config.data)
    if fails_for("split-missing") and spec.is_custom and "train" in spec.splits:
        layout, reason = (
            spec.splits["train"],
            "no validation split: some images are held out",
        )
        plan.choose("data.images", layout.images, reason)
        plan.choose("data.labels", layout.labels, reason)
        report = check()
    if fails_for("too-few-images"):
        plan.choose("data.val_fraction", 0.0, "the single image trains")
        plan.choose("train.evaluate", False, "no image is left to validate on")
        report = check()
    if not report.ok and plan.config.data.dataset == "custom":
        seen, found = proposed_settings(plan.config.data, report.classes)
        for name, value in parse_overrides(found).items():
            plan.choose(name, value, f"the masks hold {seen.masks if seen is not None else ''}")
        report = check() if found else report
    report.raise_for_errors()
    return report


def _convert_colors(
    error: NeedsSettings,
    folder: str,
    given: Mapping[str, Any],
    say: Callable[[str], None],
    progress: Progress | None,
) -> str:
    """Convert masks in color to class ids, and return the folder of these.

    The classes are named by their colors, in the order of these.

    Raises:
        NeedsSettings: `error`, where there are more colors than classes are likely, settings say
            how the masks are read, or the result would lie in the dataset.
        ConfigError: the folder of the result exists.
    """
    conversions, source = error.survey.conversions, local_folder(folder).resolve()
    out = Path(f"{source.name}_ids")
    if source in out.resolve().parents or any(name in given for name in READING):
        raise error
    if out.exists():
        raise ConfigError(
            out,
            found="there is such a folder; nothing is added to it",
            expected="a name without a folder, for the masks as class ids",
            remedy="remove or rename it, to convert the masks again; or, where it is complete, "
            f"train with it: {shlex.join(['cgrseg', 'train', '--auto', str(out)])}",
        )
    found = (list_colors(each.masks, suffix=each.suffix) for each in conversions)
    colors = sorted(set(itertools.chain.from_iterable(found)))
    if len(colors) > _MOST_COLORS:
        raise error
    say(f"the masks hold {len(colors)} colors: {out} gets them as class ids, named by their colors")
    names = {color: "color_{:02x}{:02x}{:02x}".format(*color) for color in colors}
    for part in conversions:
        made = convert_rgb_masks(
            *(part.images, part.masks, out),
            colors=names,
            split=part.split,
            mask_suffix=part.suffix,
            progress=progress,
        )
        cuts = (cut_suffix(name, IMAGE_SUFFIXES) for name, _ in visible_files(part.masks))
        masks = sum(cut is not None and cut[0].endswith(part.suffix) for cut in cuts)
        if made.written < masks:
            say(f"{made.written} of {masks} masks in {part.masks} were converted")
        if made.failures and part.images != part.masks:  # else each file is one, too
            say(f"left out: {listed([f'{each.file}: {each.message}' for each in made.failures])}")
    return str(out)


def _choose_start(plan: Plan, say: Callable[[str], None]) -> None:
    """Initial weights, and the learning rate for them."""
    config = plan.config
    reason = "ImageNet weights of the backbone, as in the published runs"
    try:
        locate_initial_weights(config, say)
        pretrained = config.model.pretrained
    except NoImageNetWeights as error:
        if "model.pretrained" in plan.settings:
            raise
        pretrained = None
        reason = (
            "random weights, because ImageNet's cannot be had here: "
            f"{str(error).partition(chr(10))[0].partition(': ')[2]}; with them, remove the rates "
            "below"
        )
    if config.train.load_from is not None:
        rate = DATASETS["finetune"].settings["optimizer"]["lr"]
        plan.choose("optimizer.lr", rate, "half the published rate, for trained weights")
        return
    plan.choose("model.pretrained", pretrained, reason)
    if pretrained is None:
        rates = DATASETS["camvid"].settings["optimizer"]
        for name, value in rates.items():
            plan.choose(f"optimizer.{name}", value, "for random weights, as in the CamVid preset")


def _choose_sizes(plan: Plan, train: SplitSummary, *, on_cpu: bool) -> None:
    """Scale and crop, from the sizes of images and of what is labeled in them."""
    height, width = train.median or (_SIDE, _SIDE)
    short, long = sorted((height, width))
    # Side of a square of the pixels that a class has in an image with it.
    sides = [
        math.sqrt(pixels / images)
        for pixels, images in zip(train.pixels, train.images, strict=True)
        if images
    ]
    smallest = min(sides, default=float(_SEEN))
    side, reason = short, "the size of the images"
    if short > _SIDE:
        needed = math.ceil(short * _SEEN / smallest)
        side = min(short, max(_SIDE, min(needed, 2 * _SIDE)))
        reason = f"short side {side} of {short} pixels: {_SIDE} is that of the published recipe"
        if side > _SIDE:
            reason += f", and the smallest class has some {smallest:.0f} pixels across"
    scale = (round(long * side / short), side)
    plan.choose("augment.scale", scale, f"{reason} (median of the training images)")
    scale = plan.config.augment.scale
    side = round(short * min(max(scale) / long, min(scale) / short))
    plan.choose("test.scale", scale, "as in training")
    most = _CROP_ON_CPU if on_cpu else _SIDE
    crop = min(most, max(_SMALLEST_CROP, side // NETWORK_STRIDE * NETWORK_STRIDE))
    reason = f"a multiple of {NETWORK_STRIDE} within the short side, {_SMALLEST_CROP} to {most}"
    reason += f" ({_SIDE} is published; on a CPU less, for its time)" if on_cpu else ""
    plan.choose("augment.crop_size", (crop, crop), reason)


def _choose_balance(plan: Plan, classes: tuple[str, ...], train: SplitSummary) -> None:
    """Weights and crops for rare classes."""
    total = sum(train.pixels)
    shares = {name: n / total for name, n in zip(classes, train.pixels, strict=True) if n}
    rare = sorted((share, name) for name, share in shares.items() if share < _RARE)
    if not rare:
        return
    shown = ", ".join(f"{name} {share:.2%}" for share, name in rare[:3])
    reason = f"classes below {_RARE:.0%} of the labeled pixels: {shown}"
    plan.choose("loss.class_weights", "auto", reason)
    plan.choose(
        "augment.rare_class_crops", 0.5, "half of the crops hold a class drawn from the image"
    )


def _choose_schedule(plan: Plan, placement: Placement, images: int, validated: int) -> None:
    """Batch, iterations, evaluations and workers, from the number of images and measured times."""
    # Counting class weights would read many labels, for nothing that is measured here.
    config = build(merge(plan.config.model_dump(), {"loss.class_weights": None}))
    config = with_measurements(config)
    spec, on_cpu = resolve_spec(config.data), placement.kind == "cpu"
    crops, aim = _PASSES * images, f"{_PASSES} passes over the training images"
    if not _FEWEST <= crops <= _MOST:
        bound = "fewest" if crops < _FEWEST else "most, those of the published recipe"
        crops = min(_MOST, max(_FEWEST, crops))
        aim = f"{crops:,} crops, the {bound}, in place of {_PASSES} passes"
    batch, last = _choose_batch(plan, config, spec, placement, crops, aim)
    per_step = batch * plan.config.train.accumulate
    reading, evaluating = _image_times(config, spec, placement, bool(validated))
    computing = last.seconds * per_step / last.images
    workers = min(4, usable_cpus(), 1 + int(reading * per_step / computing))
    reason = f"reading takes {reading:.2g} s per image, computing {computing / per_step:.2g} s"
    plan.choose("data.workers", workers, reason)
    workers = max(1, plan.config.data.loader_processes)
    # On a CPU, reading and computing share the cores.
    step = computing + reading * per_step / usable_cpus()
    if not on_cpu:
        step = max(computing, reading * per_step / workers)
    affordable, hours = int(_LONGEST / step * per_step), _LONGEST // 3600
    if affordable < crops:
        aim = f"what {hours} hours allow of {aim}"
        if affordable < _FEWEST:
            aim = f"{_FEWEST:,} crops, the fewest, though they take more than {hours} hours"
        crops = max(_FEWEST, affordable)
    plan.choose("schedule.max_iters", _round(crops / per_step), aim)
    iterations = plan.config.schedule.max_iters
    plan.choose("schedule.warmup_iters", min(1_500, iterations // 20), "a twentieth, at most 1,500")
    training, evaluation = iterations * step, validated * evaluating
    count = 0
    if plan.config.train.evaluate:
        affordable = int(_EVALUATING * training / evaluation) if evaluation else _EVALUATIONS
        interval = math.ceil(iterations / min(_EVALUATIONS, max(2, affordable)))
        count = math.ceil(iterations / interval)
        reason = (
            f"evaluations: {count}, of {validated} images and about {_duration(evaluation)} each"
        )
        plan.choose("train.eval_interval", interval, reason)
        count = math.ceil(iterations / plan.config.train.eval_interval)
    expected = _duration(training + count * evaluation)
    plan.head = [
        f"Settings for {plan.settings['data.root']} on this machine, by `cgrseg train --auto`.",
        f"Edit them, then: {plan.command}",
        "",
        f"data: {images} training and {validated} validation images, {spec.num_classes} classes",
        f"machine: {placement.description}; {last}, forward, backward and optimizer",
        f"expected time: {expected}",
    ]


def _choose_batch(
    plan: Plan, config: Config, spec: DatasetSpec, placement: Placement, crops: int, aim: str
) -> tuple[int, StepCost]:
    """Batch size and accumulation; returns the batch size and the largest step measured."""
    budget, accumulate = memory_budget(placement), config.train.accumulate
    if "train.batch_size" in plan.settings and config.train.batch_size != "auto":
        batch = config.train.images_per_batch
        most = _power_of_two(min(LARGEST_STEP, batch))
        # A given number is not limited: its steps are run for their time.
        limit = None if budget is None else math.inf
        return batch, largest_batch(config, spec, placement, most, limit)[1][-1]
    whole = _power_of_two(max(_SMALLEST_STEP, min(LARGEST_STEP, crops // _STEPS)))
    wanted = _power_of_two(whole // accumulate)
    most = min(wanted, _SMALLEST_STEP) if budget is None else wanted
    batch, costs = largest_batch(config, spec, placement, most, budget)
    reason = f"{wanted * accumulate} images per optimizer step"
    few = crops // (wanted * accumulate) < _STEPS
    reason += f"{', the fewest' if few else ''}: {aim} would be "
    reason += f"{'fewer than' if few else 'at least'} {_STEPS:,} steps"
    if budget is None:
        reason = f"at most {_SMALLEST_STEP}, because the free memory is not known here"
    elif batch < wanted:
        reason = f"the most that fits into memory of {wanted} wanted"
    if plan.settings.get("train.batch_size") == "auto":
        del plan.settings["train.batch_size"], plan.reasons["train.batch_size"]
    plan.choose("train.batch_size", batch, f"{reason}; measured: {costs[-1]}")
    if batch < wanted:
        images = f"{wanted * accumulate} images per optimizer step"
        plan.choose("train.accumulate", wanted // batch, images)
    return batch, costs[-1]


def _power_of_two(images: int) -> int:
    """The largest power of two up to a number, 1 or more."""
    return 1 << (max(1, images).bit_length() - 1)


def _duration(seconds: float) -> str:
    return format_seconds(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def _round(number: float) -> int:
    """A number with two significant digits, 1 or more."""
    digits = max(0, math.floor(math.log10(max(1.0, number))) - 1)
    return max(1, int(round(number, -digits)))


def _image_times(
    config: Config, spec: DatasetSpec, placement: Placement, validates: bool
) -> tuple[float, float]:
    """Seconds in which one process reads a training image, and in which an image is evaluated."""
    samples = TrainDataset.from_config(config)
    started, read = time.perf_counter(), 0
    for position in range(8):
        _ = samples[position, position * len(samples) // 8]
        read += 1
        if time.perf_counter() - started > 5:
            break
    reading = (time.perf_counter() - started) / read
    if not validates:
        return reading, 0.0
    with torch.random.fork_rng([placement.torch_device] if placement.kind == "cuda" else []):
        model = build_model(config, spec).to(placement.torch_device)
        started = time.perf_counter()
        evaluate_model(
            model,
            EvalDataset.from_config(config),
            config.preprocessing,
            ignore_index=spec.ignore_index,
            limit=2,
        )
    return reading, (time.perf_counter() - started) / 2
