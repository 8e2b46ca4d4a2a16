"""Results of `scripts/gpu_check.py`: one JSON file per piece, and a README.md that shows them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def write_result(folder: Path, name: str, record: Record) -> None:
    """Write the result of a piece; the file is whole or not there."""
    _write(folder / f"{name}.json", json.dumps(record, indent=1) + "\n")


def read_results(folder: Path) -> dict[str, Record]:
    """Results by name of the piece."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        found[record["piece"]] = record
    return found


def write_readme(folder: Path, pieces: Sequence[Any]) -> None:
    """Write README.md from the results."""
    known = read_results(folder)
    environment = known.get("environment", {}).get("result", {})
    lines = ["# Results on a GPU", "", "Made by `make gpu-check`; one JSON file per piece.", ""]
    if any(record["device"] == "cpu" for record in known.values()):
        lines += ["**A rehearsal on a CPU at tiny sizes: no figure here means anything.**", ""]
    lines += [f"- {name}: {value}" for name, value in environment.items() if value]
    lines += ["", "| piece | state | seconds | |", "|---|---|---:|---|"]
    for piece in pieces:
        record = known.get(piece.name)
        if record is None:
            lines.append(f"| {piece.name} | not run | | {piece.title} |")
            continue
        note = piece.title if record["status"] == "done" else record["error"][0]
        state = "**failed**" if record["status"] == "failed" else record["status"]
        lines.append(f"| {piece.name} | {state} | {record['seconds']:.0f} | {_cell(note)} |")
    failed = [record for record in known.values() if record["status"] == "failed"]
    if failed:
        lines += ["", "## What failed", ""]
    for record in failed:
        lines += [f"### {record['piece']}", "", "```", *record["error"][:7], "```", ""]
    lines += _bench_tables(known) + _training_table(known) + _other_results(known)
    _write(folder / "README.md", "\n".join(lines) + "\n")


def _bench_tables(known: dict[str, Record]) -> list[str]:
    rows: dict[str, dict[tuple[int, str], str]] = {}
    for record in known.values():
        found = record.get("result", {})
        works: dict[tuple[str, int, str], dict[str, Any]] = {}
        for row in found.get("bench", []):
            works.setdefault((row["variant"], row["batch"], row["subject"]), {})[row["work"]] = row
        equal = {one["subject"]: one["equal_labels"] for one in found.get("agreements", [])}
        for (variant, batch, subject), by_work in works.items():
            labels = by_work["labels"]
            memory = found.get("memory", {}).get(variant, {}).get(subject)
            cells = [
                *(_milliseconds(by_work.get(key)) for key in ("network", "labels", "photo")),
                f"{labels['images_per_second']:.0f}",
                f"{labels['ratio']['median']:.2f}",
                f"{100 * equal[subject]:.3f} %" if subject in equal else "",
                f"{memory['grown'] / 2**20:.0f}" if memory else "",
            ]
            line = f"| {batch} | {subject} | {' | '.join(cells)} |"
            rows.setdefault(variant, {}).setdefault((batch, subject), line)
    lines = []
    if rows:
        lines += ["", "## Prediction", "", "Milliseconds per batch (median). Ratio and label"]
        lines += ["agreement are to the plain path of the same run, from tensor to label map."]
        lines += ["`compiled` has CUDA graphs."]
    for variant, of_variant in rows.items():
        lines += ["", f"### {variant}", ""]
        lines += ["| batch | path | network | to labels | image | images/s | times faster |"]
        lines[-1] += " equal labels | added MiB |"
        lines += ["|---:|---|---:|---:|---:|---:|---:|---:|---:|"]
        lines += [of_variant[key] for key in sorted(of_variant, key=lambda key: key[0])]
    return lines


def _training_table(known: dict[str, Record]) -> list[str]:
    lines = []
    for record in known.values():
        for row in record.get("result", {}).get("training", []):
            peak = row.get("extra_peak_bytes")
            memory = "" if peak is None else f"{peak / 2**20:.0f}"
            lines.append(
                f"| {row['model']} | {row['step']} | {row['images_per_second']:.1f} | "
                f"{row['times_plain']:.2f} | {memory} |"
            )
    if not lines:
        return []
    head = ["| network | step | images/s | times plain | extra peak, MiB |"]
    return ["", "## Training step", "", *head, "|---|---|---:|---:|---:|", *lines]


def _other_results(known: dict[str, Record]) -> list[str]:
    lines = []
    for name, record in known.items():
        found = {k: v for k, v in record.get("result", {}).items() if k not in _TABLES}
        if found and name != "environment":
            lines += [f"- {name}: " + "; ".join(f"{k} {_short(v)}" for k, v in found.items())]
    return ["", "## Other results", "", *lines] if lines else []


_TABLES = ("bench", "training", "agreements", "memory")


def _milliseconds(row: dict[str, Any] | None) -> str:
    return f"{row['seconds']['median'] * 1e3:.2f}" if row else ""


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:160]


def _write(file: Path, text: str) -> None:
    part = file.with_name(f"{file.name}.partial")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
