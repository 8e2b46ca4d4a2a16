"""The fastest form of a network that is ready, per size of its input: what `--compile auto` means.

On a CPU, the first of these:

- compiled: a compiled network of an earlier run is in the cache;
- openvino: OpenVINO is installed, and enough images wait for a conversion in memory to pay;
- folded: the folded network, uncompiled;
- published: the network as published, whose attention is bounded in memory, for large inputs.

Nothing is compiled and no file is written.  In float32 all forms give the same logits within 1e-5
relative.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cgrseg.devices import resolve_device
from cgrseg.errors import ConfigError, EnvironmentProblem
from cgrseg.inference import compiled_cache
from cgrseg.inference.backends import Backend, TorchBackend
from cgrseg.inference.compiled_backend import CHOOSING, CompiledBackend, Shape, cached_network
from cgrseg.models import CGRSeg
from cgrseg.precision import AnyPrecision

_LOG = logging.getLogger("cgrseg.inference")

Form = Literal["compiled", "openvino", "folded", "published"]
# A conversion takes about as long as OpenVINO saves on input images of this many pixels in all,
# per thread; a decision by pixels and not by time is the same in every run.
_PIXELS_TO_CONVERT = 10_000_000
_IMAGES_TO_CONVERT = 4  # images of a size before its share of the coming images is estimated
_PROCESSORS = ("x86_64", "AMD64")  # where OpenVINO was measured
_MOST_FOLDED_PIXELS = 1 << 21  # in a batch; attention of the folded network is not in parts
_MOST_DIFFERENT = 1e-4  # relative difference of a conversion's logits
_TEXTS: dict[Form, str] = {
    "compiled": "compiled network of an earlier run",
    "openvino": "OpenVINO, whose conversion pays for many images",
    "folded": "folded network",
    "published": "network as published, for large inputs",
}


class ReadyBackend(CompiledBackend):
    """The folded network, or a faster form of it that is ready.

    Args:
        model: trained; read, never changed.
        device: where to run; None: where the model is.
        precision: see :class:`CompiledBackend`.
        folder: cache of compiled networks; None: :func:`compiled_cache.default_folder`.

    Attributes:
        used: number of images by form, so far.
    """

    compiled = False
    chooses = True

    def __init__(
        self,
        model: CGRSeg,
        device: str | torch.device | None = None,
        precision: AnyPrecision = "fp32",
        *,
        folder: Path | str | None = None,
    ) -> None:
        super().__init__(model, device, precision, folder=folder, compile_after=0)
        self._published = TorchBackend(model, self.device, self.precision)
        self.used: Counter[Form] = Counter()
        self._expected = 0
        self._images: Counter[Shape] = Counter()
        self._forms: dict[Shape, Form] = {}
        self._convertible, self._no_conversion = True, ""
        self._threads = torch.get_num_threads()  # fewer beside other images, see `fewer_threads`

    def __repr__(self) -> str:
        return f"ReadyBackend({self._network.variant}, {self.device}, {self.precision})"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_forms": {}}

    def expect(self, images: int) -> None:
        """See :class:`~cgrseg.inference.backends.Backend`."""
        self._expected = images + self._images.total()

    def logits(self, batch: Tensor) -> Tensor:
        """See :class:`~cgrseg.inference.backends.Backend`."""
        images, _, height, width = batch.shape
        shape = (1, height, width)
        with CHOOSING:
            self._images[shape] += images
            large = images * height * width > _MOST_FOLDED_PIXELS and self._runner(shape) is None
        found = self._published.logits(batch) if large else super().logits(batch)
        known: Form = "compiled" if shape in self._runners else "folded"  # see `prepare`
        with CHOOSING:
            self.used["published" if large else self._forms.get(shape, known)] += images
        return found

    @property
    def choice(self) -> str:
        """See :class:`~cgrseg.inference.backends.Backend`."""
        parts = [f"{_TEXTS[form]} ({count} images)" for form, count in self.used.most_common()]
        reason = f": no compiled network was ready, {self._no_conversion}"
        return ", ".join(parts) + (reason if self._mostly_folded else "")

    @property
    def advice(self) -> str:
        """See :class:`~cgrseg.inference.backends.Backend`."""
        if not self._mostly_folded:
            return ""
        lacking = compiled_cache.missing_compiler(self.device)
        if lacking:
            return f"a compiled network is faster: {lacking}"
        return "--compile makes it about twice as fast after a minute per image size"

    @property
    def _mostly_folded(self) -> bool:
        return [form for form, _ in self.used.most_common(1)] == ["folded"]

    def _runner(self, shape: Shape) -> Callable[[Tensor], Tensor] | None:
        if shape[0] > 1 or self.device.type != "cpu":
            return None  # `logits` runs a batch image by image where a form is ready
        if shape in self._runners:
            self._runners.move_to_end(shape)
            return self._runners[shape]
        if len(self._runners) >= self.most_sizes:
            return None
        start = time.perf_counter()
        runner = None
        form: Form = "folded"
        if shape not in self._forms:
            runner, form = self._cached(shape), "compiled"
        if runner is None and self._conversion_pays(shape):
            runner, form = self._converted(shape), "openvino"
        self._forms[shape] = "folded" if runner is None else form
        if runner is None:
            return None
        self._runners[shape] = runner
        self.seconds_preparing += time.perf_counter() - start
        return runner

    def _cached(self, shape: Shape) -> Callable[[Tensor], Tensor] | None:
        try:
            return cached_network(self._path(shape))
        except EnvironmentProblem as problem:
            _LOG.warning("the compiled network in the cache is not used: %s", problem)
            return None

    def _conversion_pays(self, shape: Shape) -> bool:
        """Whether OpenVINO is there, and images enough of this size are to come."""
        seen, images = self._images.total(), self._images[shape]
        coming = max(0, self._expected - seen) * images / seen
        enough = coming * shape[1] * shape[2] >= _PIXELS_TO_CONVERT * self._threads
        if self.precision != "fp32":
            self._no_conversion = f"OpenVINO is for fp32, not {self.precision}"
        elif platform.machine() not in _PROCESSORS:
            self._no_conversion = "OpenVINO was not measured on this processor"
        elif importlib.util.find_spec("openvino") is None:
            self._no_conversion = "OpenVINO is not installed"
        elif self._convertible:
            self._no_conversion = "too few images were to come for a conversion to OpenVINO"
            small = shape[1] * shape[2] <= _MOST_FOLDED_PIXELS
            return enough and small and images >= _IMAGES_TO_CONVERT
        return False

    def _converted(self, shape: Shape) -> Callable[[Tensor], Tensor] | None:
        """The folded network in OpenVINO; None where OpenVINO cannot run it."""
        from cgrseg.formats.openvino_format import run_in_memory

        _LOG.info(
            "converting the network to OpenVINO for inputs of %dx%d: some seconds", *shape[1:]
        )
        self._convertible = False  # until it has worked
        self._network.prepare(*shape[1:])
        example = torch.randn(
            1, self.in_channels, *shape[1:], generator=torch.Generator().manual_seed(0)
        )
        try:
            with torch.no_grad():
                # Tracing changes a module while it runs; other threads use the network.
                traced = copy.deepcopy(self._network)
                program = torch.export.export(traced, (example,), strict=False)
                run = run_in_memory(program, self._threads)
                expected = self._network(example)
                found = torch.from_numpy(run(example.numpy()))
            different = float((found - expected).norm() / expected.norm())
            if not different <= _MOST_DIFFERENT:
                raise RuntimeError(f"its logits differ by {different:.1e}")
        except Exception as error:  # the runtime raises RuntimeError for everything
            first = str(error).strip().splitlines() or [type(error).__name__]
            self._no_conversion = f"OpenVINO does not run it ({first[0]})"
            _LOG.warning("the folded network goes on: %s", self._no_conversion)
            return None
        self._convertible = True
        one_at_a_time = threading.Lock()

        def infer(batch: Tensor) -> Tensor:
            with one_at_a_time:  # on all threads of the runtime
                return torch.from_numpy(run(batch.contiguous().numpy()))

        return infer


def make_backend(
    model: CGRSeg,
    device: str | torch.device | None = None,
    precision: AnyPrecision = "fp32",
    *,
    compile: bool | Literal["auto"] = False,
    channels_last: bool = False,
) -> Backend:
    """The backend of a network: its module as published, or its folded and compiled form.

    The one place where prediction and evaluation choose.

    Args:
        model: trained.
        device: where to run; None or "auto": a GPU where there is one.
        precision: "fp32", "bf16", "fp16" or "auto".
        compile: several times faster after a compilation of about a minute per image size,
            which is cached on disk; "auto": the fastest form that is ready, on a CPU;
            see docs/speed.md.
        channels_last: memory layout of features; the other forms always have it.

    Raises:
        ConfigError: unknown precision, or another value of `compile`.
        EnvironmentProblem: no such device.
    """
    if compile not in (True, False, "auto"):
        raise ConfigError(
            "compile",
            found=repr(compile),
            expected='True, False or "auto"',
            remedy="correct it, or leave it out for its default",
        )
    where = resolve_device(device)
    if compile == "auto" and where.type == "cpu":
        return ReadyBackend(model, where, precision)
    if compile and compile != "auto":
        return CompiledBackend(model, where, precision)
    return TorchBackend(model, where, precision, channels_last)
