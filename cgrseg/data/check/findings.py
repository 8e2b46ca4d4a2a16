"""What a check found, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cgrseg.errors import DataError

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

CODES: dict[str, str] = {
    "split-missing": "the settings name a split that the dataset does not have",
    "split-unlabelled": "the settings name a split that is published without labels",
    "too-few-images": "too few images for an automatic split",
    "folder-missing": "a folder of the dataset is not there",
    "no-images": "a folder holds no images",
    "list-unusable": "a split list cannot be read or is empty",
    "list-repeats": "a split list names a stem twice",
    "list-without-image": "a split list names a stem that has no image",
    "split-overlap": "a stem belongs to two splits",
    "missing-label": "an image has no label",
    "orphan-label": "a label has no image",
    "duplicate-stem": "two images have one stem",
    "image-unreadable": "an image is empty, cut off or no image at all",
    "image-depth": "an image has an alpha channel or more than 8 bits",
    "label-unreadable": "a label is damaged or truncated",
    "label-colour": "a label is a colour picture, not class ids",
    "label-depth": "a label holds ids beyond 8 bits",
    "size-mismatch": "image and label differ in size",
    "id-out-of-range": "ids outside the class list",
    "label-not-ids": "a label with so many strange values that it cannot hold class ids",
    "sister-encoding": "ids of another edition or form of the dataset",
    "shifted-by-one": "every class seems to be stored one id away",
    "zero-reduced-twice": "labels that count from 0 already, read as if 0 meant unlabelled",
    "class-never-occurs": "a class that no label holds",
    "nothing-labelled": "a label in which every pixel is ignored",
    "mostly-ignored": "more than half of a split's pixels are ignored",
    "single-class": "only one class occurs in a whole split",
    "leak-identical": "one image is in two splits",
    "leak-near-identical": "two splits hold nearly the same image",
    "duplicate-image": "one image is twice in a split",
}
"""Every code that a finding can have, with its meaning."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

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
    """An error of severity 'error' from one of our messages, whose last line says what to do."""
    message, _, remedy = str(error).partition("\n  what to do: ")
    message = message.removeprefix(f"{path}: ").replace("\n  expected: ", "; expected: ")
    return Finding("error", code, str(path), message, remedy or "see the message")


@dataclass(frozen=True)
class SplitSummary:
    """What one split holds.

    Attributes:
        pairs: images with labels.
        inspected: how many of the labels were decoded.
        pixels: pixels per class, in the order of the class list.
        images: labels in which the class occurs, in the same order.
        ignored: pixels that count nowhere.
        sizes: smallest and largest image as (height, width), by area; None: none seen.
    """

    pairs: int
    inspected: int
    pixels: tuple[int, ...]
    images: tuple[int, ...]
    ignored: int
    sizes: tuple[tuple[int, int], tuple[int, int]] | None


@dataclass
class CheckReport:
    """Everything that a check found.

    Attributes:
        dataset: name of the dataset.
        root: its folder.
        classes: names in id order.
        findings: worst first, then in the order found.
        splits: split name to what it holds: the histogram of classes among it.
        quick: whether only a part was looked at.
        seconds: wall-clock time.
    """

    dataset: str
    root: str
    classes: tuple[str, ...]
    findings: list[Finding] = field(default_factory=list)
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    quick: bool = False
    seconds: float = 0.0

    def add(self, found: Iterable[Finding]) -> None:
        """Add findings, leaving out those that are there, and keep the order."""
        self.findings = list(dict.fromkeys([*self.findings, *found]))
        self.findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))

    def of(self, severity: Severity) -> list[Finding]:
        """Findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.of("error")

    def exit_code(self, *, strict: bool = False) -> int:
        """0 when usable, 1 on errors; with `strict` on warnings too."""
        return 1 if not self.ok or (strict and self.of("warning")) else 0

    def raise_for_errors(self) -> None:
        """Stop when there are errors.

        Raises:
            DataError: names the first files concerned and what to do.
        """
        errors = self.of("error")
        if not errors:
            return
        lines = [f"{self.root}: {len(errors)} problems that training cannot live with"]
        lines += _sentences(errors[:5])
        if len(errors) > 5:
            lines.append(f"and {len(errors) - 5} more; `cgrseg data check` lists all of them")
        raise DataError("\n".join(lines))

    def histogram(self) -> dict[str, dict[str, int]]:
        """Pixels per class name, for each split."""
        return {
            name: dict(zip(self.classes, split.pixels, strict=True))
            for name, split in self.splits.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "dataset": self.dataset,
            "root": self.root,
            "ok": self.ok,
            "quick": self.quick,
            "seconds": round(self.seconds, 3),
            "classes": list(self.classes),
            "counts": {severity: len(self.of(severity)) for severity in SEVERITIES},
            "findings": [asdict(finding) for finding in self.findings],
            "splits": {name: asdict(split) for name, split in self.splits.items()},
        }

    def text(self, *, per_code: int = 5) -> str:
        """The findings in words, at most `per_code` files of each kind."""
        lines = [f"{self.dataset} in {self.root}"]
        for name, split in self.splits.items():
            total = sum(split.pixels) + split.ignored
            share = f", {split.ignored / total:.1%} of the pixels ignored" if total else ""
            present = sum(1 for count in split.pixels if count)
            lines.append(
                f"  {name}: {split.pairs} pairs, {split.inspected} labels read, "
                f"{present} of {len(self.classes)} classes occur{share}"
            )
        for severity in SEVERITIES:
            by_code: dict[str, list[Finding]] = {}
            for finding in self.of(severity):
                by_code.setdefault(finding.code, []).append(finding)
            for code, group in by_code.items():
                lines.append(f"{severity}: {CODES[code]} ({code}, {len(group)}x)")
                lines += _sentences(group[:per_code])
                if len(group) > per_code:
                    lines.append(f"  and {len(group) - per_code} more of this kind")
        counts = [f"{len(self.of(s))} {s}{'s' * (len(self.of(s)) != 1)}" for s in SEVERITIES]
        lines.append(", ".join(counts) + f" in {self.seconds:.1f} s")
        return "\n".join(lines)


def _sentences(findings: Sequence[Finding]) -> list[str]:
    """One line for each finding; advice that several in a row share is given once."""
    lines = []
    for place, finding in enumerate(findings):
        lines.append(f"  {finding.file}: {finding.message}")
        if place + 1 == len(findings) or findings[place + 1].remedy != finding.remedy:
            lines.append(f"    what to do: {finding.remedy}")
    return lines
