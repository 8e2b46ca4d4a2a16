"""Findings: what is wrong with a dataset, each with severity, code, file, message and remedy.

A check lists all findings; a run stops at the first error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cgrseg.errors import DataError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

_SHOWN_ERRORS = 5

CODES: dict[str, str] = {
    "split-missing": "the settings name a split that the dataset does not have",
    "split-unlabelled": "the settings name a split that is published without labels",
    "too-few-images": "too few images for an automatic split",
    "folder-missing": "a folder of the dataset is not there",
    "no-images": "a folder holds no images",
    "list-unusable": "a split list cannot be read or is empty",
    "list-repeats": "a split list names a stem twice",
    "list-without-image": "a split list names a stem that has no image",
    "list-without-label": "a split list names a label that is not there",
    "layout": "how the folders of the dataset are read",
    "folder-left-out": "images that belong to no split",
    "link-loop": "a symbolic link that leads back to a folder above it",
    "one-class": "a class list with a single class",
    "binary-labels": "labels of 0 and 255, where 255 means ignored",
    "stored-values": "labels whose values are not the class ids",
    "nothing-to-learn": "fewer than two classes are labeled in the training split",
    "split-overlap": "a stem belongs to two splits",
    "missing-label": "an image has no label",
    "orphan-label": "a label has no image",
    "duplicate-stem": "two images, or two labels, have one stem",
    "image-unreadable": "an image is empty, truncated or not an image",
    "image-depth": "an image has an alpha channel or more than 8 bits",
    "image-types": "an image has values of another type than the others",
    "image-bits": "16-bit images that use fewer or more bits than they are read with",
    "label-unreadable": "a label is damaged or truncated",
    "label-colour": "a label is a color image, not class ids",
    "label-depth": "a label holds ids beyond 8 bits",
    "conversion-unfinished": "an overwriting conversion was stopped: label maps of two encodings",
    "size-mismatch": "image and label differ in size",
    "id-out-of-range": "ids outside the class list",
    "label-not-ids": "a label with so many unexpected values that it cannot hold class ids",
    "sister-encoding": "ids of another edition or form of the dataset",
    "shifted-by-one": "every class seems to be stored one id away",
    "zero-reduced-twice": "labels that count from 0 already, read as if 0 meant unlabeled",
    "class-never-occurs": "a class that no label holds",
    "nothing-labelled": "a label in which every pixel is ignored",
    "mostly-ignored": "more than half of a split's pixels are ignored",
    "single-class": "only one class occurs in a whole split",
    "leak-identical": "one image is in two splits",
    "leak-place": "georeferenced images of two splits overlap or touch",
    "leak-near-identical": "two splits hold nearly the same image",
    "duplicate-image": "one image is twice in a split",
}
"""Code of a finding to its meaning."""


@dataclass(frozen=True)
class Finding:
    """One problem or notice.

    Attributes:
        severity: 'error': training would fail or learn wrong labels; 'warning':
            probably not meant; 'note': worth knowing.
        code: a key of :data:`CODES`.
        file: file, folder or split concerned.
        message: what was found and what was expected.
        remedy: what to do.
    """

    severity: Severity
    code: str
    file: str
    message: str
    remedy: str

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unknown finding {self.code!r}")


def finding_from_error(code: str, path: Path, error: DataError) -> Finding:
    """The finding of severity 'error' with the parts of an error's message."""
    message, _, remedy = str(error).partition("\n  what to do: ")
    message = message.removeprefix(f"{path}: ").replace("\n  expected: ", "; expected: ")
    return Finding("error", code, str(path), message, remedy or "see the message")


def describe(findings: Sequence[Finding]) -> list[str]:
    """Lines of text for findings; a remedy that several in a row share is given once."""
    lines = []
    for finding, after in zip(findings, [*findings[1:], None], strict=True):
        lines.append(f"  {finding.file}: {finding.message}")
        if after is None or after.remedy != finding.remedy:
            lines.append(f"    what to do: {finding.remedy}")
    return lines


def raise_for_errors(root: Path | str, findings: Iterable[Finding]) -> None:
    """Stop when there are errors among the findings.

    Raises:
        DataError: names the first files concerned and what to do.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    if len(errors) == 1:
        only = errors[0]
        raise DataError(f"{only.file}: {only.message}\n  what to do: {only.remedy}")
    kinds = Counter(finding.code for finding in errors)
    counts = ", ".join(f"{CODES[code]} ({count}x)" for code, count in kinds.items())
    lines = [f"{root}: {len(errors)} problems stop training and evaluation: {counts}"]
    lines += describe(errors[:_SHOWN_ERRORS])
    if len(errors) > _SHOWN_ERRORS:
        lines.append(
            f"and {len(errors) - _SHOWN_ERRORS} more; `cgrseg data check` lists all of them"
        )
    raise DataError("\n".join(lines))
