"""Runs damaged inputs through the readers in a process whose death is recorded.

    python -m tests.fuzz.guard --count 900 --folder /tmp/fuzz

The guard starts a worker for each reader.  The worker writes down the number of each case before
it tries it, so that after a crash the guard knows the input, and goes on behind it.  A case is
drawn by the reader's name and its number: the same numbers give the same inputs.

An outcome is "right" (the undamaged answer), "other" (another valid input, where the format has
no checksums), "refused" (an error of this package) or a fault: "trace" (any other exception),
"wrong" (an impossible answer, or another one in spite of checksums), "outside" (a file beyond the
case's folder) or "crash" (the process ended).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cgrseg.errors import CGRSegError
from tests.fuzz.readers import SELF_TEST, Reader, make_readers

FAULTS = ("trace", "wrong", "outside", "crash")
OUTCOMES = ("right", "other", "refused", *FAULTS)
_MOST_MEMORY = 12 << 30
_LONGEST_CASE = 300  # seconds, by the alarm clock of the system


@dataclass
class Result:
    """Outcomes of one reader, and of each fault the number of its case and what happened."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str, str]] = field(default_factory=list)
    seconds: float = 0.0


def case_of(name: str, reader: Reader, number: int) -> bytes:
    """The damaged input of a number."""
    draw = random.Random(f"{name} {number}")
    return draw.choice(reader.damages)(reader.content, draw)


def undamaged_answer(reader: Reader, folder: Path) -> object:
    """What a reader makes of its undamaged input."""
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / reader.name).write_bytes(reader.content)
    os.chdir(place)
    return reader.read(place)


def try_case(reader: Reader, content: bytes, folder: Path, expected: object) -> tuple[str, str]:
    """One damaged input in a fresh folder below `folder`: outcome, and more of a fault."""
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / reader.name).write_bytes(content)
    os.chdir(place)
    try:
        answer = reader.read(place)
    except CGRSegError:
        outcome, told = "refused", ""
    except Exception:
        outcome, told = "trace", traceback.format_exc()
    else:
        told = ""
        if answer == expected:
            outcome = "right"
        elif reader.checked or not reader.valid(answer):
            outcome, told = "wrong", repr(answer)[:2000]
        else:
            outcome = "other"
    beyond = [entry.name for entry in folder.iterdir() if entry.name != "case"]
    strange = [
        entry.name for entry in place.iterdir() if entry.name not in _OWN | {reader.name, "out"}
    ]
    if beyond or strange:
        outcome, told = "outside", ", ".join(beyond + strange)
    return outcome, told


_OWN = {"a.png", "a.xml", "a.bin", "data.yaml"}  # what readers put beside the damaged file


def _bounded() -> None:
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def work(name: str, start: int, count: int, folder: Path, log: Path) -> None:
    """The worker: try cases from `start` on and append each outcome to `log`."""
    import torch

    _bounded()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    reader = SELF_TEST[name] if name in SELF_TEST else make_readers()[name]
    sandbox = folder / "sandbox"
    sandbox.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        expected = undamaged_answer(reader, sandbox)
        for number in range(start, start + count):
            content = case_of(name, reader, number)
            stream.write(f'{{"case": {number}}}\n')
            stream.flush()
            if hasattr(signal, "alarm"):
                signal.alarm(_LONGEST_CASE)
            outcome, told = try_case(reader, content, sandbox, expected)
            entry = {"case": number, "outcome": outcome, "told": told}
            stream.write(json.dumps(entry) + "\n")


def guard(name: str, count: int, folder: Path) -> Result:
    """Run a reader's cases 0 to `count`, whatever ends the worker."""
    result, start, began = Result(), 0, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.jsonl"
    log.unlink(missing_ok=True)
    while start < count:
        command = [sys.executable, "-m", "tests.fuzz.guard", "--worker", name]
        command += ["--start", str(start), "--count", str(count - start)]
        command += ["--folder", str(folder), "--log", str(log)]
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        entries = (
            [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        )
        if done.returncode and (not entries or "outcome" in entries[-1]):
            raise RuntimeError(f"the worker of {name} does not start: {done.stderr[-3000:]}")
        if not done.returncode:
            break
        started = entries[-1]["case"]
        with log.open("a") as stream:
            told = f"status {done.returncode}: {done.stderr[-500:]}"
            stream.write(json.dumps({"case": started, "outcome": "crash", "told": told}) + "\n")
        start = started + 1
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if "outcome" in entry:
            result.counts[entry["outcome"]] += 1
            if entry["outcome"] in FAULTS:
                result.faults.append((entry["case"], entry["outcome"], entry["told"]))
    result.seconds = time.monotonic() - began
    return result


def table(results: Mapping[str, Result]) -> str:
    """Counts per reader, in Markdown."""
    lines = [f"| reader | inputs | {' | '.join(OUTCOMES)} |", "|" + "---|" * (len(OUTCOMES) + 2)]
    total: Counter[str] = Counter()
    for name, result in results.items():
        total += result.counts
        lines.append(_row(name, result.counts))
    return "\n".join([*lines, _row("all", total)])


def _row(name: str, counts: Counter[str]) -> str:
    numbers = " | ".join(str(counts[outcome]) for outcome in OUTCOMES)
    return f"| {name} | {sum(counts.values())} | {numbers} |"


def main() -> int:
    """The command line: a worker, or the guard of several readers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--count", type=int, default=100, help="Inputs for each reader.")
    parser.add_argument("--folder", type=Path, required=True, help="Folder for cases and logs.")
    parser.add_argument("--readers", nargs="*", help="Names of readers. Default: all.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.start, options.count, options.folder, options.log)
        return 0
    results: dict[str, Result] = {}
    for name in options.readers or list(make_readers()):
        own = options.folder / "".join(c if c.isalnum() else "_" for c in name)
        results[name] = guard(name, options.count, own)
        print(f"{name}: {dict(results[name].counts)}, {results[name].seconds:.0f} s", flush=True)
        for case, outcome, told in results[name].faults[:5]:
            print(f"  case {case}: {outcome}: {told[-1500:]}", flush=True)
    print(table(results))
    return int(any(result.faults for result in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
