"""Loading weights so that what did not load is never silent.

Siblings of CGRSeg's published code trained for days without their backbone because
a name did not match.  Here every load compares names and shapes first, touches the
network only if all that must load can load, and returns a report of the rest.

What may be missing: tables that only a 512-pixel segmentation has (from ImageNet
files), index buffers (constants), counters of batch norms.  What may be left over:
ImageNet's classifier.  What may differ: the classifier's shape, when the number of
classes is another one; it then keeps its fresh weights, and the report says so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cgrseg.class_names import differences, numbered_names, usable_names, usable_palette
from cgrseg.errors import WeightsError, explain, speaks_python
from cgrseg.files import atomic_write
from cgrseg.models.cgrseg import CGRSeg
from cgrseg.models.checkpoint_files import (
    DIGEST,
    Checkpoint,
    StateDict,
    locate_pretrained,
    read_checkpoint,
)
from cgrseg.models.digest import tensors_digest
from cgrseg.models.efficientformer_v2 import BACKBONES, BiasForm
from cgrseg.models.name_mapping import from_timm, is_imagenet_classifier, is_timm
from cgrseg.models.variants import VARIANTS

__all__ = [
    "LoadReport",
    "load_model",
    "load_weights",
    "locate_pretrained",
    "read_checkpoint",
    "save_safetensors",
]

_CLASSIFIER = ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
_CONSTANTS = ("attention_bias_idxs", "attention_bias_idxs_seg", "num_batches_tracked")
_NAMES_SHOWN = 6


@dataclass(repr=False)
class LoadReport:
    """What loading a file did, tensor by tensor.

    The lists hold tensor names of the network; `unexpected` holds names of the file.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Tensors that the network needs and the file lacks."""
    unexpected: list[str] = field(default_factory=list)
    """Tensors of the file that the network does not have."""
    mismatched: list[str] = field(default_factory=list)
    """Tensors of another shape; each entry gives both shapes."""
    fresh: list[str] = field(default_factory=list)
    """Tensors of the classifier that start from random values, because the number of classes
    differs."""
    expected_missing: list[str] = field(default_factory=list)
    """Tensors that this kind of file never has, such as constants."""
    expected_unused: list[str] = field(default_factory=list)
    """Tensors of the file that are left out on purpose, such as the ImageNet classifier."""
    notes: list[str] = field(default_factory=list)
    """Remarks as sentences, for instance that names were translated."""

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{len(getattr(self, name))} {name}"
            for name in ("loaded", "missing", "unexpected", "mismatched", "fresh")
        )
        return f"LoadReport({self.source}: {counts})"

    def __str__(self) -> str:
        """A few readable lines."""
        lines = [f"weights from {self.source}: {len(self.loaded)} tensors loaded"]
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.mismatched),
        ):
            if names:
                lines.append(f"  {len(names)} {title}: {_shown(names)}")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def load_weights(
    model: CGRSeg,
    path: str | Path,
    *,
    part: Literal["all", "backbone"] = "all",
    verbose: bool = True,
) -> LoadReport:
    """Load a checkpoint into a network, or explain why not.

    Args:
        model: the network; unchanged unless everything that must load can load.
        path: a `.pth` or `.safetensors` file, a folder of `save_pretrained`, or a hub id.
        part: "all" for a segmentation checkpoint; "backbone" for ImageNet weights, or
            for the backbone alone of a segmentation checkpoint.
        verbose: print the report (to the standard error stream).

    Returns:
        The report.

    Raises:
        WeightsError: the file cannot be read, belongs to another network, or leaves a
            needed tensor of the backbone or the head without a value.
    """
    checkpoint = read_checkpoint(path)
    report = _load(model, checkpoint, part)
    if part == "all" and not report.fresh:
        report.notes += _other_classes(model, checkpoint)
    if verbose:
        print(report, file=sys.stderr)
    return report


def load_model(path: str | Path, *, verbose: bool = True) -> CGRSeg:
    """Build the network that a checkpoint belongs to and load it, in eval mode.

    Variant, context blocks, head width and number of classes are told from the
    tensors; classes, palette and preprocessing from the file where it has them.

    Raises:
        WeightsError: as :func:`load_weights`, and when no variant fits the file.
    """
    checkpoint = read_checkpoint(path)
    options = _architecture(checkpoint)
    meta = _own_meta(checkpoint.meta)
    count = options["num_classes"]
    options["classes"] = usable_names(meta["classes"], count, checkpoint.source)
    options["palette"] = usable_palette(meta["palette"], count, checkpoint.source)
    model = CGRSeg(**options, preprocessing=meta["preprocessing"])
    report = _load(model, checkpoint, "all")
    if verbose:
        print(report, file=sys.stderr)
    return model.eval()


def _other_classes(model: CGRSeg, checkpoint: Checkpoint) -> list[str]:
    """A sentence where the classifier was trained for other class names than the network has."""
    stored = _own_meta(checkpoint.meta)["classes"]
    if stored is None or model.classes is None:
        return []
    names = usable_names(stored, model.num_classes, checkpoint.source)
    changed = differences(names or (), model.classes)
    if changed is None or names == numbered_names(model.num_classes):
        return []
    return [f"the class names differ ({changed}): the classifier starts from other classes"]


def save_safetensors(model: nn.Module, path: str | Path) -> None:
    """Write a state dict as safetensors, whole or not at all."""
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    told = {"format": "pt", "library": "cgrseg", DIGEST: tensors_digest(tensors)}
    content = save(tensors, metadata=told)
    with atomic_write(path) as stream:
        stream.write(content)


def _own_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Classes, palette and preprocessing under the names that files of several kinds use."""
    config = meta.get("config")
    test = config.get("test") if isinstance(config, Mapping) else None
    dataset = meta.get("dataset_meta")  # mmengine's place
    places = [meta, dataset if isinstance(dataset, Mapping) else {}]

    def first(*names: str) -> Any:
        return next((p[n] for p in places for n in names if p.get(n) is not None), None)

    return {
        "classes": first("classes", "CLASSES"),
        "palette": first("palette", "PALETTE"),
        "preprocessing": meta.get("preprocessing") or test,
    }


def _architecture(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the tensors say of the network they belong to."""
    tensors = checkpoint.state_dict
    stem = tensors.get("backbone.patch_embed.3.weight")
    classifier = tensors.get("decode_head.conv_seg.weight")
    widths = [tensors.get(f"decode_head.meta.{i}.gamma") for i in range(3)]
    if stem is None or classifier is None or classifier.ndim != 4:
        raise WeightsError(_foreign(checkpoint))
    channels = tuple(len(w) for w in widths if w is not None and w.ndim == 1)
    if len(channels) != len(widths):
        raise WeightsError(_foreign(checkpoint))
    for name, table in VARIANTS.items():
        if BACKBONES[table.backbone].channels[1:] == channels:
            numbers = [
                int(m.group(1))
                for key in tensors
                if (m := re.match(r"decode_head\.trans\.transformer_blocks\.(\d{1,3})\.", key))
            ]
            if set(numbers) != set(range(max(numbers, default=-1) + 1)):
                raise WeightsError(_foreign(checkpoint))
            return {
                "variant": name,
                "context_blocks": max(numbers, default=-1) + 1,
                "channels": classifier.shape[1],
                "num_classes": classifier.shape[0],
                "attention_bias": _bias_form(tensors),
            }
    raise WeightsError(
        checkpoint.source,
        found=f"a CGRSeg head on features of {channels} channels",
        expected="one of "
        + ", ".join(f"{n} {BACKBONES[t.backbone].channels[1:]}" for n, t in VARIANTS.items()),
        remedy="build the network that it was trained with and use load_weights",
    )


def _bias_form(tensors: Mapping[str, Tensor]) -> BiasForm:
    """Which attention biases a segmentation checkpoint was trained with."""
    leaves = {name.rpartition(".")[2] for name in tensors}
    only_imagenets = "attention_biases" in leaves and "attention_biases_seg" not in leaves
    return "geometric" if only_imagenets else "published"


def _load(model: CGRSeg, checkpoint: Checkpoint, part: str) -> LoadReport:
    source, imagenet, report = _select(checkpoint, part)
    target: dict[str, Tensor] = {
        name: value
        for name, value in model.state_dict().items()
        if part == "all" or name.startswith("backbone.")
    }
    accepted: StateDict = {}
    report.fresh = _fresh_classifier(source, target)
    copies = _second_weights(source)
    if copies:
        report.notes.append(
            f"the file has a second set of weights ({len(copies)} names of mmcv's EMAHook, "
            "ema_...); those under the plain names are taken, as mmsegmentation takes them"
        )
    for name, value in source.items():
        leaf = name.rsplit(".", 1)[-1]
        if name in copies:
            report.expected_unused.append(name)
        elif name not in target:
            relative = name.removeprefix("backbone.")
            spare = imagenet and is_imagenet_classifier(relative)
            (report.expected_unused if spare else report.unexpected).append(name)
        elif name in report.fresh:
            continue
        elif leaf in _CONSTANTS and leaf != "num_batches_tracked":
            # Constants of the architecture: ours are right by construction.
            report.expected_unused.append(name)
        elif value.shape != target[name].shape:
            shapes = f"{tuple(value.shape)} in the file, {tuple(target[name].shape)} here"
            report.mismatched.append(f"{name} ({shapes})")
        elif target[name].is_floating_point() and not value.is_floating_point():
            report.mismatched.append(f"{name} ({value.dtype} in the file, not a float)")
        else:
            accepted[name] = value
    if report.fresh:
        report.notes.append(
            f"the classifier starts afresh: the file has {len(source[_CLASSIFIER[0]])} classes, "
            f"this network {model.num_classes}; everything else is loaded"
        )
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in accepted.values()):
        report.notes.append("stored in half precision, widened here")
    in_file = set(source)
    learned = {name for name, _ in model.named_parameters()}
    for name in target:
        if name in in_file:
            continue
        leaf = name.rsplit(".", 1)[-1]
        own = leaf in _CONSTANTS or (
            leaf == "attention_biases" and not imagenet and name not in learned
        )
        own = own or (imagenet and leaf == "attention_biases_seg")
        (report.expected_missing if own else report.missing).append(name)
    report.loaded = sorted(accepted)
    _refuse_incomplete(model, checkpoint, report, len(target))
    with torch.no_grad():
        for name, value in accepted.items():
            target[name].copy_(value)
    return report


def _second_weights(source: StateDict) -> set[str]:
    """The copies that mmcv's EMAHook keeps: `ema_` and a parameter's name, dots replaced."""
    return {f"ema_{name.replace('.', '_')}" for name in source} & set(source)


def _fresh_classifier(source: StateDict, target: dict[str, Tensor]) -> list[str]:
    """The classifier's names, when file and network differ in the number of classes alone."""
    if not all(name in source and name in target for name in _CLASSIFIER):
        return []
    weight, bias = (source[name] for name in _CLASSIFIER)
    ours = target[_CLASSIFIER[0]]
    same_form = weight.ndim == 4 and bias.ndim == 1 and weight.shape[1:] == ours.shape[1:]
    if same_form and len(weight) == len(bias) and len(weight) != len(ours):
        return list(_CLASSIFIER)
    return []


def _select(checkpoint: Checkpoint, part: str) -> tuple[StateDict, bool, LoadReport]:
    """The tensors of the wanted part under our names, and whether they come from ImageNet."""
    report = LoadReport(checkpoint.source, notes=list(checkpoint.notes))
    tensors = checkpoint.state_dict
    segmentation = any(name.startswith("decode_head.") for name in tensors)
    if is_timm(tensors):
        tensors = from_timm(tensors)
        report.notes.append("timm's names were translated to the published ones")
    elif segmentation:
        if part == "backbone":
            tensors = {k: v for k, v in tensors.items() if k.startswith("backbone.")}
        return dict(tensors), False, report
    elif not any(n.removeprefix("backbone.").startswith("patch_embed.") for n in tensors):
        raise WeightsError(_foreign(checkpoint))
    if part == "all":
        raise WeightsError(
            checkpoint.source,
            found="weights of an EfficientFormerV2 backbone, without a segmentation head",
            expected="a CGRSeg checkpoint (names that begin with backbone. and decode_head.)",
            remedy='load it with part="backbone", or set model.pretrained to start a training '
            "from it",
        )
    return {f"backbone.{k.removeprefix('backbone.')}": v for k, v in tensors.items()}, True, report


def _refuse_incomplete(
    model: CGRSeg, checkpoint: Checkpoint, report: LoadReport, in_all: int
) -> None:
    """Raise unless every tensor of the network has a value and none of the file's is lost."""
    surplus = [n for n in report.unexpected if n.startswith(("backbone.", "decode_head."))]
    if not (report.missing or report.mismatched or surplus):
        return
    here, there = _described_model(model), _described(checkpoint)
    if there is not None and there != here:
        problem = explain(
            checkpoint.source,
            found=f"weights of {there}",
            expected=f"weights of {here}",
            remedy=_build_that(checkpoint, model) + "; or choose another file",
        )
    elif report.mismatched:
        problem = explain(
            checkpoint.source,
            found=f"{len(report.mismatched)} tensors have another shape than in {here}",
            expected="the shapes of this network",
            remedy="check that variant, head width and context blocks are those it was trained "
            "with",
        )
    elif report.missing:
        problem = explain(
            checkpoint.source,
            found=f"{len(report.missing)} of {in_all} tensors that {here} needs are not in it",
            expected="a value for every tensor of the backbone and the head",
            remedy="the file was renamed, cut or made by other code: compare the names below",
        )
    else:
        problem = explain(
            checkpoint.source,
            found=f"{len(surplus)} tensors for which {here} has no place",
            expected="nothing but the tensors of this network",
            remedy="the file belongs to a network with more parts: build that one",
        )
    raise WeightsError(f"{problem}\n{report}")


def _described(checkpoint: Checkpoint) -> str | None:
    """The file's network in words, if it is one of ours at all."""
    try:
        options = _architecture(checkpoint)
    except WeightsError:
        return None
    return _in_words(options["variant"], options["context_blocks"], options["attention_bias"])


def _build_that(checkpoint: Checkpoint, model: CGRSeg) -> str:
    """How to get the network of a checkpoint: settings, or in Python one call."""
    if speaks_python():
        return f"build that network: cgrseg.load_model({checkpoint.source!r})"
    theirs = _architecture(checkpoint)
    settings = {
        "model.name": (theirs["variant"], model.variant),
        "model.context_blocks": (theirs["context_blocks"], model.context_blocks),
        "model.attention_bias": (theirs["attention_bias"], model.backbone.attention_bias),
    }
    changed = [f"{name}={there}" for name, (there, here) in settings.items() if there != here]
    return f"train that network: {' '.join(changed)}"


def _described_model(model: CGRSeg) -> str:
    return _in_words(model.variant, model.context_blocks, model.backbone.attention_bias)


def _in_words(variant: str, context_blocks: int, attention_bias: BiasForm) -> str:
    bias = "" if attention_bias == "published" else f" and {attention_bias} attention biases"
    return f"{variant} with {context_blocks} context blocks{bias}"


def _foreign(checkpoint: Checkpoint) -> str:
    examples = _shown(list(checkpoint.state_dict), 3)
    return explain(
        checkpoint.source,
        found=f"weights of another architecture (for example {examples})",
        expected="CGRSeg (backbone.patch_embed..., decode_head...), or an EfficientFormerV2 by its "
        "authors or by timm",
        remedy="choose a checkpoint of CGRSeg; other networks cannot be loaded into it",
    )


def _shown(names: list[str], limit: int = _NAMES_SHOWN) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
