"""The description in every exported file, and the digest that shows damage.

ONNX and OpenVINO files have no checksums: a changed byte gives other weights or another graph
without an error, or ends the runtime that reads it.  So their description holds the SHA-256 of
the file, taken while the 64 characters of the digest are zeros.  It shows damage, not malice:
whoever changes a file on purpose can write a new digest.

Formats without metadata of their own have the description in a ZIP archive behind the model.
Runtimes read a file from its beginning and ignore what follows; TensorFlow Lite's tools append
their metadata alike.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cgrseg.errors import WeightsError
from cgrseg.formats.names import format_names
from cgrseg.input_files import read_input
from cgrseg.surroundings import raise_machine_problem

Size = tuple[int, int]
Side = Annotated[int, Field(ge=1, le=65_536)]
InputKind = Literal["normalised", "pixels"]
OutputKind = Literal["logits", "labels"]
StoredPrecision = Literal["fp32", "fp16", "int8"]

KEY = "cgrseg"
"""Name of the description in a file's metadata."""

UNSEALED = "0" * 64
"""The digest while the file is not complete yet."""

_FORMAT = 1
_APPENDED = "cgrseg.json"
_LARGEST_APPENDED = 16 << 20


class Description(BaseModel):
    """What an exported file says about itself: JSON in its metadata.

    Attributes:
        format: version of this description.
        kind: name of the export format.
        variant: variant of the network.
        head: head of the network.
        num_classes: K.
        classes: names in id order; None: the checkpoint had none.
        palette: RGB 0..255 per class; None: the checkpoint had none.
        mean: mean for normalization per channel of the images, in RGB of values 0..255.
        std: standard deviation for normalization, likewise.
        test: test settings of the checkpoint; None: it had none.
        sizes: heights and widths that the file takes; None: any multiples of 32 between
            `smallest` and `largest`.
        smallest: smallest side in pixels.
        largest: largest side in pixels; None: no limit.
        batch: batch size; None: any.
        takes: "normalised" float32 (N, C, H, W), or "pixels" uint8 RGB (N, H, W, 3).
        gives: "logits" (N, K, H / 8, W / 8), or "labels" (N, H, W).
        precision: precision of the weights in the file.
        agreement: share 0..1 of pixels that get the float32 network's label, as the export measured
            it, in the worst comparison; None: a float32 file, which is within tolerance.
        delegated: share 0..1 of the multiply-adds that the runtime's fast kernels compute, where a
            runtime hands parts of a network to such kernels; None: it has one kind.
        compared: whether the file was compared with the float32 network.
        source: name of the checkpoint's file or folder.
        source_digest: digest of the checkpoint's weights.
        version: version of this package.
        weights_file_digest: SHA-256 of the other file of an export, which is not the one with the
            description; empty: there is none.
        file_digest: SHA-256 of the file itself; empty: the format has checksums.
    """

    model_config = ConfigDict(frozen=True)

    format: int = _FORMAT
    kind: str
    variant: str
    head: str = "dpg"
    num_classes: int = Field(ge=1, le=65_535)
    classes: list[str] | None
    palette: list[tuple[int, int, int]] | None
    mean: list[float] = Field(min_length=1, max_length=128)
    std: list[float] = Field(min_length=1, max_length=128)
    test: dict[str, Any] | None
    sizes: list[tuple[Side, Side]] | None
    smallest: Side = 32
    largest: Side | None = None
    batch: int | None = Field(ge=1, le=65_535)
    takes: InputKind
    gives: OutputKind
    precision: StoredPrecision
    agreement: float | None = Field(None, ge=0, le=1)
    delegated: float | None = Field(None, ge=0, le=1)
    compared: bool = True
    source: str
    source_digest: str
    version: str
    weights_file_digest: str = ""
    file_digest: str = ""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in format_names():
            raise ValueError(f"kind should be one of {', '.join(format_names())}")
        return kind

    @property
    def in_channels(self) -> int:
        """Channels of the input, C."""
        return len(self.mean)

    @property
    def first_side(self) -> int:
        """Axis of the input's height; the next one is its width."""
        return 1 if self.takes == "pixels" else 2

    @classmethod
    def read(cls, text: str | None, path: Path) -> Description:
        """The description in the metadata of a file.

        Raises:
            WeightsError: there is none, or it cannot be used.
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

    def unsealed(self, **changes: Any) -> str:
        """JSON of the description with changes, and with zeros as the digest of the file."""
        return self.model_copy(update={**changes, "file_digest": UNSEALED}).model_dump_json()


def sealed(content: bytes) -> bytes:
    """The content of a complete file with its digest in place of :data:`UNSEALED`."""
    assert content.count(UNSEALED.encode()) == 1
    return content.replace(UNSEALED.encode(), hashlib.sha256(content).hexdigest().encode())


def check_digest(content: bytes, description: Description, path: Path, expected: str) -> None:
    """Compare the content of a file with the digest in its description.

    Args:
        content: content of the file.
        description: description in the file.
        path: the file.
        expected: kind of the file, for the message.

    Raises:
        WeightsError: the content is not what was written, or there is no digest.
    """
    digest = description.file_digest.encode()
    if len(digest) != len(UNSEALED):
        raise WeightsError(
            path,
            found="an export without a digest of itself, from an earlier version",
            expected="a file as this version writes it, with a digest of itself",
            remedy="export the checkpoint again",
        )
    place = content.rfind(digest)  # the only one in a whole file
    found = hashlib.sha256(memoryview(content)[:place])
    found.update(UNSEALED.encode())
    found.update(memoryview(content)[place + len(digest) :])
    if found.hexdigest().encode() != digest:
        raise damaged(path, expected, "its bytes are not those that were written")


def append_description(path: Path, description: Description) -> None:
    """Append a ZIP archive with the description to a model.

    Args:
        path: complete file of the runtime.
        description: gets the digest of the file and of itself.
    """
    text = description.unsealed()
    digest = hashlib.sha256(read_input(path) + text.encode()).hexdigest()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(_APPENDED), text.replace(UNSEALED, digest))


def read_appended(path: Path, expected: str) -> tuple[Description, bytes]:
    """The description behind a model, and the model itself.

    Args:
        path: the file.
        expected: kind of the file, for the message.

    Raises:
        WeightsError: there is no description, or the content is not what was written.
    """
    content = read_input(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entry = archive.getinfo(_APPENDED)
            if entry.file_size > _LARGEST_APPENDED:
                raise zipfile.BadZipFile("its description is too large")
            text, start = archive.read(entry).decode(), entry.header_offset
    except (zipfile.BadZipFile, KeyError):
        return Description.read(None, path), b""  # raises
    except Exception as error:  # damaged bytes can fail in any of a dozen ways
        raise damaged(path, expected, error) from error
    description = Description.read(text, path)
    unsealed = text.replace(description.file_digest, UNSEALED)
    if hashlib.sha256(content[:start] + unsealed.encode()).hexdigest() != description.file_digest:
        raise damaged(path, expected, "its bytes are not those that were written")
    return description, content[:start]


def weights_beside(path: Path) -> Path:
    """The `.bin` file that belongs to a graph file; errors as for :func:`file_beside`."""
    return file_beside(
        path.with_suffix(".bin"),
        path,
        expected="both files of the model in one folder, with the same name",
        remedy="copy the .bin file too",
    )


def file_beside(beside: Path, path: Path, *, expected: str, remedy: str) -> Path:
    """A further file of an export.

    Args:
        beside: the further file.
        path: the file that the user named.
        expected: for the message.
        remedy: likewise.

    Raises:
        WeightsError: it is not there.
    """
    if not beside.is_file():
        raise WeightsError(
            path, found=f"no {beside.name} beside it", expected=expected, remedy=remedy
        )
    return beside


def damaged(path: Path, expected: str, reason: object) -> WeightsError:
    """The error for a file that its runtime cannot read, with the runtime's first line.

    Raises:
        EnvironmentProblem: memory, open files or threads are used up; the file is not to blame.
    """
    if isinstance(reason, BaseException):
        raise_machine_problem(reason, path)
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    first = lines[0][:200] if lines else type(reason).__name__
    size = path.stat().st_size if path.is_file() else 0
    return WeightsError(
        path,
        found=f"a file of {size:,} bytes that cannot be read ({first})",
        expected=expected,
        remedy="the file is damaged or cut short: copy it again, or export the checkpoint again",
    )
