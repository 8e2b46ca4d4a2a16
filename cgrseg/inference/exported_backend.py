"""Exported networks (`cgrseg export`) as a backend, on the CPU."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.devices import keep_freed_memory
from cgrseg.errors import CGRSegError, ConfigError, EnvironmentProblem, WeightsError
from cgrseg.formats import format_of, open_file
from cgrseg.formats.base import Run
from cgrseg.formats.description import Description, Size
from cgrseg.inference.backends import Backend
from cgrseg.precision import AnyPrecision, Precision, PrecisionChoice, choose_precision
from cgrseg.surroundings import raise_machine_problem

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger("cgrseg.inference")

Array = NDArray[np.generic]
_Method = Callable[["ExportedBackend", Array], Array]


def _of_tensors_too(method: _Method) -> Callable[[ExportedBackend, Any], Any]:
    """A tensor instead of an array gives a tensor."""

    @functools.wraps(method)
    def run(backend: ExportedBackend, batch: Any) -> Any:
        if isinstance(batch, np.ndarray):
            return method(backend, batch)
        import torch

        return torch.from_numpy(method(backend, batch.detach().cpu().float().numpy()))

    return run


class ExportedBackend(Backend):
    """An exported file in its runtime, which takes and gives NumPy arrays.

    An input below a size that the file accepts is padded with zeros at the right and the
    bottom, as images are, and the output is cropped.  A batch that the file does not accept
    runs in parts.

    Args:
        description: what the file says about itself.
        run: the file in its runtime.
        source: name of the file, for messages.
        reopen: opens the file again when a pickle is loaded; None: it cannot be pickled.
        precision: what the runtime computes in, and why.
    """

    arrays = True
    on_cpu = True

    def __init__(
        self,
        description: Description,
        run: Run,
        source: str,
        *,
        reopen: Callable[[Description], ExportedBackend] | None = None,
        precision: PrecisionChoice | None = None,
    ) -> None:
        self.description = description
        if precision is not None:
            self.precision, self.precision_reason = precision.precision, precision.reason
        self.num_classes = description.num_classes
        self.in_channels = description.in_channels
        self.sizes = description.sizes
        self.output = description.gives
        self._run = run
        self._source = source
        self._reopen = reopen

    def __repr__(self) -> str:
        return f"ExportedBackend({self._source}, {self.description.kind}, cpu)"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The CPU, as PyTorch names it."""
        import torch

        return torch.device("cpu")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is None:
            raise TypeError(f"{self._source}: only a backend that was opened from a file pickles")
        return self._reopen, (self.description,)

    def digest(self) -> str | None:
        """SHA-256 of the bytes that were opened: the file may be another one by now."""
        return self.description.file_digest or None

    @_of_tensors_too
    def logits(self, batch: Array) -> Array:
        """See :class:`Backend`; a tensor gives a tensor, here and in :meth:`labels`.

        Raises:
            ConfigError: the file outputs label maps, or accepts no input as large.
            WeightsError: the runtime failed.
        """
        if self.output != "logits":
            raise ConfigError(
                self._source,
                found="a file that gives label maps",
                expected="logits, which windows, several scales, mirroring and confidence need",
                remedy="export it again: cgrseg export CHECKPOINT --output logits",
            )
        height, width = batch.shape[2:]
        return self._in_parts(self.padded(batch))[:, :, : height // 8, : width // 8]

    @_of_tensors_too
    def labels(self, batch: Array) -> Array:
        """See :class:`Backend`; errors as for :meth:`logits`."""
        height, width = batch.shape[2:]
        return self._in_parts(self.padded(batch))[:, :height, :width]

    @_of_tensors_too
    def padded(self, batch: Array) -> Array:
        """The batch, zero-padded at the right and the bottom to a size that the file accepts.

        Raises:
            ConfigError: the file accepts no input as large.
        """
        height, width = batch.shape[2:]
        target = self._accepted_size(height, width)
        if target is None:
            largest = self.description.largest
            listed = (
                f"sides of at most {largest}, for which it was exported"
                if self.sizes is None
                else f"at most {' or '.join(f'{h}x{w}' for h, w in self.sizes)}, the sizes that it "
                "was exported for"
            )
            raise ConfigError(
                self._source,
                found=f"an input of {height}x{width} pixels",
                expected=listed,
                remedy="windows of at most this (test.mode=slide)"
                if self.sizes is None
                else "export it for this size: cgrseg export CHECKPOINT --size "
                f"{height}x{width}; or for any size: cgrseg export CHECKPOINT",
            )
        if target == (height, width):
            return batch
        return np.pad(batch, ((0, 0), (0, 0), (0, target[0] - height), (0, target[1] - width)))

    @_of_tensors_too
    def seen(self, batch: Array) -> Array:
        """The batch as the network in the file sees it: padded, and in whole pixels if so exported.

        Raises:
            ConfigError: the file accepts no input as large.
        """
        padded = self.padded(batch)
        if self.description.takes == "normalised":
            return padded
        pixels = self._as_input(padded).transpose(0, 3, 1, 2).astype(np.float32)
        mean, std = self._normalization()
        return (pixels - mean) / std

    def _normalization(self) -> tuple[NDArray[np.float32], ...]:
        both = (self.description.mean, self.description.std)
        return tuple(np.array(each, np.float32).reshape(1, -1, 1, 1) for each in both)

    def _accepted_size(self, height: int, width: int) -> Size | None:
        """The smallest accepted size that holds an input; None: there is none."""
        if self.sizes is None:
            smallest, largest = self.description.smallest, self.description.largest
            if largest is not None and max(height, width) > largest:
                return None
            return max(height, smallest), max(width, smallest)
        fitting = [size for size in self.sizes if size[0] >= height and size[1] >= width]
        return min(fitting, key=lambda size: size[0] * size[1]) if fitting else None

    def _in_parts(self, batch: Array) -> Array:
        """Run a batch, in parts of the batch size that the file accepts."""
        array = self._as_input(batch)
        fixed = self.description.batch
        if fixed is None or len(array) == fixed:
            return np.asarray(self._in_runtime(array))
        found = []
        for start in range(0, len(array), fixed):
            part = array[start : start + fixed]
            missing = fixed - len(part)
            whole = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            found.append(np.array(self._in_runtime(whole))[: len(part)])
        return np.concatenate(found)

    def _in_runtime(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        try:
            return self._run(array)
        except CGRSegError:
            raise
        except Exception as error:  # every runtime has exception classes of its own
            raise_machine_problem(error, self._source)
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[0][:200] if lines else type(error).__name__
            shape = "x".join(str(side) for side in array.shape)
            raise WeightsError(
                self._source,
                found=f"its runtime failed on an input of {shape} ({reason})",
                expected="an input that the file was exported for, and memory for it",
                remedy="try a smaller image or batch size; export the checkpoint again with the "
                "versions installed here: cgrseg export CHECKPOINT --size HEIGHTxWIDTH",
            ) from error

    def _as_input(self, batch: Array) -> Array:
        normalized = batch.astype(np.float32, copy=False)
        if self.description.takes == "normalised":
            return np.ascontiguousarray(normalized)
        # Back to the pixels that the batch was made of: exact except for the padding, whose
        # zeros become the whole number next to the mean.
        mean, std = self._normalization()
        pixels = np.clip(np.rint(normalized * std + mean), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def open_exported(
    path: str | Path,
    device: str | torch.device | None = None,
    precision: AnyPrecision = "fp32",
    *,
    trust_code: bool = False,
    keep_memory: bool = True,
) -> ExportedBackend:
    """Open an exported file in its runtime.

    Args:
        path: file with the suffix of an export format.
        device: None, "auto" or "cpu".
        precision: "bf16" or "fp16" where the runtime computes in them (OpenVINO), else "fp32":
            the precision of the file.  "auto" is bf16 where both the runtime and the CPU's
            hardware compute it.
        trust_code: run the machine code of a compiled package (`--format aoti`), which can do
            whatever the user can; no other format holds code.
        keep_memory: let the C library keep freed memory for the next image (Linux, whole
            process; see :func:`~cgrseg.devices.keep_freed_memory`).

    Raises:
        ConfigError: a precision that the format does not have, or a compiled package without
            `trust_code`.
        EnvironmentProblem: its runtime is not installed, or another device was asked for.
        WeightsError: no such file, a damaged one, or one of other origin.
    """
    file = Path(path)
    if device is not None and str(device) not in ("auto", "cpu"):
        raise EnvironmentProblem(
            f"device {device}",
            found=f"{file.name}, an exported file, which is run on the CPU",
            expected="cpu",
            remedy="leave the device out, or predict with the checkpoint itself",
        )
    choice = choose_precision("cpu", precision)
    if choice.reason and len(format_of(file).precisions) == 1:
        choice = PrecisionChoice("fp32", "files of this format compute as they were exported")
    description, run = open_file(file, choice.precision, trust_code=trust_code)
    if choice.reason:
        _LOG.info("precision: %s", choice)
    if keep_memory:
        keep_freed_memory()
    return ExportedBackend(
        description,
        run,
        file.name,
        reopen=functools.partial(
            _reopen, str(file.absolute()), choice.precision, trust_code, keep_memory
        ),
        precision=choice,
    )


def _reopen(
    path: str, precision: Precision, trust_code: bool, keep_memory: bool, description: Description
) -> ExportedBackend:
    """Open the file of a pickled backend."""
    backend = open_exported(
        path, precision=precision, trust_code=trust_code, keep_memory=keep_memory
    )
    if backend.description != description:
        raise WeightsError(
            path,
            found="another export than the Predictor had opened before it was pickled",
            expected="the same file",
            remedy="open the present file with Predictor.from_pretrained",
        )
    return backend
