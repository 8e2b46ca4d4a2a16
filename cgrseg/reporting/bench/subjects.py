"""The ways of predicting that `cgrseg bench` compares.

A subject turns an input tensor into logits and logits into label maps.  The plain one is
the published arithmetic: attention biases resized at every forward pass, logits resized
to full size twice (to the input, then to the image), softmax over all classes, argmax.
Others can be added with :func:`register`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cgrseg.config.schema import TestConfig
from cgrseg.errors import ConfigError
from cgrseg.extras import require
from cgrseg.formats import is_exported
from cgrseg.inference.backends import Backend, TorchBackend
from cgrseg.inference.compiled_backend import CompiledBackend
from cgrseg.inference.exported_backend import open_exported
from cgrseg.inference.fast.network import fast_form
from cgrseg.inference.views import NetworkInput
from cgrseg.models import CGRSeg
from cgrseg.models.attention_bias import AttentionBias
from cgrseg.ops import upsample_argmax
from cgrseg.precision import DTYPES, Precision

Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Setting:
    """What all subjects of a run share.

    Attributes:
        size: height and width of input and image in pixels, multiples of 32.
        device: where to run.
        folder: of compiled networks; None: the user's cache.
        batches: numbers of images that will be asked for at once.
        warm_up: run each shape before it is timed; not where memory is measured.
        trust_code: run the machine code of compiled packages.
    """

    size: tuple[int, int]
    device: torch.device
    folder: Path | None = None
    batches: tuple[int, ...] = (1,)
    warm_up: bool = True
    trust_code: bool = False


class Subject(Protocol):
    """One way of predicting."""

    preparation: str
    """How it got ready, in words, with seconds."""

    def logits(self, batch: Tensor) -> Tensor:
        """(N, 3, H, W) float32 to (N, K, H / 8, W / 8)."""
        ...

    def decode(self, logits: Tensor) -> Labels:
        """Logits to label maps (N, H, W)."""
        ...


Factory = Callable[[CGRSeg, Setting], Subject]

_FACTORIES: dict[str, Factory] = {}


def register(name: str) -> Callable[[Factory], Factory]:
    """Make a subject known by a name, e.g. an exported network's runtime."""

    def keep(factory: Factory) -> Factory:
        _FACTORIES[name] = factory
        return factory

    return keep


def known_subjects() -> list[str]:
    """Names that :func:`make_subject` knows."""
    return list(_FACTORIES)


def make_subject(name: str, model: CGRSeg, setting: Setting) -> Subject:
    """Build a subject; the model is read, never changed.

    Args:
        name: one of :func:`known_subjects`, or an exported file, for OpenVINO with the
            precision to compute in (`best.xml@bf16`).
        model: the network; an exported file should have been made from it.
        setting: of the run.

    Raises:
        ConfigError: a name that does not exist.
        EnvironmentProblem: a package that it needs is missing.
    """
    file, _, precision = name.partition("@")
    if is_exported(file):
        start = time.perf_counter()
        exported = open_exported(
            file,
            setting.device,
            cast(Precision, precision or "fp32"),
            trust_code=setting.trust_code,
        )
        return Ours(exported, setting.size, f"opened in {time.perf_counter() - start:.1f} s")
    if name not in _FACTORIES:
        raise ConfigError(
            "--subjects",
            found=repr(name),
            expected=", ".join(_FACTORIES),
            remedy="choose from these, separated by commas",
        )
    return _FACTORIES[name](model, setting)


def as_input(photos: NDArray[np.uint8]) -> Tensor:
    """Photos at their own size as the network's input: uint8 RGB (N, H, W, 3) to (N, 3, H, W)."""
    config = TestConfig(resize="none")
    return torch.cat([NetworkInput.of(photo, config).tensor for photo in photos])


def predict(subject: Subject, images: NDArray[np.uint8], device: torch.device) -> Labels:
    """Photos to label maps, preprocessing included: uint8 RGB (N, H, W, 3) to (N, H, W)."""
    batch = as_input(images).to(device)
    with torch.inference_mode():
        return subject.decode(subject.logits(batch))


def _compact(labels: Tensor, num_classes: int) -> Labels:
    """Ids in as few bytes as they need, on the CPU."""
    return labels.to(torch.uint8 if num_classes <= 256 else torch.int16).cpu().numpy()


class _ResizedEveryTime:
    """Attention biases as the published code has them: resized at every use."""

    def __call__(
        self, table: Tensor, index: Tensor, queries: int, keys: int, training: bool
    ) -> Tensor:
        return F.interpolate(table[:, index][None], size=(queries, keys), mode="bicubic")[0]


class Plain:
    """The published arithmetic, eager, float32.

    Args:
        model: copied.
        setting: of the run.
    """

    preparation = "none"

    def __init__(self, model: CGRSeg, setting: Setting) -> None:
        self.size = setting.size
        self.model = copy.deepcopy(model).to(setting.device).eval()
        for module in self.model.modules():
            if isinstance(getattr(module, "bias", None), AttentionBias):
                module.bias = cast(Any, _ResizedEveryTime())

    def logits(self, batch: Tensor) -> Tensor:
        """See :class:`Subject`."""
        return self.model(batch)

    def decode(self, logits: Tensor) -> Labels:
        """See :class:`Subject`."""
        resized = F.interpolate(logits, size=self.size, mode="bilinear", align_corners=False)
        resized = F.interpolate(resized, size=self.size, mode="bilinear", align_corners=False)
        return _compact(F.softmax(resized, dim=1).argmax(dim=1), logits.shape[1])


@dataclass
class Ours:
    """Any backend with the exact fused decoding.

    Attributes:
        backend: runs the network.
        size: of the label maps.
        preparation: how it got ready.
    """

    backend: Backend
    size: tuple[int, int]
    preparation: str = "none"

    def logits(self, batch: Tensor) -> Tensor:
        """See :class:`Subject`."""
        return self.backend.logits(batch)

    def decode(self, logits: Tensor) -> Labels:
        """See :class:`Subject`."""
        return _compact(upsample_argmax(logits, self.size), logits.shape[1])


class _Module(nn.Module):
    """A module with `num_classes`, as :class:`TorchBackend` wants it."""

    def __init__(self, inner: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.inner = inner
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@register("plain")
def _plain(model: CGRSeg, setting: Setting) -> Subject:
    return Plain(model, setting)


@register("eager")
def _eager(model: CGRSeg, setting: Setting) -> Subject:
    return Ours(TorchBackend(copy.deepcopy(model), setting.device), setting.size)


def _folded(precision: Precision) -> Factory:
    def make(model: CGRSeg, setting: Setting) -> Subject:
        start = time.perf_counter()
        network = fast_form(model, precision=precision)
        backend = TorchBackend(
            _Module(network, model.num_classes), setting.device, channels_last=True
        )
        return Ours(backend, setting.size, f"folded in {time.perf_counter() - start:.1f} s")

    return make


def _compiled(precision: Precision) -> Factory:
    def make(model: CGRSeg, setting: Setting) -> Subject:
        backend = CompiledBackend(model, setting.device, precision, folder=setting.folder)
        told = []
        for batch in setting.batches:
            if batch > 1 and setting.device.type == "cpu":
                continue  # images of a batch run one after another there
            done = backend.prepare(*setting.size, batch, warm_up=setting.warm_up)
            told.append(
                f"{done.how} in {done.seconds:.1f} s" + f" ({done.reason})" * bool(done.reason)
            )
        return Ours(backend, setting.size, ", ".join(told))

    return make


for _precision in DTYPES:
    register(f"folded-{_precision}")(_folded(_precision))
    register(f"compiled-{_precision}")(_compiled(_precision))


# Published sizes (Xie et al. 2021, arXiv 2105.15203, table 6 of the appendix).
_SEGFORMER = {"segformer-b0": (32, 64, 160, 256), "segformer-b1": (64, 128, 320, 512)}


class SegFormer:
    """Hugging Face's SegFormer with its own post-processing; weights are freshly drawn.

    Args:
        name: "segformer-b0" or "segformer-b1".
        num_classes: K.
        setting: of the run.

    Raises:
        EnvironmentProblem: `transformers` is not installed.
    """

    preparation = "none"

    def __init__(self, name: str, num_classes: int, setting: Setting) -> None:
        library = require("transformers", name, otherwise="or leave this subject out")
        config = library.SegformerConfig(
            hidden_sizes=list(_SEGFORMER[name]),
            depths=[2, 2, 2, 2],
            decoder_hidden_size=256,
            num_labels=num_classes,
        )
        self.size = setting.size
        network = library.SegformerForSemanticSegmentation(config)
        self.model = network.to(setting.device).eval()
        self.processor = library.SegformerImageProcessor()

    def logits(self, batch: Tensor) -> Tensor:
        """See :class:`Subject`; at a quarter of the input's size."""
        return self.model(pixel_values=batch).logits

    def decode(self, logits: Tensor) -> Labels:
        """See :class:`Subject`."""
        outputs = require("transformers.modeling_outputs", "segformer")
        maps = self.processor.post_process_semantic_segmentation(
            outputs.SemanticSegmenterOutput(logits=logits), target_sizes=[self.size] * len(logits)
        )
        return _compact(torch.stack(maps), logits.shape[1])


@register("segformer-b0")
def _segformer_b0(model: CGRSeg, setting: Setting) -> Subject:
    return SegFormer("segformer-b0", model.num_classes, setting)


@register("segformer-b1")
def _segformer_b1(model: CGRSeg, setting: Setting) -> Subject:
    return SegFormer("segformer-b1", model.num_classes, setting)
