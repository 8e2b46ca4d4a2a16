"""Backends: what runs the network, behind one interface.

Everything else of inference (sizes, windows, scales, decoding) asks the backend, never its
type.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cgrseg.devices import resolve_device
from cgrseg.errors import EnvironmentProblem
from cgrseg.precision import AnyPrecision, Precision, choose_precision, dtype_of, slow_precision

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Logits: TypeAlias = Any
"""Logits where they are: an array on a CPU, a tensor on a GPU."""

_LOG = logging.getLogger("cgrseg.inference")


class Backend:
    """Base class of everything that runs a network.

    A subclass sets `device` and `num_classes` and implements :meth:`logits`; the other members
    have defaults.  Backends pickle: PyTorch modules among their attributes travel as bytes.

    Attributes:
        device: where inputs should be, and where logits come back.
        num_classes: channels of the logits, K.
        in_channels: channels of the input, C.
        sizes: accepted input heights and widths; None: multiples of 32.
        output: "logits", or "labels" where only :meth:`labels` works.
        precision: of the arithmetic.
        precision_reason: why "auto" means this precision; empty: it was given by name.
        compiled: whether input shapes are compiled, so that :meth:`prepare` pays.
        seconds_preparing: time spent so far on compiling, loading and warming up.
        arrays: whether :meth:`logits` and :meth:`labels` take and give NumPy arrays, not tensors.
        chooses: whether the backend chooses the form of the network.
        choice: the forms that ran, and why; empty where nothing was chosen.
        advice: what would be faster, and how to get it; empty if nothing.
        side_by_side: whether several Python threads may run it at the same time.
    """

    device: torch.device
    num_classes: int
    in_channels: int = 3
    sizes: Sequence[tuple[int, int]] | None = None
    output: Literal["logits", "labels"] = "logits"
    precision: Precision = "fp32"
    precision_reason: str = ""
    compiled: bool = False
    seconds_preparing: float = 0.0
    side_by_side: bool = False
    arrays: bool = False
    chooses: bool = False

    @property
    def choice(self) -> str:
        """See the attributes of the class."""
        return ""

    @property
    def advice(self) -> str:
        """See the attributes of the class."""
        return ""

    @property
    def on_cpu(self) -> bool:
        """Whether the network runs on a CPU."""
        return self.device.type == "cpu"

    def logits(self, batch: Any) -> Any:
        """Logits of a batch.

        Args:
            batch: tensor, float32 (N, C, H, W), normalized, H and W multiples of 32; an array
                where `arrays` is set.

        Returns:
            (N, K, H / 8, W / 8), any floating type, on the device of the backend.
        """
        raise NotImplementedError

    def labels(self, batch: Any) -> Any:
        """Label maps (N, H, W) of a batch, where `output` is "labels"."""
        raise NotImplementedError

    def features(self, batch: Tensor) -> Tensor:
        """Features (N, C) of whole images, to compare images: mean logits in a grid of 4x4.

        Args:
            batch: tensor, float32 (N, C, H, W), as for :meth:`logits`.
        """
        import torch.nn.functional as F

        return F.adaptive_avg_pool2d(self.logits(batch).float(), 4).flatten(1)

    def digest(self) -> str | None:
        """SHA-256 of the weights, or of the opened file; None: unknown."""
        return None

    def prepare(self, height: int, width: int, batch: int = 1) -> object:
        """Get ready for an input shape, so that no later image waits."""
        return None

    def expect(self, images: int) -> None:
        """Learn how many images are to come: a form that takes seconds to build may pay."""

    def use_precision(self, name: AnyPrecision) -> None:
        """Set the precision; log why "auto" means it, and a warning if it is slow here.

        Raises:
            ConfigError: an unknown precision.
        """
        choice = choose_precision(self.device, name)
        self.precision, self.precision_reason = choice.precision, choice.reason
        if choice.reason:
            _LOG.info("precision: %s", choice)
        if warning := slow_precision(self.device, self.precision):
            _LOG.warning(warning)

    def __getstate__(self) -> dict[str, Any]:
        from torch import nn

        return {
            name: _PackedModule.of(value) if isinstance(value, nn.Module) else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        import torch

        self.__dict__.update(state)
        try:
            self.device = resolve_device(self.device)
        except EnvironmentProblem:
            _LOG.warning(
                "%s is not there, where this Predictor comes from: it uses the CPU", self.device
            )
            self.device = torch.device("cpu")
        for name, value in state.items():
            if isinstance(value, _PackedModule):
                setattr(self, name, value.module(self.device))


@dataclass(frozen=True)
class _PackedModule:
    """A PyTorch module in a pickle, as bytes.

    Pickled tensors are shared with worker processes through a file descriptor each, of which a
    process may open about a thousand.
    """

    content: bytes

    @classmethod
    def of(cls, module: nn.Module) -> _PackedModule:
        import torch

        content = io.BytesIO()
        torch.save(module, content)
        return cls(content.getvalue())

    def module(self, device: torch.device) -> nn.Module:
        import torch

        found: nn.Module = torch.load(
            io.BytesIO(self.content), map_location=device, weights_only=False
        )
        return found


def run_network(backend: Backend, batch: NDArray[np.float32]) -> Logits:
    """Logits of a batch, float32 (N, C, H, W): an array from a CPU, else a tensor on its device."""
    if backend.arrays:
        return backend.logits(batch)
    import torch

    with torch.inference_mode():
        logits: Tensor = backend.logits(torch.from_numpy(batch))
        if logits.device.type != "cpu":
            return logits
        return (logits if logits.dtype == torch.float64 else logits.float()).numpy()


def run_labels(backend: Backend, batch: NDArray[np.float32]) -> NDArray[np.integer]:
    """Label maps (N, H, W) of a batch, from a backend whose `output` is "labels"."""
    if backend.arrays:
        return backend.labels(batch)  # type: ignore[no-any-return]
    import torch

    with torch.inference_mode():
        found: Tensor = backend.labels(torch.from_numpy(batch))
        return found.cpu().numpy()


def joined(parts: Sequence[Logits], axis: int) -> Logits:
    """Logits of several runs side by side along an axis."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis=axis)
    import torch

    return torch.cat(list(parts), dim=axis)


class TorchBackend(Backend):
    """The PyTorch module itself, in eval mode.

    Args:
        model: a module with `num_classes`, from (N, C, H, W) to (N, K, H/8, W/8).
        device: where to run; None: where the module is.
        precision: "fp32"; "bf16" or "fp16" run matrix products and convolutions in 16 bits
            (autocast), the rest and the decoding stay in 32; "auto": bf16 where the device
            computes it in hardware, else fp32.
        channels_last: memory layout of images and features.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device | None = None,
        precision: AnyPrecision = "fp32",
        channels_last: bool = False,
    ) -> None:
        import torch

        from cgrseg.models import CGRSeg

        home = next(model.parameters()).device
        self.device = home if device is None else resolve_device(device)
        self.use_precision(precision)
        self.num_classes = int(model.num_classes)  # type: ignore[arg-type]
        self.in_channels = int(getattr(model, "in_channels", 3))
        self.channels_last = channels_last
        self.side_by_side = isinstance(model, CGRSeg)
        self.model = model.to(self.device).eval()
        if channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __repr__(self) -> str:
        name = getattr(self.model, "variant", type(self.model).__name__)
        return f"TorchBackend({name}, {self.device}, {self.precision})"

    def logits(self, batch: Tensor) -> Tensor:
        """See :class:`Backend`."""
        import torch

        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        batch = batch.to(self.device, memory_format=layout)
        autocast: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self.precision != "fp32":
            autocast = torch.autocast(self.device.type, dtype=dtype_of(self.precision))
        with torch.inference_mode(), autocast:
            return self.model(batch)  # type: ignore[no-any-return]

    def features(self, batch: Tensor) -> Tensor:
        """See :class:`Backend`; for CGRSeg the mean of the backbone's features at stride 32."""
        backbone = getattr(self.model, "backbone", None)
        if backbone is None:
            return super().features(batch)
        import torch

        with torch.inference_mode():
            deepest: Tensor = backbone(batch.to(self.device))[-1]
        return deepest.float().mean(dim=(2, 3))

    def digest(self) -> str:
        """SHA-256 of the weights as they are now."""
        from cgrseg.models.digest import weights_digest

        return weights_digest(self.model)
