"""What runs the network: one small interface, so that all of them can be swapped.

Everything else of inference (sizes, windows, scales, decoding) only asks a backend for
logits.  :class:`TorchBackend` runs the module as it is; faster forms of it and exported
networks implement the same three members.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import cv2
import torch
from torch import Tensor, nn

from cgrseg.errors import ConfigError, EnvironmentProblem, explain
from cgrseg.inference.precision import (
    DTYPES,
    AnyPrecision,
    resolve_precision,
    slow_precision,
)

if TYPE_CHECKING:
    from cgrseg.models import CGRSeg

_LOG = logging.getLogger("cgrseg.inference")

#: Sides of the network's input are multiples of this: its largest stride.
NETWORK_STRIDE = 32


@runtime_checkable
class Backend(Protocol):
    """A network that can be asked for logits.

    Attributes:
        device: where inputs should be, and where logits come back.
        num_classes: channels of the logits, K.
    """

    device: torch.device
    num_classes: int

    def logits(self, batch: Tensor) -> Tensor:
        """Logits of a batch.

        Args:
            batch: float32 (N, 3, H, W), normalised, H and W multiples of 32.

        Returns:
            (N, K, H / 8, W / 8), any floating type, on :attr:`device`.
        """
        ...


class TorchBackend:
    """The PyTorch module itself, in eval mode.

    Args:
        model: a module with `num_classes`, from (N, 3, H, W) to (N, K, H/8, W/8).
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
        self.device = (
            resolve_device(device) if device is not None else next(model.parameters()).device
        )
        self.precision = resolve_precision(precision, self.device)
        if warning := slow_precision(self.device, self.precision):
            _LOG.warning(warning)
        self.num_classes = int(model.num_classes)  # type: ignore[arg-type]
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(self.device).eval()
        if channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def logits(self, batch: Tensor) -> Tensor:
        """See :class:`Backend`."""
        batch = batch.to(self.device, memory_format=self._format)
        with torch.inference_mode(), self._autocast():
            return self.model(batch)  # type: ignore[no-any-return]

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])


def make_backend(
    model: CGRSeg,
    device: str | torch.device | None = None,
    precision: AnyPrecision = "fp32",
    *,
    compile: bool = False,
    channels_last: bool = False,
) -> Backend:
    """What runs a network: its module as published, or the folded and compiled form of it.

    The one place where prediction and evaluation choose.

    Args:
        model: trained.
        device: where to run; None or "auto": a GPU where there is one.
        precision: "fp32", "bf16", "fp16" or "auto".
        compile: several times faster after a compilation of about a minute per image size,
            which is kept for the next time; see docs/speed.md.
        channels_last: memory layout of features; the compiled form always has it.

    Raises:
        ConfigError: unknown precision.
        EnvironmentProblem: no such device.
    """
    where = resolve_device(device)
    if not compile:
        return TorchBackend(model, where, precision, channels_last)
    from cgrseg.inference.fast import CompiledBackend

    return CompiledBackend(model, where, precision)


def use_threads(threads: int | None) -> None:
    """Let PyTorch and OpenCV use so many threads of the CPU, in the whole process.

    Args:
        threads: at least 1; None leaves both as they are (all cores).

    Raises:
        ConfigError: a number below 1.
    """
    if threads is None:
        return
    if threads < 1:
        raise ConfigError(
            explain(
                "threads",
                found=str(threads),
                expected="1 or more",
                remedy="leave it out to use all cores",
            )
        )
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device that a setting means; None or "auto": a GPU where there is one, else the CPU.

    Raises:
        EnvironmentProblem: the device does not exist here.
    """
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise EnvironmentProblem(
            explain(
                f"device {device}",
                found=str(error).splitlines()[0],
                expected="a device of this machine, such as 'cpu' or 'cuda:0'",
                remedy="choose another device, or leave it out to take the best there is",
            )
        ) from error
    return found
