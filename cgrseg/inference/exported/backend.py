"""What all exported networks share: sizes, batches and kinds of input that a file takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cgrseg.errors import CGRSegError, ConfigError, WeightsError
from cgrseg.inference.exported.description import Description, Size
from cgrseg.surroundings import raise_machine_problem

Run = Callable[[NDArray[np.generic]], NDArray[np.generic]]
"""The file in its runtime: one whole input to its output."""


class ExportedBackend:
    """A :class:`~cgrseg.inference.backends.Backend` over an exported file, on the CPU.

    An input below a size that the file takes is padded with zeros at the right and the
    bottom, as photos are, and the logits are cut back.  A batch that the file does not take
    is run in parts.

    Args:
        description: what the file holds.
        run: the file in its runtime.
        source: its name, for messages.
        has_threads: whether the runtime has threads of its own beside PyTorch's.
        reopen: opens the file again, where a pickle of this arrives; None: it cannot be pickled.

    Attributes:
        num_classes: K.
        sizes: heights and widths that the file takes; None: any multiples of 32 that the
            description allows.
        has_threads: see above.
    """

    def __init__(
        self,
        description: Description,
        run: Run,
        source: str,
        *,
        has_threads: bool = False,
        reopen: Callable[[Description], ExportedBackend] | None = None,
    ) -> None:
        self.description = description
        self.device = torch.device("cpu")
        self.num_classes = description.num_classes
        self.sizes: list[Size] | None = description.sizes
        self.has_threads = has_threads
        self._run = run
        self._source = source
        self._reopen = reopen

    def __repr__(self) -> str:
        return f"ExportedBackend({self._source}, {self.description.kind}, {self.device})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is None:
            raise TypeError(f"{self._source}: only a backend that was opened from a file pickles")
        return self._reopen, (self.description,)

    def logits(self, batch: Tensor) -> Tensor:
        """See :class:`~cgrseg.inference.backends.Backend`.

        Raises:
            ConfigError: the file gives label maps, or takes no input as large.
            WeightsError: the runtime failed.
        """
        if self.description.gives != "logits":
            raise ConfigError(
                self._source,
                found="a file that gives label maps",
                expected="logits, which windows, several scales, mirroring and confidence need",
                remedy="export it again: cgrseg export CHECKPOINT --output logits",
            )
        height, width = batch.shape[2:]
        return self._in_parts(self.padded(batch))[:, :, : height // 8, : width // 8]

    def labels(self, batch: Tensor) -> Tensor:
        """Label maps (N, H, W) of a normalised batch (N, 3, H, W), from a file that gives them."""
        height, width = batch.shape[2:]
        return self._in_parts(self.padded(batch))[:, :height, :width]

    def padded(self, batch: Tensor) -> Tensor:
        """The batch with zeros at the right and the bottom, in a size that the file takes.

        Raises:
            ConfigError: it takes none as large.
        """
        height, width = batch.shape[2:]
        goal = self._goal(height, width)
        if goal is None:
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
        if goal == (height, width):
            return batch
        return F.pad(batch, (0, goal[1] - width, 0, goal[0] - height))

    def seen(self, batch: Tensor) -> Tensor:
        """What the network in the file gets of a batch: padded, and whole pixels if it takes them.

        Raises:
            ConfigError: the file takes no input as large.
        """
        padded = self.padded(batch)
        if self.description.takes == "normalised":
            return padded
        pixels = torch.from_numpy(self._as_input(padded)).permute(0, 3, 1, 2).float()
        mean, std = self._normalisation()
        return (pixels - mean) / std

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        mean, std = self.description.mean, self.description.std
        return torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)

    def _goal(self, height: int, width: int) -> Size | None:
        """The smallest size of the file that holds an input; None: there is none."""
        if self.sizes is None:
            least, most = self.description.smallest, self.description.largest
            if most is not None and max(height, width) > most:
                return None
            return max(height, least), max(width, least)
        fitting = [size for size in self.sizes if size[0] >= height and size[1] >= width]
        return min(fitting, key=lambda size: size[0] * size[1]) if fitting else None

    def _in_parts(self, batch: Tensor) -> Tensor:
        """Run a batch, in parts of the size that the file takes."""
        array = self._as_input(batch.detach().cpu())
        fixed = self.description.batch
        if fixed is None or len(array) == fixed:
            return torch.from_numpy(np.asarray(self._in_runtime(array)))
        found = []
        for start in range(0, len(array), fixed):
            part = array[start : start + fixed]
            missing = fixed - len(part)
            whole = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            found.append(np.array(self._in_runtime(whole))[: len(part)])
        return torch.from_numpy(np.concatenate(found))

    def _in_runtime(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        try:
            return self._run(array)
        except CGRSegError:
            raise
        except Exception as error:  # every runtime has classes of its own
            raise_machine_problem(error, self._source)
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            told = lines[0][:200] if lines else type(error).__name__
            shape = "x".join(str(side) for side in array.shape)
            raise WeightsError(
                self._source,
                found=f"its runtime failed on an input of {shape} ({told})",
                expected="an input that the file was exported for, and memory for it",
                remedy="try a smaller photo or batch; export the checkpoint again with the "
                "versions installed here: cgrseg export CHECKPOINT --size HEIGHTxWIDTH",
            ) from error

    def _as_input(self, batch: Tensor) -> NDArray[np.generic]:
        if self.description.takes == "normalised":
            return np.ascontiguousarray(batch.float().numpy())
        # Back to the pixels that the batch was made of: exact but for padding, whose zeros
        # become the whole number next to the mean.
        mean, std = self._normalisation()
        pixels = (batch * std + mean).round_().clamp_(0, 255).to(torch.uint8)
        return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
