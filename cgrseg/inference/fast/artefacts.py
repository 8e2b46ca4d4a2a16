"""Compiled networks on disk: one file per weights, input shape, precision and machine.

A compilation takes about a minute; its result is kept and found again by name.  The name
is a digest of everything that the machine code depends on, so a stale file cannot be hit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import cgrseg
from cgrseg.errors import EnvironmentProblem, explain
from cgrseg.files import make_folder

# Part of every name: raise it when the compiled function itself changes.
_FORM = 2
# What the folder may hold: compiled networks that nobody has used for so long go, and beyond
# so many bytes those that were used longest ago.
_UNUSED_FOR = 90 * 24 * 3600.0
_MOST_BYTES = 4 << 30
# Folder of a compilation under way; one that is a day old was abandoned.
_UNFINISHED = ".compiling-"
_ABANDONED_AFTER = 24 * 3600.0
# One compilation at a time: where PyTorch builds is a setting of the whole process.
_COMPILING = threading.Lock()


def default_folder() -> Path:
    """`$CGRSEG_CACHE/compiled`, else `cgrseg/compiled` in the user's cache folder."""
    chosen = os.environ.get("CGRSEG_CACHE")
    if chosen:
        return Path(chosen) / "compiled"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cgrseg" / "compiled"


def weights_digest(model: nn.Module) -> str:
    """Digest of every parameter and buffer with its name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        data = value.detach().to("cpu").contiguous()
        digest.update(f"{name} {tuple(data.shape)} {data.dtype};".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().data if data.numel() else b"")
    return digest.hexdigest()


def machine_digest() -> str:
    """Digest of what machine code depends on besides the network: CPU, threads, versions."""
    parts = [
        cgrseg.__version__,
        str(_FORM),
        torch.__version__,
        platform.system(),
        platform.machine(),
        platform.python_version(),
        torch.backends.cpu.get_cpu_capability(),
        _cpu_flags(),
        str(torch.get_num_threads()),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def artefact_path(
    folder: Path, weights: str, variant: str, precision: str, shape: tuple[int, ...]
) -> Path:
    """Where the compiled network of a shape is kept.

    Args:
        folder: of all of them.
        weights: from :func:`weights_digest`.
        variant: for people who look into the folder, as are the next two.
        precision: of weights and features.
        shape: of the input, (N, 3, H, W).
    """
    name = f"{variant}-{precision}-{'x'.join(map(str, shape))}"
    key = hashlib.sha256(f"{weights} {machine_digest()} {name}".encode()).hexdigest()[:20]
    return folder / f"{name}-{key}.pt2"


def compile_to_file(network: nn.Module, example: Tensor, target: Path) -> None:
    """Compile a network ahead of time and store it; the file is whole or not there.

    Args:
        network: frozen, in eval mode.
        example: an input of the shape, type and layout to compile for.
        target: ends in `.pt2`.

    Raises:
        EnvironmentProblem: the folder cannot be written.
    """
    from torch._inductor.utils import fresh_inductor_cache  # slow to import

    make_folder(target.parent)
    _remove_abandoned(target.parent)
    try:
        with (
            _COMPILING,
            tempfile.TemporaryDirectory(dir=target.parent, prefix=_UNFINISHED) as folder,
        ):
            partial = Path(folder) / target.name
            # What PyTorch builds on the way would stay for ever in the system's folder for
            # temporary files, hundreds of MB for every size.
            with fresh_inductor_cache(dir=folder, delete=False), torch.no_grad():
                exported = torch.export.export(network, (example,), strict=False)
                torch._inductor.aoti_compile_and_package(
                    exported, package_path=str(partial), inductor_configs={"freezing": True}
                )
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, target)
        prune(target.parent, keep=target)
    except OSError as error:
        raise EnvironmentProblem(
            explain(
                target,
                found=f"the compiled network could not be stored ({error})",
                expected="a folder that can be written, with room for it (some 40 to 200 MB)",
                remedy="free space, or set CGRSEG_CACHE to another folder",
            )
        ) from error


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """The compiled network of a file, as a function.

    Raises:
        RuntimeError: a file that cannot be loaded.  A damaged one is removed, so that the next
            attempt compiles anew; one that is whole stays (memory or the disk for temporary
            files may have been short).
    """
    try:
        runner: Any = torch._inductor.aoti_load_package(str(path))
    except Exception as error:
        if _is_damaged(path):
            with contextlib.suppress(OSError):
                path.unlink()
        raise RuntimeError(f"{path}: not a usable compiled network ({error})") from error
    with contextlib.suppress(OSError):
        os.utime(path)  # pruning goes by when it was last used
    return runner


def prune(
    folder: Path,
    keep: Path | None = None,
    *,
    unused_for: float = _UNUSED_FOR,
    most_bytes: int = _MOST_BYTES,
) -> list[Path]:
    """Remove compiled networks that were not used for long, and the oldest beyond a size.

    Args:
        folder: of compiled networks; other files in it are left alone.
        keep: the one that must stay.
        unused_for: seconds since the last use after which one goes.
        most_bytes: of all that stay.

    Returns:
        What was removed.
    """
    found: list[tuple[float, int, Path]] = []
    for path in folder.glob("cgrseg_*.pt2"):
        with contextlib.suppress(OSError):  # another process may prune, too
            known = path.stat()
            found.append((known.st_mtime, known.st_size, path))
    removed = []
    held = sum(size for _, size, _ in found)
    for used, size, path in sorted(found):
        if path != keep and (time.time() - used > unused_for or held > most_bytes):
            with contextlib.suppress(OSError):  # open elsewhere (Windows)
                path.unlink()
                removed.append(path)
                held -= size
    return removed


def _is_damaged(path: Path) -> bool:
    """Whether the archive itself is incomplete or changed; not if it cannot be read now."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except (zipfile.BadZipFile, EOFError, zlib.error):
        return True
    except OSError:
        return False


def _remove_abandoned(folder: Path) -> None:
    """Clear away what compilations that were killed have left."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_AFTER:
                shutil.rmtree(left, ignore_errors=True)


def _cpu_flags() -> str:
    """Instruction sets of the CPU, as the system lists them; its name where it does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
