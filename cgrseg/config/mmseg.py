"""Configs of mmsegmentation: the preset that one corresponds to, and the settings that differ.

:mod:`cgrseg.config.mmseg_reader` reads the file.  Names with equal meaning and unit are those of
:data:`cgrseg.config.suggestions.EXACT`; this module holds what needs a conversion.  A setting of
the file that is neither translated nor equal to what this package always does is listed.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from cgrseg.config.mmseg_reader import Tree, is_mmseg_file, read_mmseg
from cgrseg.config.presets import DATASETS, config_file, named_preset, preset, preset_name
from cgrseg.config.schema import Config
from cgrseg.config.settings import build, merge
from cgrseg.config.suggestions import EXACT
from cgrseg.datasets import get_spec
from cgrseg.errors import MALFORMED, ConfigError
from cgrseg.variants import IMAGENET, VARIANTS, variant_sizes

_SAME_PLACE = {
    "train_dataloader.dataset.": "data.train.",
    "val_dataloader.dataset.": "data.val.",
    "test_dataloader.dataset.": "data.test.",
    "optim_wrapper.paramwise_cfg.": "optimizer.paramwise_cfg.",
    "optim_wrapper.optimizer.": "optimizer.",
    "model.decode_head.loss_decode.0.": "model.decode_head.loss_decode.",
}
"""Prefix of a name in 1.x to the prefix in 0.x."""

# What this package always does: other values have no counterpart.
_FIXED: dict[str, tuple[Any, ...]] = {
    "model.type": ("EncoderDecoder",),
    "model.decode_head.in_index": ([1, 2, 3],),
    "model.decode_head.is_dw": (True,),
    "model.decode_head.square_kernel_size": (3,),
    "model.decode_head.ratio": (1,),
    "model.decode_head.module": ("RCA",),
    "model.decode_head.align_corners": (False,),
    "model.decode_head.norm_cfg.requires_grad": (True,),
    "model.decode_head.loss_decode.type": ("CrossEntropyLoss",),
    "model.decode_head.loss_decode.use_sigmoid": (False,),
    "model.decode_head.loss_decode.loss_weight": (1.0,),
    "model.decode_head.sampler.type": ("OHEMPixelSampler",),
    "model.backbone.style": ("pytorch",),
    "model.backbone.init_cfg.type": ("Pretrained",),
    "model.data_preprocessor.mean": ([123.675, 116.28, 103.53],),
    "model.data_preprocessor.std": ([58.395, 57.12, 57.375],),
    "model.data_preprocessor.bgr_to_rgb": (True,),
    "model.data_preprocessor.pad_val": (0,),
    "model.data_preprocessor.seg_pad_val": (255,),
    "model.data_preprocessor.type": ("SegDataPreProcessor",),
    "optimizer.type": ("AdamW",),
    "optimizer.eps": (1e-8,),
    "optimizer.paramwise_cfg.custom_keys.norm.decay_mult": (0.0,),
    # EfficientFormerV2 has no parameter of these names.
    "optimizer.paramwise_cfg.custom_keys.absolute_pos_embed.decay_mult": (0.0,),
    "optimizer.paramwise_cfg.custom_keys.pos_block.decay_mult": (0.0,),
    "optim_wrapper.type": ("OptimWrapper", "AmpOptimWrapper"),
    "optim_wrapper.clip_grad": (None,),
    "optimizer_config.grad_clip": (None,),
    "optim_wrapper.clip_grad.norm_type": (2,),
    "optimizer_config.grad_clip.norm_type": (2,),
    "lr_config.policy": ("poly",),
    "lr_config.by_epoch": (False,),
    "lr_config.min_lr": (0.0,),
    "runner.type": ("IterBasedRunner",),
    "train_cfg.type": ("IterBasedTrainLoop",),
    "evaluation.metric": ("mIoU", ["mIoU"]),
    "val_evaluator.iou_metrics": (["mIoU"],),
    "test_evaluator.iou_metrics": (["mIoU"],),
    "val_dataloader.batch_size": (1,),
    "test_dataloader.batch_size": (1,),
}

# Without an effect on what is learned or measured, or about mmsegmentation's own machinery.
_SILENT = (
    *("*_", "log_level", "default_scope", "env_cfg.*", "dist_params.*", "visualizer*", "workflow*"),
    *("vis_backends*", "log_processor.*", "cudnn_benchmark", "find_unused_parameters", "launcher"),
    *("device", "gpu_ids*", "model.train_cfg*", "val_cfg.*", "test_cfg.type", "log_config.hooks*"),
    *("*.persistent_workers", "*_dataloader.sampler*", "val_dataloader.*", "test_dataloader.*"),
    *("default_hooks.*.type", "default_hooks.*.by_epoch", "default_hooks.logger.*", "tta_model*"),
    *("checkpoint_config.by_epoch", "checkpoint_config.meta*", "evaluation.pre_eval", "mp_*"),
    *("evaluation.by_epoch", "evaluation.type", "*_evaluator.type", "auto_scale_lr*", "log_config"),
    *("data.*.type", "data.val.*", "data.*.ignore_index", "data.*.test_mode", "data.*.lazy_init"),
    *("optimizer_config.type", "opencv_num_threads", "*.by_epoch"),
    *("*.Load*", "*.DefaultFormatBundle", "*.Collect*", "*.PackSegInputs*", "*.ImageToTensor*"),
    *("*.backend_args", "*.file_client_args", "data.*_dataloader.*"),
    *("data.test.pipeline.RandomFlip*", "data.test.pipeline.TestTimeAug*", "tta_pipeline*"),
    *("optim_wrapper.loss_scale", "fp16.*", "custom_imports*", "*.data_preprocessor.size*"),
)  # fmt: skip

_SECTIONS = (
    *("model", "data", "optimizer", "optimizer_config", "lr_config", "runner", "evaluation"),
    *("checkpoint_config", "log_config", "load_from", "resume_from", "work_dir", "fp16", "seed"),
    *("deterministic", "custom_hooks", "train_cfg", "test_cfg", "train_dataloader", "resume"),
    *("val_dataloader", "test_dataloader", "val_evaluator", "test_evaluator", "optim_wrapper"),
    *("default_hooks", "randomness", "tta_pipeline", "auto_resume", "find_unused_parameters"),
)
"""Names that mmsegmentation reads; others are variables of the file."""

_DATASETS = {
    "ADE20KDataset": "ade20k",
    "PascalContextDataset59": "pascal_context59",
    "PascalContextDataset": "pascal_context60",
    "CityscapesDataset": "cityscapes",
    "PascalVOCDataset": "voc2012",
}
_PHOTOMETRIC = {
    "brightness_delta": "brightness",
    "contrast_range": "contrast",
    "saturation_range": "saturation",
    "hue_delta": "hue",
}
_NOT_STRUCTURE = (
    "model.data_preprocessor",
    *(f"model.decode_head.{key}" for key in ("num_classes", "ignore_index", "sampler")),
    "model.decode_head.loss_decode",
)
"""Settings of any network that say how it is trained, not how it is built."""
_IMAGENET_FILE = re.compile(r"(?:.*/)?eformer_(?:s1|s2|l)_450\.pth")


@dataclass
class Translation:
    """A config of mmsegmentation in terms of this package.

    Attributes:
        source: the file.
        version: '0.x' or '1.x'.
        network: name of a network that is not CGRSeg; None: CGRSeg.
        preset: name of the preset that the file corresponds to.
        base: arguments of :func:`cgrseg.config.preset`: variant and dataset.
        changes: dotted setting to the value that differs from the preset.
        origins: dotted setting to its name in the file.
        without_counterpart: settings of the file that this package does not have, with the reason.
        assumed: assumptions, in words.
    """

    source: Path
    version: str
    network: str | None
    preset: str
    base: tuple[str, str]
    changes: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    without_counterpart: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    @property
    def config(self) -> Config:
        """The preset with the differences."""
        return build(merge(preset(*self.base).model_dump(), self.changes))

    def overrides(self) -> str:
        """Preset and differences as words of a command."""
        words = [f"{key}={json.dumps(value)}" for key, value in self.changes.items()]
        return " ".join([self.preset, *map(shlex.quote, words)])

    def python(self) -> str:
        """A config file of this package."""
        stem = self.source.stem
        changes = self.changes if named_preset(stem) is not None else {"name": stem, **self.changes}
        head = f"Translated from {self.source.name!r}, a config of mmsegmentation {self.version}."
        return config_file(head, self.preset, changes)

    def notes(self) -> list[str]:
        """What is translated, what has no counterpart and what is assumed, as lines."""
        lines = []
        if self.network is not None:
            lines.append(
                f"the network {self.network} is not one of this package: data, schedule and test "
                f"settings are translated for {self.base[0]}"
            )
        count = len(self.changes)
        lines.append(
            f"corresponds to the preset {self.preset}, "
            + ("no differences" if not count else f"{count} difference{'s' * (count > 1)}:")
        )
        plain = preset(*self.base)
        for key, value in self.changes.items():
            lines.append(
                f"  {key} = {json.dumps(value)} (preset: {json.dumps(_look_up(plain, key))}; "
                f"{self.origins[key]} in the file)"
            )
        for title, entries in (
            ("without a counterpart:", self.without_counterpart),
            ("assumed:", self.assumed),
        ):
            lines += [title, *(f"  {entry}" for entry in entries)] if entries else []
        return lines


def refuse(path: Path) -> ConfigError:
    """Error for a config of mmsegmentation where a config of this package is needed."""
    found = translate(path)
    return ConfigError(
        path,
        found=f"it is a config of mmsegmentation {found.version}; it "
        + "\n  ".join(found.notes()).removeprefix("it "),
        expected="a config of this package",
        remedy=f"cgrseg config translate {shlex.quote(str(path))} > translated.py, and give "
        f"translated.py; or give the preset and the differences themselves: {found.overrides()}",
    )


def translate(path: Path | str) -> Translation:
    """Translate a config of mmsegmentation 0.x or 1.x.

    Args:
        path: `.py`, `.json` or `.yaml` file.

    Raises:
        ConfigError: as :func:`cgrseg.config.mmseg_reader.read_mmseg`, and for a file of another
            form or with values of an unexpected type.
    """
    path = Path(path)
    tree = read_mmseg(path)
    if not is_mmseg_file(path):
        raise ConfigError(
            path,
            found="none of the names of a config of mmsegmentation, or a config of this package",
            expected="a .py, .json or .yaml file with names such as model, data and optimizer",
            remedy="check the path; cgrseg train takes configs of this package as they are",
        )
    try:
        return _Translator(path, tree).run()
    except MALFORMED as error:  # values of any type may stand where mmsegmentation has tables
        raise ConfigError(
            path,
            found=f"a value of an unexpected form ({type(error).__name__}: {error})",
            expected="the tables, lists and numbers of a config that mmsegmentation can run",
            remedy="correct it, or remove parts of the file until the value is found",
        ) from error


def _look_up(config: Config, name: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Settings by dotted name.

    Entries of a list of typed tables are named by their type, the second of a type `TYPE[2]`.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and value and all(map(_is_typed, value)):
        if path.endswith("loss_decode") and len(value) == 1:
            yield from _leaves(value[0], path)
            return
        seen: dict[str, int] = {}
        for entry in value:
            kind = str(entry["type"]).rpartition(".")[2]
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] > 1:
                kind += f"[{seen[kind]}]"
            yield f"{path}.{kind}", True
            rest = {key: inner for key, inner in entry.items() if key not in ("type", "transforms")}
            yield from _leaves(rest, f"{path}.{kind}")
            inner = entry.get("transforms")
            if kind == "MultiScaleFlipAug" and isinstance(inner, list):
                yield from _leaves(inner, path)
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def _is_typed(value: Any) -> bool:
    return isinstance(value, Mapping) and "type" in value


class _Translator:
    def __init__(self, path: Path, tree: Tree) -> None:
        self._path, self._tree = path, tree
        values = dict(tree.values)
        self._variables = {k: v for k, v in values.items() if k not in _SECTIONS}
        values = {k: v for k, v in values.items() if k in _SECTIONS}
        self._notes = list(tree.not_understood)
        self._settings: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._assumed = list(tree.assumed)
        scheduler = tree.values.get("param_scheduler")
        self._names: dict[str, str] = {}
        if scheduler is not None:
            values["lr_config"] = self._schedulers(scheduler)
        if "optim_wrapper" in values:  # a variable of the file in 1.x
            values.pop("optimizer", None)
        self._left: dict[str, Any] = {}
        for name, value in _leaves(_unwrapped(values), ""):
            for new, old in _SAME_PLACE.items():
                if name.startswith(new):
                    self._names[old + name.removeprefix(new)] = name
                    name = old + name.removeprefix(new)
            self._left[name] = value

    def run(self) -> Translation:
        start = self._variables.get("_preset_")
        dataset = self._dataset()
        network = self._network(start)
        variant = str(self._settings.pop("model.name"))
        if start is not None and dataset is None:
            base = next(
                (model, row)
                for model in VARIANTS
                for row, recipe in DATASETS.items()
                if start.removesuffix("_plus") == preset_name(model, recipe)
            )
        else:
            if dataset is None:
                dataset = "ade20k"
                self._assumed.append("the file names no dataset: ADE20K")
            known = dataset in DATASETS
            base = (variant, dataset if known else "ade20k")
            if not known:
                self._put("data.dataset", dataset, "dataset type")
                self._settings.setdefault("data.root", get_spec(dataset).default_root)
                self._origins.setdefault("data.root", "dataset type")
        self._list_epochs()
        # mmsegmentation 0.x reads `data.train_dataloader` over `data`, in any order of the file.
        exact = [name for name in self._left if name in EXACT]
        for name in sorted(exact, key=lambda name: name.startswith("data.train_dataloader.")):
            value = self._left.pop(name)
            if not (value is None and EXACT[name] in ("optimizer.clip_norm",)):
                self._put(EXACT[name], value, name)
        self._train_pipeline()
        self._test_pipeline()
        self._optimizer()
        self._run_settings(base[0])
        if "_max_iters_" in self._variables and "schedule.max_iters" not in self._settings:
            self._put("schedule.max_iters", self._variables["_max_iters_"], "_base_")
        made = Translation(
            self._path,
            self._tree.version,
            network,
            preset_name(base[0], DATASETS[base[1]]),
            base,
            assumed=self._assumed,
        )
        self._fixed(base[0])
        self._differences(made)
        made.without_counterpart = self._notes
        return made

    # -- helpers

    def _take(self, name: str, default: Any = None) -> Any:
        return self._left.pop(name, default)

    def _put(self, setting: str, value: Any, name: str) -> None:
        if value is None and setting not in ("train.load_from", "model.pretrained"):
            return
        self._settings[setting] = value
        self._origins[setting] = self._names.get(name, name)

    def _note(self, name: str, value: Any, why: str = "") -> None:
        text = json.dumps(value, default=str)
        text = text if len(text) <= 80 else text[:77] + "..."
        self._notes.append(f"{self._names.get(name, name)} = {text}" + (f": {why}" if why else ""))

    def _list_epochs(self) -> None:
        """List what the file counts in epochs: this package counts iterations."""
        get = self._left.get
        loop = (
            str(get("train_cfg.type", get("runner.type"))).startswith("Epoch")
            or get("train_cfg.by_epoch") is True
            or get("train_cfg.max_epochs", get("runner.max_epochs")) is not None
        )
        for name, epochs in {
            "runner.max_epochs": True,
            "train_cfg.max_epochs": True,
            "runner.max_iters": loop,
            "train_cfg.max_iters": loop,
            "train_cfg.val_interval": loop,
            "evaluation.interval": get("evaluation.by_epoch") or loop,
            "checkpoint_config.interval": get("checkpoint_config.by_epoch", loop),
            # The default of mmengine's CheckpointHook; the schedules of mmsegmentation say False.
            "default_hooks.checkpoint.interval": get(
                "default_hooks.checkpoint.by_epoch", not self._has_base_schedule()
            ),
            "lr_config.warmup_iters": get("lr_config.warmup_by_epoch"),
        }.items():
            if epochs and name in self._left:
                self._note(name, self._take(name), "counted in epochs; iterations here")
        self._take("lr_config.warmup_by_epoch")

    def _has_base_schedule(self) -> bool:
        """Whether a schedule of mmsegmentation that is not there holds what the file lacks."""
        return "_max_iters_" in self._variables or "_preset_" in self._variables

    # -- parts of the file

    def _network(self, start: str | None) -> str | None:
        kind = self._take("model.backbone.type")
        head = self._take("model.decode_head.type")
        whole = self._left.get("model.type")
        size = re.search(r"efficientformer_?v2_(s1|s2|l)(?:_|$)", str(kind).lower())
        backbone = f"efficientformerv2_{size[1]}" if size is not None else None
        ours = next((n for n, v in VARIANTS.items() if v.backbone == backbone), None)
        self._settings["model.name"] = ours or "cgrseg_t"
        self._has_backbone = ours is not None and "cgr" in str(head or "cgr").lower()
        if self._has_backbone:
            if "ssa" in str(head).lower():
                self._put("model.head", "ssa", "model.decode_head.type")
            return None
        if kind is None and head is None and whole in (None, "EncoderDecoder"):
            if start is None:
                self._assumed.append("the file names no network: cgrseg_t")
            return None
        for name in [n for n in self._left if n.startswith("model.") and "test_cfg" not in n]:
            if not name.startswith(_NOT_STRUCTURE):
                del self._left[name]
        parts = [str(part) for part in (kind, head) if part is not None]
        return " with ".join(parts) if parts else str(whole)

    def _dataset(self) -> str | None:
        kind = self._take("data.train.type", self._variables.get("dataset_type"))
        root = self._take("data.train.data_root", self._variables.get("data_root"))
        folders = {
            split: (
                self._take(
                    f"data.{split}.img_dir", self._take(f"data.{split}.data_prefix.img_path")
                ),
                self._take(
                    f"data.{split}.ann_dir", self._take(f"data.{split}.data_prefix.seg_map_path")
                ),
                self._take(f"data.{split}.split", self._take(f"data.{split}.ann_file")) or None,
            )
            for split in ("train", "val", "test")
        }
        if root is not None:
            self._put("data.root", str(root).rstrip("/") or "/", "data.train.data_root")
        for split in ("val", "test"):
            other = self._take(f"data.{split}.data_root", root)
            if root is not None and other != root:
                self._note(f"data.{split}.data_root", other, "one root for all splits here")
        if kind is None:
            return None
        kind = str(kind).rpartition(".")[2]
        name = _DATASETS.get(kind)
        if kind.startswith("COCOStuff"):
            said = f"{self._variables.get('_dataset_file_', '')} {root} {folders['train'][0]}"
            full = "2017" in said or "164k" in said
            name = "coco_stuff164k" if full else "coco_stuff10k"
            if not re.search(r"2017|164k|2014|10k", said):
                self._assumed.append(
                    "COCOStuffDataset without train2014 or train2017: the 10k edition"
                )
        if name is None:
            self._custom(folders)
            self._assumed.append(f"dataset {kind}: a custom dataset below data.root")
            return "custom"
        spec = get_spec(name)
        classes = self._take("model.decode_head.num_classes")
        if classes not in (None, len(spec.classes)):
            self._note(
                "model.decode_head.num_classes", classes, f"{spec.name} has {len(spec.classes)}"
            )
        layouts = {
            key: (layout.images, layout.labels, layout.list_file)
            for key, layout in spec.splits.items()
        }
        for split, found in folders.items():
            own = [layouts["train"]] if split == "train" else list(layouts.values())
            if not any(map(_names_folders, own, [found] * len(own))):
                self._note(
                    f"data.{split}", found, f"{spec.name} has {list(layouts.get(split, own[0]))}"
                )
        reduce = self._reduce_zero()
        ours = spec.label_rule.lookup[0] == spec.label_rule.ignore_index
        if reduce is not None and reduce != ours and name != "cityscapes":
            self._note("reduce_zero_label", reduce, f"{spec.name} has its own label rule")
        for key in ("img_suffix", "seg_map_suffix", "classes", "palette"):
            for split in folders:
                value = self._take(f"data.{split}.{key}")
                if value is not None and not key.endswith("suffix"):
                    self._note(f"data.{split}.{key}", value, f"those of {spec.name} are used")
        return name

    def _reduce_zero(self) -> bool | None:
        found = None
        for split in ("train", "val", "test"):
            for place in ("reduce_zero_label", "pipeline.LoadAnnotations.reduce_zero_label"):
                value = self._take(f"data.{split}.{place}")
                found = value if found is None else found
        return found

    def _custom(self, folders: Mapping[str, tuple[Any, Any, Any]]) -> None:
        """Folders, lists, classes and label rule of a dataset that is not in the catalogue."""
        train, val = folders["train"], folders["val"]
        names: tuple[str, str] | None = None
        for setting, mine, other in zip(("images", "labels"), train[:2], val[:2], strict=True):
            if not isinstance(mine, str) or not isinstance(other, str):
                if mine is not None:
                    self._note(f"data.train.{setting}", mine)
                continue
            ours, theirs = PurePosixPath(mine).parts, PurePosixPath(other).parts
            differing = [
                k for k, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]
            ]
            if not differing and len(ours) == len(theirs):
                self._put(f"data.{setting}", mine.rstrip("/"), f"data.train.{setting}")
                continue
            pair = (ours[differing[0]], theirs[differing[0]]) if differing else ("", "")
            if len(differing) != 1 or len(ours) != len(theirs) or names not in (None, pair):
                self._note(f"data.train.{setting}", [mine, other], "one pattern with {split} here")
                continue
            names = pair
            shape = "/".join("{split}" if k == differing[0] else p for k, p in enumerate(ours))
            self._put(f"data.{setting}", shape, f"data.train.{setting}")
        if names is not None:
            self._put("data.train_split", names[0], "data.train.img_dir")
            self._put("data.eval_split", names[1], "data.val.img_dir")
        elif train[2] and val[2]:
            self._put("data.split_lists", {"train": train[2], "val": val[2]}, "data.train.split")
        if self._reduce_zero():
            self._put("data.zero_is_ignore", True, "data.train.reduce_zero_label")
        for key in ("classes", "palette"):
            name = f"data.train.{key}"
            name = name if name in self._left else f"data.train.metainfo.{key}"
            value = self._take(name)
            if isinstance(value, list):
                self._put(f"data.{key}", value, name)
            elif value is not None:
                self._note(name, value, "give the list of names itself")
            for split in ("val", "test"):
                self._take(f"data.{split}.{key}")
                self._take(f"data.{split}.metainfo.{key}")
        for setting, name in (
            ("label_name", "data.train.seg_map_suffix"),
            ("image_name", "data.train.img_suffix"),
        ):
            extra = str(self._take(name) or "").rpartition(".")[0]
            if extra:
                self._put(f"data.{setting}", f"{{stem}}{extra}", name)
        for split in ("val", "test"):
            self._take(f"data.{split}.seg_map_suffix")
            self._take(f"data.{split}.img_suffix")
        count, classes = (
            self._take("model.decode_head.num_classes"),
            self._settings.get("data.classes"),
        )
        if count is not None and (classes is None or len(classes) != count):
            self._note(
                "model.decode_head.num_classes",
                count,
                "the class list decides: write that many names into classes.txt below data.root"
                if classes is None
                else f"the class list has {len(classes)} names",
            )

    def _train_pipeline(self) -> None:
        start = "data.train.pipeline."
        steps = list(
            dict.fromkeys(
                n.removeprefix(start).partition(".")[0] for n in self._left if n.startswith(start)
            )
        )
        if not steps:
            return
        resize = next((each for each in ("RandomResize", "Resize") if each in steps), None)
        self._take(f"{start}{resize}")
        if resize is not None:
            name = f"{start}{resize}.img_scale"
            if name not in self._left:
                name = f"{start}{resize}.scale"
            self._put("augment.scale", self._take(name), name)
            ratio = f"{start}{resize}.ratio_range"
            self._put("augment.ratio_range", self._take(ratio, [1.0, 1.0]), ratio)
            self._keep_ratio(f"{start}{resize}.keep_ratio")
        else:
            self._notes.append(
                "data.train.pipeline without Resize: here images are resized by augment.scale and "
                "augment.ratio_range"
            )
        crop, share = f"{start}RandomCrop.crop_size", f"{start}RandomCrop.cat_max_ratio"
        if self._take(f"{start}RandomCrop"):
            self._put("augment.crop_size", self._take(crop), crop)
            self._put("augment.max_class_share", self._take(share, 1.0), share)
        else:
            self._notes.append(
                "data.train.pipeline without RandomCrop: here windows of augment.crop_size are cut"
            )
        padded = self._take(f"{start}Pad.size")
        if padded is not None and padded != self._settings.get("augment.crop_size", padded):
            self._note(f"{start}Pad.size", padded, "padding is always to the crop size")
        for name, value in (("Pad.pad_val", 0), ("Pad.seg_pad_val", 255), ("Pad", True)):
            found = self._take(start + name, value)
            if found != value and not (name == "Pad.pad_val" and isinstance(found, Mapping)):
                self._note(start + name, found, f"always {value}")
        self._flips(start, [step for step in steps if step.partition("[")[0] == "RandomFlip"])
        distorted = self._take(f"{start}PhotoMetricDistortion")
        if not distorted:
            self._put("augment.photometric.probability", 0.0, f"{start}PhotoMetricDistortion")
        for key, ours in _PHOTOMETRIC.items():
            name = f"{start}PhotoMetricDistortion.{key}"
            self._put(f"augment.photometric.{ours}", self._take(name), name)
        self._normalize(start)

    def _normalize(self, start: str) -> None:
        self._take(f"{start}Normalize")
        for key, ours in (("mean", "mean"), ("std", "std"), ("to_rgb", "bgr_to_rgb")):
            value = self._take(f"{start}Normalize.{key}")
            if value is not None and value not in _FIXED[f"model.data_preprocessor.{ours}"]:
                self._note(f"{start}Normalize.{key}", value, "always that of ImageNet, in RGB")

    def _flips(self, start: str, steps: list[str]) -> None:
        made: dict[str, tuple[Any, str]] = {}
        for step in steps:
            names = (f"{start}{step}.prob", f"{start}{step}.flip_ratio", f"{start}{step}")
            name = next(name for name in names if name in self._left)
            chance = self._take(name)
            self._take(f"{start}{step}")
            direction = self._take(f"{start}{step}.direction", "horizontal")
            setting = {"horizontal": "augment.flip", "vertical": "augment.vertical_flip"}.get(
                str(direction)
            )
            if setting is None or setting in made or isinstance(chance, bool):
                self._note(name, [chance, direction])
            else:
                made[setting] = chance, name
        if made or not steps:
            made.setdefault("augment.flip", (0.0, f"{start}RandomFlip"))
        for setting, (chance, name) in made.items():
            self._put(setting, chance, name)

    def _keep_ratio(self, name: str) -> None:
        """List a resize that distorts: the default is False in mmcv 2 and True in mmcv 1."""
        reason = "the aspect ratio is always kept"
        if name not in self._left:
            reason += "; False is the default of mmcv 2"
        keep = self._take(name, self._tree.version == "0.x")
        if keep is not True:
            self._note(name, keep, reason)

    def _test_pipeline(self) -> None:
        start = "data.test.pipeline."
        if not any(name.startswith(start) for name in self._left):
            for name in [n for n in self._left if n.startswith("data.val.pipeline.")]:
                self._left[start + name.removeprefix("data.val.pipeline.")] = self._left.pop(name)
        if not any(name.startswith(start) for name in self._left):
            return
        self._differing_validation()
        multi = f"{start}MultiScaleFlipAug"
        if self._take(multi):
            self._put("test.scale", self._take(f"{multi}.img_scale"), f"{multi}.img_scale")
            ratios = self._take(f"{multi}.img_ratios") or [1.0]
            self._put(
                "test.ratios",
                ratios if isinstance(ratios, list) else [ratios],
                f"{multi}.img_ratios",
            )
            self._put("test.flip", self._take(f"{multi}.flip", False), f"{multi}.flip")
        else:
            self._put("test.scale", self._take(f"{start}Resize.scale"), f"{start}Resize.scale")
        if self._take(f"{start}Resize"):
            self._keep_ratio(f"{start}Resize.keep_ratio")
            resize = "keep_ratio"
        else:
            resize = "none"
        for step in ("ResizeToMultiple", "AlignResize", "AlignedResize"):
            if self._take(start + step):
                resize = "keep_ratio_divisible"
                self._take(f"{start}{step}.keep_ratio")
                name = f"{start}{step}.size_divisor"
                self._put("test.divisor", self._take(name), name)
        self._put("test.resize", resize, f"{start}Resize")
        for name in (f"{start}Pad.size_divisor", "model.data_preprocessor.test_cfg.size_divisor"):
            self._put("test.divisor", self._take(name), name)
        self._take(f"{start}Pad")
        self._normalize(start)
        tta = self._tree.values.get("tta_pipeline")
        ratios = re.findall(r"'scale_factor': ([\d.]+)", str(tta))
        if ratios and [float(each) for each in ratios] != [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]:
            self._note(
                "tta_pipeline",
                [float(each) for each in ratios],
                "mmsegmentation reads it with --tta alone; here test.ratios and test.flip",
            )

    def _differing_validation(self) -> None:
        for name in [n for n in self._left if n.startswith("data.val.pipeline.")]:
            other = name.replace("data.val.", "data.test.", 1)
            value = self._left.pop(name)
            if other in self._left and self._left[other] != value:
                self._note(name, value, "validation and test share their settings here")

    def _optimizer(self) -> None:
        if "optimizer.lr" in self._settings:
            self._settings.setdefault("optimizer.head_multiplier", 1.0)
            self._origins.setdefault("optimizer.head_multiplier", "optimizer.paramwise_cfg")
        kind = self._left.get("optimizer.type")
        if kind not in (None, "AdamW"):
            # The rate of another optimizer means nothing for AdamW.
            for key in ("lr", "weight_decay", "head_multiplier", "betas"):
                value = self._settings.pop(f"optimizer.{key}", None)
                if (
                    value is not None
                    and self._origins[f"optimizer.{key}"] != "optimizer.paramwise_cfg"
                ):
                    self._note(f"optimizer.{key}", value, f"a setting of {kind}")
        paramwise = "optimizer.paramwise_cfg."
        if self._left.get(f"{paramwise}norm_decay_mult") == 0:
            self._take(f"{paramwise}norm_decay_mult")
        elif (
            self._settings.get("optimizer.weight_decay")
            and "_preset_" not in self._variables
            and f"{paramwise}custom_keys.norm.decay_mult" not in self._left
        ):
            self._notes.append(
                f"{paramwise}custom_keys without norm.decay_mult: weight decay never acts on "
                "normalization layers here"
            )
        policy = self._left.get("lr_config.policy")
        constant = policy in (None, "fixed") and kind is not None and not self._has_base_schedule()
        section = "lr_config" if self._tree.version == "0.x" else "param_scheduler"
        if constant:
            self._take("lr_config.policy")
            self._put("schedule.power", 0.0, section)
        if constant or policy == "poly":
            warmup = self._take("lr_config.warmup")
            if warmup is None:
                self._put("schedule.warmup_iters", 0, section)
            elif warmup == "linear" and "schedule.warmup_ratio" not in self._settings:
                self._put("schedule.warmup_ratio", 0.1, "lr_config.warmup")  # mmcv's default
            elif warmup != "linear":
                self._note("lr_config.warmup", warmup, "the warm-up is always linear")
            self._settings.setdefault("schedule.power", 1.0)
            self._origins.setdefault("schedule.power", "lr_config.power")

    def _schedulers(self, entries: Any) -> dict[str, Any]:
        """The list `param_scheduler` of 1.x in the form of `lr_config`."""
        self._names |= {
            "lr_config.min_lr": "param_scheduler.PolyLR.eta_min",
            "lr_config.power": "param_scheduler.PolyLR.power",
            "lr_config.policy": "param_scheduler.type",
            "lr_config.warmup": "param_scheduler",
            "lr_config.warmup_iters": "param_scheduler.LinearLR.end",
            "lr_config.warmup_ratio": "param_scheduler.LinearLR.start_factor",
        }
        made: dict[str, Any] = {}
        entries = [entries] if isinstance(entries, Mapping) else entries
        for entry in entries:
            entry = dict(entry)
            kind = str(entry.pop("type", "")).rpartition(".")[2]
            begin, end = entry.pop("begin", 0), entry.pop("end", None)
            epochs = entry.pop("by_epoch", True)  # mmengine's default
            if epochs and end is not None:
                self._notes.append(
                    f"param_scheduler.{kind}.end = {end}: counted in epochs; iterations here"
                )
            if kind == "LinearLR" and epochs:
                made["warmup"] = "linear"
                made["warmup_ratio"] = entry.pop("start_factor", 1 / 3)
            elif kind == "LinearLR" and begin == 0 and end is not None:
                made |= {"warmup": "linear", "warmup_iters": end}
                made["warmup_ratio"] = entry.pop("start_factor", 1 / 3)
            elif kind == "PolyLR":
                made |= {"policy": "poly", "power": entry.pop("power", 1.0)}
                made["min_lr"] = entry.pop("eta_min", 0.0)
                if begin and not epochs:
                    self._notes.append(
                        f"param_scheduler.PolyLR.begin = {begin}: the decay counts from iteration 0"
                    )
                total = (self._tree.values.get("train_cfg") or {}).get("max_iters")
                if not epochs and None not in (end, total) and end != total:
                    self._notes.append(
                        f"param_scheduler.PolyLR.end = {end}: the decay ends at the last iteration"
                    )
            else:
                made["policy"] = kind
            self._notes += [f"param_scheduler.{kind}.{k} = {v}" for k, v in entry.items()]
        return made

    def _run_settings(self, model: str) -> None:
        norm = self._take("model.decode_head.norm_cfg.type")
        if norm in ("BN", "SyncBN"):
            self._put("model.sync_norm", norm == "SyncBN", "model.decode_head.norm_cfg.type")
        elif norm is not None:
            self._note("model.decode_head.norm_cfg.type", norm, "always batch normalization")
        average = "model.decode_head.loss_decode.avg_non_ignore"
        value = self._take(average)
        if value is not None:
            self._put("loss.average", "valid" if value else "all", average)
        wrapper = self._left.get("optim_wrapper.type")
        scale = self._left.get("fp16.loss_scale")
        if wrapper == "AmpOptimWrapper" or scale is not None:
            half = self._take("optim_wrapper.dtype", "float16")
            self._put(
                "train.precision",
                "bf16" if half == "bfloat16" else "fp16",
                "optim_wrapper.type" if wrapper == "AmpOptimWrapper" else "fp16",
            )
        for name in ("resume_from", "resume", "auto_resume"):
            value = self._take(name)
            if value:
                self._note(name, value, "cgrseg train translated.py --resume")
        self._pretrained()

    def _pretrained(self) -> None:
        """A file without weights of the backbone trains from scratch."""
        if self._has_backbone and "model.pretrained" not in self._settings:
            self._put("model.pretrained", None, "model.backbone.init_cfg")
        file = str(self._settings.get("model.pretrained"))
        if _IMAGENET_FILE.fullmatch(file) and not Path(file).is_file():
            self._settings["model.pretrained"] = IMAGENET
            self._assumed.append(f"{file} is not there: model.pretrained={IMAGENET}")

    def _fixed(self, model: str) -> None:
        variant = VARIANTS[model]
        fixed = {
            **_FIXED,
            "model.decode_head.channels": (variant.channels,),
            "model.decode_head.in_channels": (list(variant.feature_channels),),
            "model.decode_head.dw_size": (variant.strip_kernel,),
            "model.decode_head.neck_size": (variant.strip_kernel,),
        }
        for split in ("train", "val", "test"):
            several = [n for n in self._left if n.startswith(f"data.{split}.datasets")]
            for name in several:
                del self._left[name]
            if several:
                self._notes.append(
                    f"data.{split}.datasets: several datasets; further training sets are data.extra"
                )
        for name, value in self._left.items():
            if name in fixed:
                if value not in fixed[name]:
                    self._note(name, value, f"always {json.dumps(fixed[name][0])}")
            elif not any(fnmatch(name, pattern) for pattern in _SILENT):
                self._note(name, value)

    def _differences(self, made: Translation) -> None:
        plain = preset(*made.base)
        implied = {
            "model.context_blocks": variant_sizes(
                made.base[0], self._settings.get("model.head", "dpg")
            ).context_blocks,
            "train.checkpoint_interval": self._settings.get(
                "train.eval_interval", plain.train.eval_interval
            ),
        }
        for key, value in implied.items():
            if self._settings.get(key) == value:
                del self._settings[key]
        wanted = {
            key: value
            for key, value in self._settings.items()
            if key == "work_dir" or not _same(key, _look_up(plain, key), value)
        }
        accepted: dict[str, Any] = {}
        try:
            build(merge(plain.model_dump(), wanted))
            accepted = wanted
        except ConfigError:
            for key, value in wanted.items():
                try:
                    build(merge(plain.model_dump(), {**accepted, key: value}))
                except ConfigError as error:
                    self._note(
                        self._origins[key],
                        value,
                        " ".join(str(error).partition("what to do:")[0].split()),
                    )
                else:
                    accepted[key] = value
        made.changes = accepted
        made.origins = self._origins


def _same(key: str, ours: Any, theirs: Any) -> bool:
    if isinstance(ours, str) and isinstance(theirs, str):
        return ours.rstrip("/") == theirs.rstrip("/")
    if isinstance(ours, list) and isinstance(theirs, list):
        # An image scale is a longest and a shortest side, in any order.
        return ours == theirs or (key in ("augment.scale", "test.scale") and ours == theirs[::-1])
    return bool(ours == theirs)


def _names_folders(layout: tuple[Any, ...], given: tuple[Any, ...]) -> bool:
    """Whether the given folders and list are those of a layout, or are not given."""
    return all(
        mine is None or str(mine).rstrip("/") == theirs
        for mine, theirs in zip(given, layout, strict=True)
    )


def _unwrapped(values: dict[str, Any]) -> dict[str, Any]:
    """The tree without `RepeatDataset`: training is counted in iterations."""
    result = dict(values)
    for loader, key in (("data", "train"), ("train_dataloader", "dataset")):
        outer = result.get(loader)
        if not isinstance(outer, Mapping):
            continue
        inner = outer.get(key)
        if isinstance(inner, Mapping) and inner.get("type") == "RepeatDataset":
            result[loader] = {**outer, key: inner.get("dataset", {})}
    return result
