"""Load weights into a network, and report every tensor that did not load.

Every load compares names and shapes first, and changes the network only if all required tensors
can load.  Three groups need no match:

* missing from the file: bias tables for 512-pixel inputs (in ImageNet files), index buffers
  (constants), counters of batch norms;
* unused: ImageNet's classifier, a constant of the published SSA loss;
* another shape: the classifier, when the number of classes differs; it keeps its random weights,
  and the report says so.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cgrseg.class_names import differences, numbered_names, usable_names
from cgrseg.errors import WeightsError, explain, speaks_python
from cgrseg.files import atomic_write
from cgrseg.models.checkpoint_files import DIGEST, Checkpoint, StateDict, read_checkpoint
from cgrseg.models.digest import tensors_digest
from cgrseg.models.name_mapping import from_timm, is_imagenet_classifier, is_timm
from cgrseg.variants import VARIANTS

_CLASSIFIER = ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
_CLASS_POSITIONS = "decode_head.center_pos.weight"  # of the SSA head alone
_STEM = "backbone.patch_embed.0.weight"
_INDEX_BUFFERS = ("attention_bias_idxs", "attention_bias_idxs_seg")
_LOSS_BUFFER = "decode_head.ssa_loss.criterion.empty_weight"  # constant in published SSA files
_NAMES_SHOWN = 6


class Network(Protocol):
    """A network that weights are loaded into: :class:`cgrseg.models.CGRSeg`."""

    def state_dict(self) -> dict[str, Any]:
        """Names and tensors."""

    def named_parameters(self) -> Any:
        """Names and trainable tensors."""

    def options(self) -> dict[str, Any]:
        """Arguments that build the network."""

    @property
    def rgb_channels(self) -> tuple[int, int, int] | None:
        """Indices of red, green and blue among the channels, or None where they are not known."""


@dataclass(repr=False)
class LoadReport:
    """Result of loading a file, tensor by tensor.

    The lists hold tensor names of the network; `unexpected` and `expected_unused` hold names of
    the file.
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
    model: Network,
    path: str | Path,
    *,
    part: Literal["all", "backbone"] = "all",
    verbose: bool = True,
) -> LoadReport:
    """Load a checkpoint into a network, or explain why not.

    Args:
        model: a :class:`cgrseg.models.CGRSeg`; unchanged unless all required tensors can load.
        path: `.pth` or `.safetensors` file, folder of `save_pretrained`, hub id, or a name
            of :data:`cgrseg.published.PUBLISHED`.
        part: "all" for a segmentation checkpoint; "backbone" for ImageNet weights, or
            for the backbone alone of a segmentation checkpoint.
        verbose: print the report on the standard error stream.

    Raises:
        WeightsError: the file cannot be read, belongs to another network, or lacks a required
            tensor of the backbone or the head.
    """
    checkpoint = read_checkpoint(path)
    report = load_checkpoint(model, checkpoint, part)
    if part == "all" and not report.fresh:
        report.notes += _other_classes(model, checkpoint)
    if verbose:
        print(report, file=sys.stderr)
    return report


def save_safetensors(model: nn.Module, path: str | Path) -> None:
    """Write a state dict as safetensors, atomically; equal tensors give equal bytes."""
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    metadata = {"format": "pt", "library": "cgrseg", DIGEST: tensors_digest(tensors)}
    content = save(tensors, metadata=metadata)
    # The library writes the metadata in random order: the header is written again in a fixed one.
    start = 8 + int.from_bytes(content[:8], "little")
    header = {**json.loads(content[8:start]), "__metadata__": metadata}
    fixed = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    fixed += b" " * (-len(fixed) % 8)
    with atomic_write(path) as stream:
        stream.write(len(fixed).to_bytes(8, "little") + fixed)
        stream.write(memoryview(content)[start:])


def stored_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Classes, palette, preprocessing and the description of the initial weights."""
    meta = checkpoint.meta
    config, dataset = meta.get("config"), meta.get("dataset_meta")  # the second is mmengine's
    places = [meta, dataset if isinstance(dataset, Mapping) else {}]

    def first(*names: str) -> Any:
        return next((p[n] for p in places for n in names if p.get(n) is not None), None)

    sections = config if isinstance(config, Mapping) else {}
    test, data = sections.get("test"), sections.get("data")
    channels = data.get("channels") if isinstance(data, Mapping) else None
    if isinstance(test, Mapping) and isinstance(channels, Mapping) and channels.get("names"):
        test = {**test, "channels": channels}
    return {
        "classes": first("classes", "CLASSES"),
        "palette": first("palette", "PALETTE"),
        "preprocessing": meta.get("preprocessing") or test,
        "initial_weights": str(meta.get("initial_weights") or ""),
    }


def network_options(checkpoint: Checkpoint) -> dict[str, Any]:
    """Arguments of :class:`cgrseg.models.CGRSeg` that the shapes of the tensors show.

    Raises:
        WeightsError: the tensors belong to no variant.
    """
    tensors = checkpoint.state_dict
    stem = tensors.get(_STEM)
    classifier = tensors.get("decode_head.conv_seg.weight")
    widths = [tensors.get(f"decode_head.meta.{i}.gamma") for i in range(3)]
    channels = tuple(len(w) for w in widths if w is not None and w.ndim == 1)
    if stem is None or stem.ndim != 4 or classifier is None or classifier.ndim != 4:
        raise _foreign(checkpoint)
    if len(channels) != len(widths):
        raise _foreign(checkpoint)
    variant = next((n for n, v in VARIANTS.items() if v.feature_channels == channels), None)
    if variant is None:
        known = ", ".join(f"{name} {each.feature_channels}" for name, each in VARIANTS.items())
        raise WeightsError(
            checkpoint.source,
            found=f"a CGRSeg head on features of {channels} channels",
            expected=f"one of {known}",
            remedy="build the network that it was trained with and use load_weights",
        )
    block = re.compile(r"decode_head\.trans\.transformer_blocks\.(\d{1,3})\.")
    numbers = {int(found[1]) for name in tensors if (found := block.match(name))}
    if numbers != set(range(len(numbers))):
        raise _foreign(checkpoint)
    leaves = {name.rpartition(".")[2] for name in tensors}
    imagenets = "attention_biases" in leaves and "attention_biases_seg" not in leaves
    return {
        "variant": variant,
        "context_blocks": len(numbers),
        "channels": classifier.shape[1],
        "num_classes": classifier.shape[0],
        "attention_bias": "geometric" if imagenets else "published",
        "in_channels": stem.shape[1],
        "head": "ssa" if _CLASS_POSITIONS in tensors else "dpg",
    }


def load_checkpoint(model: Network, checkpoint: Checkpoint, part: str = "all") -> LoadReport:
    """Load a checkpoint that was read before; see :func:`load_weights`."""
    source, imagenet, report = _select(checkpoint, part)
    target: dict[str, Tensor] = {
        name: value
        for name, value in model.state_dict().items()
        if part == "all" or name.startswith("backbone.")
    }
    accepted: StateDict = {}
    report.fresh = _fresh_classifier(source, target)
    # mmcv's EMAHook keeps a copy of each parameter: `ema_` and its name, dots replaced.
    copies = {f"ema_{name.replace('.', '_')}" for name in source} & set(source)
    if copies:
        report.notes.append(
            f"the file has a second set of weights ({len(copies)} names of mmcv's EMAHook, "
            "ema_...); those under the plain names are taken, as mmsegmentation takes them"
        )
    if _STEM in source and _STEM in target:
        theirs = channel_names(stored_metadata(checkpoint)["preprocessing"])
        source[_STEM] = _carried_over(source[_STEM], theirs, model, report)
    for name, value in source.items():
        if name in copies:
            report.expected_unused.append(name)
        elif name not in target:
            spare = name == _LOSS_BUFFER or (
                imagenet and is_imagenet_classifier(name.removeprefix("backbone."))
            )
            (report.expected_unused if spare else report.unexpected).append(name)
        elif name in report.fresh:
            continue
        elif name.rpartition(".")[2] in _INDEX_BUFFERS:  # ours are right by construction
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
            f"the classifier starts from random weights: the file has "
            f"{len(source[_CLASSIFIER[0]])} classes, this network {len(target[_CLASSIFIER[0]])}; "
            "everything else is loaded"
        )
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in accepted.values()):
        report.notes.append("stored in half precision, widened here")
    optional = {*_INDEX_BUFFERS, "num_batches_tracked"}
    optional |= {"attention_biases_seg"} if imagenet else set()
    learned = {name for name, _ in model.named_parameters()}
    for name in target:
        if name in source:
            continue
        leaf = name.rpartition(".")[2]
        unused_table = leaf == "attention_biases" and not imagenet and name not in learned
        may_miss = leaf in optional or unused_table
        (report.expected_missing if may_miss else report.missing).append(name)
    report.loaded = sorted(accepted)
    _refuse_incomplete(model, checkpoint, report, len(target))
    with torch.no_grad():
        for name, value in accepted.items():
            target[name].copy_(value)
    return report


def _carried_over(
    weight: Tensor, theirs: list[str] | None, model: Network, report: LoadReport
) -> Tensor:
    """Weights of the first convolution for the channels of this network.

    Channels of the same names keep theirs, whatever their order.  From RGB, further channels get
    the mean over RGB; where the network has no red, green and blue, all get the mean, scaled by
    3 / C: equal values in all channels give what a gray image gave.

    Args:
        weight: (M, C, 3, 3) of the file.
        theirs: names of the file's channels; None: RGB.
        model: the network.
        report: gets a note.

    Returns:
        The same weights, which may not fit, from other channels than RGB to others.
    """
    options = model.options()
    ours, count = channel_names(options["preprocessing"]), int(options.get("in_channels", 3))
    if weight.ndim != 4 or weight.shape[1] != len(theirs or "rgb"):
        return weight
    if theirs == ours and weight.shape[1] == count:
        return weight
    here = ", ".join(ours) if ours else f"{count} channels"
    start = f"the weights of the first convolution are for {', '.join(theirs or ['RGB'])}, this "
    start += f"network takes {here}: "
    if theirs is not None:
        if ours is None or set(ours) != set(theirs):
            if len(theirs) == count:
                report.notes.append(f"{start}they are taken in this order")
            return weight
        report.notes.append(f"{start}each channel keeps its own")
        return weight[:, [theirs.index(name) for name in ours]]
    mean = weight.mean(dim=1, keepdim=True).expand(-1, count, -1, -1).clone()
    rgb = model.rgb_channels
    if rgb is None:
        report.notes.append(f"{start}each channel gets their mean over RGB, times 3 / {count}")
        return mean * (3 / count)
    mean[:, list(rgb)] = weight
    report.notes.append(
        f"{start}those of red, green and blue stay, each further channel gets their mean"
    )
    return mean


def channel_names(preprocessing: Any) -> list[str] | None:
    """Names of the channels in stored test settings; None: RGB."""
    channels = preprocessing.get("channels") if isinstance(preprocessing, Mapping) else None
    names = channels.get("names") if isinstance(channels, Mapping) else None
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else None


def _other_classes(model: Network, checkpoint: Checkpoint) -> list[str]:
    """A sentence where the classifier was trained for other class names than the network has."""
    stored, own = stored_metadata(checkpoint)["classes"], model.options()["classes"]
    if stored is None or own is None:
        return []
    names = usable_names(stored, len(own), checkpoint.source)
    changed = differences(names or (), own)
    if changed is None or names == numbered_names(len(own)):
        return []
    return [f"the class names differ ({changed}): the classifier starts from other classes"]


def _fresh_classifier(source: StateDict, target: dict[str, Tensor]) -> list[str]:
    """The classifier's names, when file and network differ in the number of classes alone."""
    if not all(name in source and name in target for name in _CLASSIFIER):
        return []
    weight, bias = (source[name] for name in _CLASSIFIER)
    ours = target[_CLASSIFIER[0]]
    same_form = weight.ndim == 4 and bias.ndim == 1 and weight.shape[1:] == ours.shape[1:]
    if same_form and len(weight) == len(bias) and len(weight) != len(ours):
        per_class = (*_CLASSIFIER, _CLASS_POSITIONS)
        return [name for name in per_class if name in source and name in target]
    return []


def _select(checkpoint: Checkpoint, part: str) -> tuple[StateDict, bool, LoadReport]:
    """Tensors of the wanted part under our names, and whether they come from ImageNet."""
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
        raise _foreign(checkpoint)
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
    model: Network, checkpoint: Checkpoint, report: LoadReport, in_all: int
) -> None:
    """Raise unless every tensor of the network has a value and none of the file's is lost."""
    surplus = [n for n in report.unexpected if n.startswith(("backbone.", "decode_head."))]
    if not (report.missing or report.mismatched or surplus):
        return
    ours = model.options()
    try:
        theirs = network_options(checkpoint)
    except WeightsError:
        theirs = ours
    here = _in_words(ours)
    if _in_words(theirs) != here:
        found, expected = f"weights of {_in_words(theirs)}", f"weights of {here}"
        remedy = f"{_build_that(checkpoint.source, theirs, ours)}; or choose another file"
        if _head(theirs) != _head(ours):
            how = 'part="backbone"' if speaks_python() else "model.pretrained"
            remedy += f"; or start from its backbone alone with {how}"
    elif report.mismatched:
        found = f"{len(report.mismatched)} tensors have another shape than in {here}"
        expected = "the shapes of this network"
        remedy = "check that variant, head width and context blocks are those it was trained with"
    elif report.missing:
        found = f"{len(report.missing)} of {in_all} tensors that {here} needs are not in it"
        expected = "a value for every tensor of the backbone and the head"
        remedy = "the file was renamed, cut or made by other code: compare the names below"
    else:
        found = f"tensors for which {here} has no place ({len(surplus)} in all)"
        expected = "nothing but the tensors of this network"
        remedy = "the file belongs to a network with more parts: build that one"
    problem = explain(checkpoint.source, found=found, expected=expected, remedy=remedy)
    raise WeightsError(f"{problem}\n{report}")


def _build_that(source: str, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """How to get the network of a checkpoint: settings, or in Python one call."""
    if speaks_python():
        return f"build that network: cgrseg.load_model({source!r})"
    head = _head(theirs)
    other_head = head != _head(ours)  # whose variant may have another number of context blocks
    changed = [
        f"model.{'name' if option == 'variant' else option}={theirs[option]}"
        for option in ("variant", "context_blocks", "attention_bias")
        if theirs[option] != ours[option] or (option == "context_blocks" and other_head)
    ]
    if other_head:
        changed.append(f"model.head={head}")
    if _channels(theirs) != _channels(ours):
        changed.append("data.channels.names=[...] as in its training")
    return f"train that network: {' '.join(changed)}"


def _in_words(options: dict[str, Any]) -> str:
    form = options["attention_bias"]
    bias = "" if form == "published" else f" and {form} attention biases"
    count = _channels(options)
    images = "" if count == 3 else f" for images of {count} channels"
    network = f"{options['variant']} with {options['context_blocks']} context blocks"
    return f"{network}{bias}{images}, {_head(options)} head"


def _head(options: dict[str, Any]) -> str:
    return str(options.get("head", "dpg"))


def _channels(options: dict[str, Any]) -> int:
    return int(options.get("in_channels", 3))


def _foreign(checkpoint: Checkpoint) -> WeightsError:
    examples = _shown(list(checkpoint.state_dict), 3)
    return WeightsError(
        checkpoint.source,
        found=f"weights of another architecture (for example {examples})",
        expected="CGRSeg (backbone.patch_embed..., decode_head...), or an EfficientFormerV2 by its "
        "authors or by timm",
        remedy="choose a checkpoint of CGRSeg; other networks cannot be loaded into it",
    )


def _shown(names: list[str], limit: int = _NAMES_SHOWN) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
