"""What an export format provides: how a network is written in it, and how its files are run.

Modules of formats import PyTorch where they write or run a network in it, not before: a file of
another runtime is used without it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from cgrseg.errors import EnvironmentProblem
from cgrseg.formats.description import (
    Description,
    InputKind,
    OutputKind,
    Size,
    StoredPrecision,
)
from cgrseg.precision import Precision

if TYPE_CHECKING:
    from torch import nn

    from cgrseg.models import CGRSeg

Run = Callable[[NDArray[np.generic]], NDArray[np.generic]]
"""An opened file: from its input, a whole batch, to its output."""


class Inputs(Protocol):
    """Calibration inputs, each a whole batch; they can be iterated several times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[NDArray[np.generic]]: ...


@dataclass(frozen=True)
class ExportJob:
    """What is exported.

    Attributes:
        model: trained network, in eval mode on the CPU.
        graph: makes the network as a module for one input size, or for any multiples of 32
            (None).  The module takes the input and gives the output of the description.
        description: goes into the file.
        opset: version of the ONNX operators.
    """

    model: CGRSeg
    graph: Callable[[Size | None], nn.Module]
    description: Description
    opset: int = 18

    @property
    def size(self) -> Size | None:
        """The input size if there is exactly one, else None: the file takes any."""
        sizes = self.description.sizes
        return sizes[0] if sizes is not None and len(sizes) == 1 else None


class ExportFormat(ABC):
    """One export format.

    Attributes:
        suffix: file name suffix, lower case.
        main_file: name of the file that stands for an export that is a folder; empty: it is a file.
        packages: import names of the packages that writing and checking a file needs.
        options: options of `cgrseg export` for this format alone.
        stored: precisions that the weights in a file can have.
        precisions: precisions that a file can compute in at run time.
        folder: whether an export is a folder.
        compared: whether files can be opened here, and are compared with the network.
        runs_code: whether opening a file runs machine code that it holds.
        needs_compiler: whether writing needs a C++ compiler.
        needs_sizes: whether a file takes given input sizes only.
        one_size: whether it takes one of them.
        one_image: whether its batch size is always 1.
        inputs: kinds of input that a file can have.
        outputs: kinds of output, likewise.
        default_batch: batch size of the file unless one is given; None: any.
        stem_ending: added to the checkpoint's name in the default file name.
    """

    suffix: ClassVar[str]
    main_file: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ()
    stored: ClassVar[tuple[StoredPrecision, ...]] = ("fp32",)
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    folder: ClassVar[bool] = False
    compared: ClassVar[bool] = True
    runs_code: ClassVar[bool] = False
    needs_compiler: ClassVar[bool] = False
    needs_sizes: ClassVar[bool] = False
    one_size: ClassVar[bool] = False
    one_image: ClassVar[bool] = False
    inputs: ClassVar[tuple[InputKind, ...]] = ("normalised", "pixels")
    outputs: ClassVar[tuple[OutputKind, ...]] = ("logits", "labels")
    default_batch: ClassVar[int | None] = None
    stem_ending: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """Name for `cgrseg export --format`: the module's name without its ending."""
        return type(self).__module__.rpartition(".")[2].removesuffix("_format")

    def prepare(self, description: Description) -> None:
        """Fail before long work where a network cannot be written, or get what writing needs."""
        return

    @abstractmethod
    def write(self, job: ExportJob, path: Path) -> None:
        """Write a network to a new file."""

    @abstractmethod
    def open(self, path: Path, precision: Precision = "fp32") -> tuple[Description, Run]:
        """Description of a file, and the function that runs it.

        Args:
            path: file of this format.
            precision: one of `precisions`; the file's weights stay as they are.

        Raises:
            EnvironmentProblem: the runtime is not installed.
            WeightsError: a damaged file, or one that is not an export.
        """

    def describe(self, path: Path) -> Description:
        """Description of a file; no code of the file is run.  Errors are those of :meth:`open`."""
        return self.open(path)[0]

    def files(self, path: Path) -> tuple[Path, ...]:
        """Files that an export consists of, in the order in which they are put in place."""
        return (path,)

    def other_runs(self, path: Path) -> Iterator[tuple[str, Description, Run]]:
        """Other ways to run a file for any size, which are compared as well, with a title each."""
        yield from ()


class InMemoryFormat(ExportFormat):
    """A format whose model is in memory first: a file is written again when more is known of it.

    Where the `precision` of the description is "fp16", :meth:`build` or :meth:`save` makes float16
    weights; input and output stay as they are.
    """

    @abstractmethod
    def build(self, job: ExportJob) -> Any:
        """The network as a model of the runtime, in memory."""

    @abstractmethod
    def save(self, model: Any, description: Description, path: Path) -> None:
        """Write a model with its description."""

    def write(self, job: ExportJob, path: Path) -> None:
        """Write a network to a new file."""
        self.save(self.build(job), job.description, path)


class QuantizableFormat(InMemoryFormat):
    """A format that also holds networks with 8-bit integers."""

    @abstractmethod
    def quantize(self, model: Any, inputs: Inputs, kept: Sequence[str]) -> Any:
        """A copy of a model with 8-bit integers.

        Convolutions and matrix products get 8-bit weights (one scale per output channel) and
        8-bit activations.

        Args:
            model: in float32, from :meth:`build`, with inputs of one size.
            inputs: calibration inputs.
            kept: patterns of names of nodes that stay in float32.

        Raises:
            EnvironmentProblem: a package is not installed, or a pattern has no node.
        """


def matching_nodes(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names of nodes that match one of the patterns.

    Raises:
        EnvironmentProblem: no node matches a pattern, which the network's nodes always do.
    """
    found: set[str] = set()
    for pattern in patterns:
        group = {name for name in names if re.fullmatch(pattern, name)}
        if not group:
            raise EnvironmentProblem(
                "quantization",
                found=f"no node of the exported graph has a name like {pattern}",
                expected="nodes that are named after their modules, some of which stay in float32",
                remedy="install the versions of torch and onnxscript that cgrseg was tested "
                "with (constraints.txt)",
            )
        found |= group
    return sorted(found)
