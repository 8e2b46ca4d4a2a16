"""The ways of predicting that `cgrseg bench` compares.

A subject turns an input tensor into logits and logits into label maps.  The plain one is
the published arithmetic: attention biases resized at every forward pass, logits resized
to full size twice (to the input, then to the image), softmax over all classes, argmax.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cgrseg.deploy.verify import as_input
from cgrseg.errors import ConfigError, check_choice
from cgrseg.extras import require
from cgrseg.formats import is_exported
from cgrseg.formats.openvino_format import core
from cgrseg.inference.backends import Backend, TorchBackend
from cgrseg.inference.compiled_backend import CompiledBackend
from cgrseg.inference.exported_backend import open_exported
from cgrseg.inference.fast.network import fast_form
from cgrseg.models import CGRSeg
from cgrseg.models.attention_bias import AttentionBias
from cgrseg.ops import upsample_argmax
from cgrseg.precision import PRECISIONS, Precision, check_precision

Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Setting:
    """Settings that all subjects of a run share.

    Attributes:
        size: height and width of input and image in pixels, multiples of 32.
        device: where to run.
        folder: folder of compiled networks; None: the user's cache.
        batches: batch sizes that will be measured.
        warm_up: run each shape before it is timed; not where memory is measured.
        trust_code: run the machine code of compiled packages.
    """

    size: tuple[int, int]
    device: torch.device
    folder: Path | None = None
    batches: tuple[int, ...] = (1,)
    warm_up: bool = True
    trust_code: bool = False


@dataclass
class Subject:
    """One way of predicting.

    Attributes:
        logits: (N, 3, H, W) float32 to (N, K, H / 8, W / 8).
        decode: logits to label maps (N, H, W).
        preparation: how it was prepared, in words, with seconds.
        backend: backend behind `logits`, if there is one.
        labels: input to label maps, where one graph does both; None: `decode` of `logits`.
        size: height and width of the network's input; None: those of the image.
        peer: another network, whose results are not compared.
    """

    logits: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Labels]
    preparation: str = "none"
    backend: Backend | None = None
    labels: Callable[[Tensor], Labels] | None = None
    size: tuple[int, int] | None = None
    peer: bool = False

    def prepared(self, images: NDArray[np.uint8], device: torch.device) -> Tensor:
        """Input tensor of images: uint8 RGB (N, H, W, 3), resized where `size` says so."""
        if self.size is not None and self.size != images.shape[1:3]:
            images = np.stack([cv2.resize(image, self.size[::-1]) for image in images])
        return as_input(images).to(device)

    def label(self, batch: Tensor) -> Labels:
        """Input tensor to label maps of the images' size."""
        return self.decode(self.logits(batch)) if self.labels is None else self.labels(batch)


Factory = Callable[[CGRSeg, Setting], Subject]


def make_subject(name: str, model: CGRSeg, setting: Setting) -> Subject:
    """Build a subject; the model is read, never changed.

    Args:
        name: a key of :data:`FACTORIES`, for networks of Ultralytics with the side of a square
            input (`yolo26n-sem@640`); or an exported file, for OpenVINO with the precision to
            compute in (`best.xml@bf16`).
        model: the network; an exported file should have been made from it.
        setting: settings of the run.

    Raises:
        ConfigError: an unknown name.
        EnvironmentProblem: a package is missing.
    """
    file, _, ending = name.partition("@")
    if is_exported(file):
        start = time.perf_counter()
        precision = check_precision(ending or "fp32", "--subjects")
        backend = open_exported(file, setting.device, precision, trust_code=setting.trust_code)
        return subject_of(backend, setting, f"opened in {time.perf_counter() - start:.1f} s")
    if file in _ULTRALYTICS and ending:
        return _ultralytics(file, model, setting, _side(name, ending))
    return FACTORIES[check_choice("--subjects", name, FACTORIES)](model, setting)


def predict(subject: Subject, images: NDArray[np.uint8], device: torch.device) -> Labels:
    """Images to label maps, preprocessing included: uint8 RGB (N, H, W, 3) to (N, H, W)."""
    batch = subject.prepared(images, device)
    with torch.inference_mode():
        return subject.label(batch)


def subject_of(backend: Backend, setting: Setting, preparation: str = "none") -> Subject:
    """A backend with the exact fused decoding, or one that gives label maps itself."""
    if backend.output == "labels":

        def compact(labels: Tensor) -> Labels:
            return _compact(labels, backend.num_classes)

        return Subject(backend.labels, compact, preparation, backend)

    def decode(logits: Tensor) -> Labels:
        return _compact(upsample_argmax(logits, setting.size), logits.shape[1])

    return Subject(backend.logits, decode, preparation, backend)


def _compact(labels: Tensor, num_classes: int) -> Labels:
    """Ids in as few bytes as they need, on the CPU."""
    return labels.to(torch.uint8 if num_classes <= 256 else torch.int16).cpu().numpy()


class _ResizedEveryTime:
    """Attention biases as in the published code: resized at every use."""

    def __call__(
        self, table: Tensor, index: Tensor, queries: int, keys: int, training: bool
    ) -> Tensor:
        return F.interpolate(table[:, index][None], size=(queries, keys), mode="bicubic")[0]


def _plain(model: CGRSeg, setting: Setting) -> Subject:
    """The published arithmetic, eager, float32."""
    model = copy.deepcopy(model).to(setting.device).eval()
    for module in model.modules():
        if isinstance(getattr(module, "bias", None), AttentionBias):
            module.bias = cast(Any, _ResizedEveryTime())

    def decode(logits: Tensor) -> Labels:
        resized = F.interpolate(logits, size=setting.size, mode="bilinear", align_corners=False)
        resized = F.interpolate(resized, size=setting.size, mode="bilinear", align_corners=False)
        return _compact(F.softmax(resized, dim=1).argmax(dim=1), logits.shape[1])

    return Subject(model, decode)


def _eager(
    model: CGRSeg, setting: Setting, precision: Precision = "fp32", channels_last: bool = False
) -> Subject:
    network = copy.deepcopy(model)
    return subject_of(TorchBackend(network, setting.device, precision, channels_last), setting)


def _folded(precision: Precision, model: CGRSeg, setting: Setting) -> Subject:
    start = time.perf_counter()
    network = fast_form(model, precision=precision)
    backend = TorchBackend(network, setting.device, channels_last=True)
    return subject_of(backend, setting, f"folded in {time.perf_counter() - start:.1f} s")


def _compiled(precision: Precision, model: CGRSeg, setting: Setting) -> Subject:
    backend = CompiledBackend(model, setting.device, precision, folder=setting.folder)
    steps = []
    for batch in setting.batches:
        if batch > 1 and setting.device.type == "cpu":
            continue  # images of a batch run one after another there
        done = backend.prepare(*setting.size, batch, warm_up=setting.warm_up)
        steps.append(
            f"{done.how} in {done.seconds:.1f} s" + f" ({done.reason})" * bool(done.reason)
        )
    return subject_of(backend, setting, ", ".join(steps))


# Published sizes (Xie et al. 2021, arXiv 2105.15203, table 6 of the appendix).
_SEGFORMER = {"segformer-b0": (32, 64, 160, 256), "segformer-b1": (64, 128, 320, 512)}


def _segformer(name: str, model: CGRSeg, setting: Setting) -> Subject:
    """Hugging Face's SegFormer with its own post-processing; weights are freshly drawn.

    Its logits have a quarter of the input's size.
    """
    library = require("transformers", name, otherwise="or leave this subject out")
    config = library.SegformerConfig(
        hidden_sizes=list(_SEGFORMER[name]),
        depths=[2, 2, 2, 2],
        decoder_hidden_size=256,
        num_labels=model.num_classes,
    )
    network = library.SegformerForSemanticSegmentation(config).to(setting.device).eval()
    processor = library.SegformerImageProcessor()
    outputs: Any = require("transformers.modeling_outputs", name)

    def logits(batch: Tensor) -> Tensor:
        found: Tensor = network(pixel_values=batch).logits
        return found

    def decode(logits: Tensor) -> Labels:
        maps = processor.post_process_semantic_segmentation(
            outputs.SemanticSegmenterOutput(logits=logits),
            target_sizes=[setting.size] * len(logits),
        )
        return _compact(torch.stack(maps), logits.shape[1])

    return Subject(logits, decode, peer=True)


_ULTRALYTICS = {
    f"yolo26{scale}-sem{runtime}": f"yolo26{scale}-sem.yaml"
    for runtime in ("", "-openvino")
    for scale in "nsmlx"
}


def _side(name: str, ending: str) -> int:
    """Side of the square input that a name ends with."""
    if not ending.isascii() or not ending.isdigit() or not int(ending) or int(ending) % 32:
        raise ConfigError(
            "--subjects",
            found=name,
            expected="a multiple of 32 after the @: the side of the square network input",
            remedy="for example yolo26n-sem@640",
        )
    return int(ending)


def _ultralytics(name: str, model: CGRSeg, setting: Setting, side: int | None = None) -> Subject:
    """Ultralytics' semantic network (AGPL, installed by the user); weights are freshly drawn.

    The label map is made as their predictor makes it: logits resized to the input, then to the
    image, best class.  In OpenVINO, as their export makes it: the graph itself resizes the logits
    and takes the best class, and the class map is resized.
    """
    tasks = require("ultralytics.nn.tasks", name, otherwise="or leave this subject out")
    start = time.perf_counter()
    network = tasks.SemanticSegmentationModel(
        _ULTRALYTICS[name], ch=3, nc=model.num_classes, verbose=False
    )
    network = network.to(setting.device).eval().fuse(verbose=False)
    size = setting.size if side is None else (side, side)

    def decode(logits: Tensor) -> Labels:
        for target in dict.fromkeys((size, setting.size)):
            logits = F.interpolate(logits, size=target, mode="bilinear", align_corners=False)
        return _compact(logits.max(dim=1).indices, logits.shape[1])

    if not name.endswith("-openvino"):
        return Subject(network, decode, size=size, peer=True)
    example = torch.zeros(1, 3, *size)
    logits = _in_openvino(network, example, name)
    head = network.model[-1]
    head.export, head.format = True, "openvino"
    class_map = _in_openvino(network, example, name)

    def labels(batch: Tensor) -> Labels:
        maps = class_map(batch).numpy()
        if setting.size == size:
            return cast(Labels, maps)
        shape = setting.size[::-1]
        return np.stack([cv2.resize(m, shape, interpolation=cv2.INTER_NEAREST) for m in maps])

    seconds = time.perf_counter() - start
    how = f"converted in {seconds:.1f} s"
    return Subject(logits, decode, how, labels=labels, size=size, peer=True)


def _in_openvino(module: torch.nn.Module, example: Tensor, name: str) -> Callable[[Tensor], Tensor]:
    """A module as a function that OpenVINO computes in float32, for inputs like the example."""
    openvino = require("openvino", name)
    with torch.inference_mode():
        graph = openvino.convert_model(module, example_input=example, input=[example.shape])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = core(name).compile_model(graph, "CPU", settings).create_infer_request()

    def run(batch: Tensor) -> Tensor:
        request.infer([batch.numpy()], share_inputs=True)
        # The runtime writes its next result to the same memory.
        return torch.from_numpy(np.array(request.get_output_tensor(0).data))

    return run


FACTORIES: dict[str, Factory] = {
    "plain": _plain,
    "eager": _eager,
    "eager-channels-last": functools.partial(_eager, channels_last=True),
    "eager-bf16": functools.partial(_eager, precision="bf16"),
    "eager-fp16": functools.partial(_eager, precision="fp16"),
}
"""Subject name to the function that builds the subject; others can be added."""

for _precision in PRECISIONS:
    FACTORIES[f"folded-{_precision}"] = functools.partial(_folded, _precision)
    FACTORIES[f"compiled-{_precision}"] = functools.partial(_compiled, _precision)
for _name in _SEGFORMER:
    FACTORIES[_name] = functools.partial(_segformer, _name)
for _name in _ULTRALYTICS:
    FACTORIES[_name] = functools.partial(_ultralytics, _name)
