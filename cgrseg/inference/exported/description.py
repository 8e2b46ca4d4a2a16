"""What an exported file says about itself, so that nothing has to be told again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cgrseg.errors import WeightsError

Size = tuple[int, int]
Side = Annotated[int, Field(ge=1, le=65_536)]
Kind = Literal["onnx", "openvino", "pt2", "aoti"]
InputKind = Literal["normalised", "pixels"]
OutputKind = Literal["logits", "labels"]

Run = Callable[[NDArray[np.generic]], NDArray[np.generic]]
"""An exported file in its runtime: one whole input to its output."""

KEY = "cgrseg"
"""Name under which the description lies in a file's metadata."""

_FORMAT = 1


class Description(BaseModel):
    """Kept as JSON in the metadata of every exported file.

    Attributes:
        format: version of this description.
        kind: which format the file has.
        variant: of the network.
        num_classes: K.
        classes: names in id order; None: the checkpoint had none.
        palette: RGB 0..255 per class; None likewise.
        mean: of the normalisation, RGB, on values 0..255.
        std: likewise.
        test: test settings of the checkpoint; None: it had none.
        sizes: heights and widths that the file takes; None: any multiples of 32 between
            `smallest` and `largest`.
        smallest: side in pixels.
        largest: likewise; None: no limit.
        batch: images at once; None: any number.
        takes: "normalised" float32 (N, 3, H, W), or "pixels" uint8 RGB (N, H, W, 3).
        gives: "logits" (N, K, H / 8, W / 8), or "labels" (N, H, W).
        precision: of the weights in the file.
        source: name of the checkpoint's file or folder.
        source_digest: of its weights.
        version: of this package.
        weights_file_digest: of a second file that belongs to it; empty: there is none.
        file_digest: of the file itself, see :mod:`cgrseg.inference.exported.seal`; empty where
            the format has checksums.
    """

    model_config = ConfigDict(frozen=True)

    format: int = _FORMAT
    kind: Kind
    variant: str
    num_classes: int = Field(ge=1, le=65_535)
    classes: list[str] | None
    palette: list[tuple[int, int, int]] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    test: dict[str, Any] | None
    sizes: list[tuple[Side, Side]] | None
    smallest: Side = 32
    largest: Side | None = None
    batch: int | None = Field(ge=1, le=65_535)
    takes: InputKind
    gives: OutputKind
    precision: Literal["fp32", "int8"]
    source: str
    source_digest: str
    version: str
    weights_file_digest: str = ""
    file_digest: str = ""

    @classmethod
    def read(cls, text: str | None, path: Path) -> Description:
        """From the JSON of a file's metadata.

        Raises:
            WeightsError: there is none, or it is not one of ours.
        """
        if not text:
            raise WeightsError(
                path,
                found="a model without the description that cgrseg writes into its exports: a "
                "file of another program, or one that was cut short",
                expected="a file made by cgrseg export",
                remedy="export the checkpoint with cgrseg export; networks of other origin "
                "can be wrapped in a Backend (docs/inference.md)",
            )
        try:
            found = cls.model_validate_json(text)
        except ValidationError as error:
            raise WeightsError(
                path,
                found=f"a description that cannot be understood ({error.errors()[0]['msg']})",
                expected=f"format {_FORMAT}, as this version writes it",
                remedy="export the checkpoint again, or update cgrseg",
            ) from error
        if found.format != _FORMAT:
            raise WeightsError(
                path,
                found=f"a description of format {found.format}",
                expected=f"format {_FORMAT}",
                remedy="export the checkpoint again with this version, or update cgrseg",
            )
        return found
