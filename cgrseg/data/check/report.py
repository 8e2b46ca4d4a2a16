"""Report of a check, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from cgrseg.config.schema import ChannelsConfig
from cgrseg.datasets.findings import (
    CODES,
    SEVERITIES,
    Finding,
    Severity,
    describe,
    raise_for_errors,
)


@dataclass(frozen=True)
class SplitSummary:
    """Content of one split.

    Attributes:
        pairs: number of images with labels.
        inspected: number of labels that were decoded.
        pixels: pixels per class, in the order of the class list.
        images: labels in which the class occurs, in the same order.
        ignored: number of ignored pixels.
        sizes: smallest and largest image as (height, width), by area; None: none seen.
        median: image of the middle area as (height, width); None: none seen.
        source: folder or list that the split comes from, below the dataset root.
    """

    pairs: int
    inspected: int
    pixels: tuple[int, ...]
    images: tuple[int, ...]
    ignored: int
    sizes: tuple[tuple[int, int], tuple[int, int]] | None
    source: str = ""
    median: tuple[int, int] | None = None


@dataclass(repr=False)
class CheckReport:
    """Findings and split summaries of a check.

    Attributes:
        dataset: name of the dataset.
        root: dataset root.
        classes: class names in id order.
        findings: worst first, then in the order found.
        splits: split name to its content.
        quick: whether only some of the files were read.
        channels: channels of the images with mean and deviation over training images; None: 8-bit
            RGB, or not measured.
        seconds: wall-clock time.
    """

    dataset: str
    root: str
    classes: tuple[str, ...]
    findings: list[Finding] = field(default_factory=list)
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    quick: bool = False
    channels: ChannelsConfig | None = None
    seconds: float = 0.0

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.of(severity))} {severity}s" for severity in SEVERITIES)
        return f"CheckReport({self.dataset} in {self.root}: {counts})"

    def add(self, found: Iterable[Finding]) -> None:
        """Add new findings."""
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
        raise_for_errors(self.root, self.findings)

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
            **({} if self.channels is None else {"channels": self.channels.model_dump()}),
        }

    def text(self, *, per_code: int = 5) -> str:
        """The report in words, with at most `per_code` findings of each code."""
        lines = [f"{self.dataset} in {self.root}"]
        for name, split in self.splits.items():
            total = sum(split.pixels) + split.ignored
            share = f", {split.ignored / total:.1%} of the pixels ignored" if total else ""
            present = sum(1 for count in split.pixels if count)
            lines.append(
                f"  {name} ({split.source}): {split.pairs} pairs, {split.inspected} labels read, "
                f"{present} of {len(self.classes)} classes occur{share}"
            )
        if self.channels is not None:
            rows = zip(
                *(self.channels.names or [], self.channels.types or []),
                *(self.channels.mean or [], self.channels.std or []),
                strict=True,
            )
            lines += [
                f"  {name}: {kind}, mean {mean:.6g}, standard deviation {std:.6g}"
                for name, kind, mean, std in rows
            ]
        by_code: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            by_code.setdefault((finding.severity, finding.code), []).append(finding)
        for (severity, code), group in by_code.items():
            lines.append(f"{severity}: {CODES[code]} ({code}, {len(group)}x)")
            lines += describe(group[:per_code])
            if len(group) > per_code:
                lines.append(f"  and {len(group) - per_code} more of this kind")
        counts = [f"{len(self.of(s))} {s}{'s' * (len(self.of(s)) != 1)}" for s in SEVERITIES]
        lines.append(", ".join(counts) + f" in {self.seconds:.1f} s")
        return "\n".join(lines)
