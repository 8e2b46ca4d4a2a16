"""Check CGRSeg on an NVIDIA GPU, piece by piece: tests, speed, a training, two processes, runtimes.

    make gpu-check                              # all pieces, each in less than 9 minutes
    make gpu-check WHEELS=build/gpu-wheels      # missing packages from this folder, no network
    python scripts/gpu_check.py --list          # names of the pieces, and what is done
    python scripts/gpu_check.py --minutes 9     # as many pieces as fit; the next call goes on
    python scripts/gpu_check.py --piece tests   # this piece, also when it is done
    python scripts/gpu_check.py --again         # the failed and skipped pieces once more
    python scripts/gpu_check.py --device cpu --out build/rehearsal   # tiny sizes, no GPU

A piece writes one JSON file into the results folder when it ends, and the README.md there
is written again.  A piece with a result is not repeated; a failed piece keeps its error and the
next one runs.  The exit status is 0 when every piece is done or skipped, 1 when one failed or is
left, and 2 when the check cannot start.

Only the standard library is imported here: the pieces are commands of their own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_pieces import PIECES, Check, Left, Piece, PieceFailed, Skipped, end
from gpu_report import read_results, write_readme, write_result

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 520.0  # seconds of a piece
_LEAST = 30.0  # a piece does not begin with fewer seconds left
_ERROR = re.compile(r"(E  +)?\s*(error\b|[\w.]*(Error|Exception|Problem)\b.*:)|FAILED")
_NEVER = re.compile(r"(torch|triton|nvidia[-_].*|cuda[-_].*)$")
_MODULES = (
    *("torch", "lightning", "torchmetrics", "numpy", "cv2", "pydantic", "safetensors"),
    *("huggingface_hub", "typer", "rich", "jinja2", "tensorboard", "matplotlib", "PIL"),
    *("pytest", "hypothesis"),
)


class Runner(Check):
    """Runs the commands of a piece within its time, and keeps what they print.

    Args:
        options: of the command line.
        work: folder of data, checkpoints, caches and logs.
    """

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        super().__init__(options.device, options.device == "cpu", work, options.camvid)
        minutes = options.minutes
        self.call_ends = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        self.piece_ends = 0.0
        self.log = work / "logs" / "none.log"

    def begin(self, piece: Piece) -> None:
        """Start the clock of a piece."""
        self.piece_ends = time.monotonic() + LIMIT
        self.log = self.work / "logs" / f"{piece.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        self.commands = []

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Start a command in a process group of its own; its output is the log."""
        command = [str(word) for word in words]
        self.commands.append(" ".join(command).replace(str(ROOT), "."))
        with self.log.open("a") as log:
            log.write(f"$ {self.commands[-1]}\n")
        path = [str(self.work / "packages"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            "CGRSEG_CACHE": str(self.work / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
            "TRITON_CACHE_DIR": str(self.work / "triton"),
        }
        with self.log.open("a") as output:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def finish(self, process: subprocess.Popen[str], expected: int = 0) -> None:
        """Wait for a command; end it when the time of the piece or of the call is over.

        Raises:
            PieceFailed: another exit status, or the time of the piece is over.
            Left: the time of the call is over.
        """
        ends = min(self.piece_ends, self.call_ends)
        try:
            status = process.wait(max(1.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            end(process)
            if self.call_ends < self.piece_ends:
                raise Left("the minutes of this call were over") from None
            raise PieceFailed(f"longer than {LIMIT:.0f} s: {self.commands[-1]}") from None
        except BaseException:
            end(process)
            raise
        if status != expected:
            raise PieceFailed(f"exit status {status}: {self.commands[-1]}")

    def run(self, *words: object, expected: int = 0) -> str:
        """Run a command to its end; returns what it printed.  Errors as in :meth:`finish`."""
        before = self.log.stat().st_size
        process = self.start(*words)
        self.finish(process, expected)
        with self.log.open("rb") as log:
            log.seek(before)
            return log.read().decode("utf-8", "replace").partition("\n")[2]


def main(arguments: list[str] | None = None) -> int:
    """Run the pieces that have no result yet."""
    options = _parse(arguments)
    results: Path = options.out
    if options.list:
        return _list(results)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(work / "packages"))
    try:
        for folder in options.wheels or []:
            install_missing(folder, work / "packages")
    except (OSError, subprocess.CalledProcessError) as error:
        return _refuse(f"the wheels could not be installed: {error}")
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        return _refuse(
            f"missing packages: {', '.join(missing)}. Without a network: `make gpu-wheels` on a "
            "machine that has one, then `make gpu-check WHEELS=FOLDER`"
        )
    if options.device.startswith("cuda"):
        found = subprocess.run(
            [sys.executable, "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"],
            check=False,
        )
        if found.returncode:
            return _refuse(
                "no GPU was found: PyTorch sees no NVIDIA GPU (python -m "
                "torch.utils.collect_env says why). `--device cpu --out FOLDER` rehearses every "
                "piece at tiny sizes"
            )
    return _run_pieces(options, results, Runner(options, work))


def _run_pieces(options: argparse.Namespace, results: Path, runner: Runner) -> int:
    results.mkdir(parents=True, exist_ok=True)
    known = read_results(results)
    for piece in PIECES:
        status = known.get(piece.name, {}).get("status")
        if options.piece:
            if piece.name not in options.piece:
                continue
        elif status == "done" or (status in ("failed", "skipped") and not options.again):
            print(f"{piece.name}: {status} before", flush=True)
            continue
        if runner.call_ends - time.monotonic() < _LEAST:
            print("the minutes of this call are over; the next call goes on", flush=True)
            break
        print(f"{piece.name}: {piece.title} ...", flush=True)
        record = run_piece(piece, runner)
        write_result(results, piece.name, record)
        write_readme(results, PIECES)
        first = (record["error"] or [""])[0]
        print(f"{piece.name}: {record['status']}, {record['seconds']:.0f} s  {first}", flush=True)
    known = read_results(results)
    states = [known.get(piece.name, {}).get("status", "left") for piece in PIECES]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    print(", ".join(f"{count} {state}" for state, count in counts.items()), flush=True)
    print(f"results: {results / 'README.md'}", flush=True)
    return 0 if set(states) <= {"done", "skipped"} else 1


def run_piece(piece: Piece, runner: Runner) -> dict[str, object]:
    """Run one piece; what it raises becomes part of its result."""
    start = time.monotonic()
    runner.begin(piece)
    status, error, found = "done", [], {}
    try:
        found = piece.run(runner)
    except Skipped as reason:
        status, error = "skipped", [str(reason)]
    except Left as reason:
        status, error = "unfinished", [str(reason)]
    except PieceFailed as failure:
        status, error = "failed", [str(failure), *error_lines(runner.log.read_text())]
    except Exception as failure:  # a piece that misreads its own output must not stop the others
        status, error = "failed", [f"{type(failure).__name__}: {failure}"]
    return {
        "piece": piece.name,
        "title": piece.title,
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "device": runner.device,
        "commands": runner.commands,
        "error": error,
        "result": found,
    }


def error_lines(text: str, most: int = 6) -> list[str]:
    """The lines of a log that say what went wrong: the last error and what follows it."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    marks = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    if not marks:
        return lines[-most:]
    first = marks[-1]
    while first - 1 in marks:
        first -= 1
    return lines[first : first + most]


def install_missing(folder: Path, target: Path) -> list[str]:
    """Install the wheels of a folder whose package is missing or too old; torch never.

    Args:
        folder: of wheels.
        target: folder that is on the module path before the installed packages.

    Returns:
        The installed wheels.
    """
    least = _lower_bounds()
    chosen = []
    for wheel in sorted(folder.glob("*.whl")):
        name = wheel.name.split("-")[0].replace("_", "-").lower()
        try:
            present = _numbers(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            present = None
        if not _NEVER.match(name) and (present is None or present < least.get(name, ())):
            chosen.append(str(wheel))
    if not list(folder.glob("*.whl")):
        raise OSError(f"no wheels in {folder}")
    if chosen:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--disable-pip-version-check", "--upgrade", "--target", str(target), *chosen]
        subprocess.run(command, check=True)
        importlib.invalidate_caches()
    return chosen


def _lower_bounds() -> dict[str, tuple[int, ...]]:
    """Lowest versions of our dependencies, read from pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    part = text.partition("\ndependencies = [")[2].partition("]")[0]
    found = re.findall(r'"([\w-]+)>=([\d.]+)"', part)
    return {name.lower(): _numbers(version) for name, version in found}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _list(results: Path) -> int:
    known = read_results(results)
    for piece in PIECES:
        state = known.get(piece.name, {}).get("status", "left")
        print(f"{piece.name:<32}{state:<12}{piece.title}")
    return 0


def _refuse(message: str) -> int:
    print(f"error: gpu-check: {message}", file=sys.stderr)
    return 2


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--piece", action="append", help="run this piece alone; may be repeated")
    parser.add_argument("--list", action="store_true", help="list the pieces")
    parser.add_argument("--again", action="store_true", help="repeat failed and skipped pieces")
    parser.add_argument("--minutes", type=float, help="begin no piece after this time")
    parser.add_argument("--wheels", type=Path, nargs="+", help="folders of wheels to install")
    parser.add_argument("--camvid", type=Path, help="CamVid's root; default: where it is found")
    parser.add_argument("--out", type=Path, help="results folder")
    parser.add_argument("--work", type=Path, help="folder of data, checkpoints and caches")
    options = parser.parse_args(arguments)
    rehearsal = options.device == "cpu"
    name = "gpu-rehearsal" if rehearsal else "gpu-check"
    usual = ROOT / "build" / name / "results" if rehearsal else ROOT / "benchmarks/results/gpu"
    options.out = (options.out or usual).resolve()
    options.work = (options.work or ROOT / "build" / name).resolve()
    unknown = set(options.piece or []) - {piece.name for piece in PIECES}
    if unknown:
        parser.error(f"--piece: no piece {', '.join(sorted(unknown))}; --list names them")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
