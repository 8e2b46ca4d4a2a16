"""Cache of compiled networks: one file per weights, input shape, precision and machine.

A compilation takes about a minute; its result is cached and found again by name.  The name
holds a digest of everything that the machine code depends on, so a stale file cannot be hit, and
a digest of the file's own content, so a file that has changed does not run.

The files are machine code, so their folder belongs to the user alone: files that another user
may have written are refused.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import errno
import functools
import glob
import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
import warnings
import weakref
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import cgrseg
from cgrseg.errors import EnvironmentProblem
from cgrseg.files import cache_folder, explained, make_folder
from cgrseg.input_files import open_input
from cgrseg.surroundings import raise_machine_problem

# Part of every name: raise it when the compiled function itself changes.
_FORM = 5
# Limits of the folder: networks unused for longer are removed, and beyond the size those that
# were used longest ago.
_UNUSED_FOR = 90 * 24 * 3600.0
_MAX_BYTES = 4 << 30
# Prefix of the folder of a compilation under way; the name of its target follows.
_UNFINISHED = ".compiling-"
_DIGEST = 32  # hexadecimal digits
_TEMPORARY_ROOM = 2.0  # free space that PyTorch needs to unpack a compiled network, per its size
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Options of PyTorch's compiler; those that its version lacks are left out.
_COMPILER_OPTIONS: dict[str, Any] = {
    "freezing": True,
    # The code around the kernels is the longest to compile, and takes no time when it runs.
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "aot_inductor.enable_line_tables": False,
    # 300 MB of headers would stay in the system's temporary folder.  Compiling them costs more
    # than they save in the first two compilations.
    "aot_inductor.precompile_headers": False,
    # A product and a sum as one instruction, rounded once.
    "cpp.enable_floating_point_contract_flag": "fast",
}
# The error function between -4 and 4 is x P(x^2) / Q(x^2): coefficients of Eigen and XLA, highest
# power first.
_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
_CALLS = 8  # most calls of a compiled network at the same time; weights are in memory once
# Conversions between addresses and the capsules in which PyTorch's functions pass them.
_POINTER = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_CAPSULE = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
# One compilation at a time: where PyTorch builds is a setting of the whole process.
_COMPILING = threading.Lock()


def default_folder() -> Path:
    """Folder of compiled networks."""
    return cache_folder() / "compiled"


def target_path(
    folder: Path, weights: str, variant: str, precision: str, shape: tuple[int, ...]
) -> Path:
    """Path of a compiled network, before the digest of its content is added to the name.

    Args:
        folder: the cache.
        weights: digest of the weights.
        variant: name of the variant.
        precision: of weights and features.
        shape: of the input, (N, 3, H, W).
    """
    name = f"{variant}-{precision}-{'x'.join(map(str, shape))}"
    key = hashlib.sha256(f"{weights} {_machine_digest()} {name}".encode()).hexdigest()[:20]
    return folder / f"{name}-{key}.pt2"


def _machine_digest() -> str:
    """Digest of what machine code depends on besides the network: CPU, threads, versions."""
    flags = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), flags)
    parts = [
        cgrseg.__version__,
        str(_FORM),
        torch.__version__,
        platform.system(),
        platform.machine(),
        platform.python_version(),
        torch.backends.cpu.get_cpu_capability(),
        flags,
        str(torch.get_num_threads()),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def find(target: Path) -> Path | None:
    """The cached file for a path of :func:`target_path`; None: there is none."""
    with contextlib.suppress(OSError):
        pattern = f"{glob.escape(target.stem)}-{'[0-9a-f]' * _DIGEST}{target.suffix}"
        return next(iter(sorted(target.parent.glob(pattern))), None)
    return None


def missing_compiler(device: torch.device) -> str:
    """What compiling for a device lacks here, and what to do; empty if nothing."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "PyTorch compiles for GPUs through Triton, which is missing: pip install triton"
        return ""
    if device.type != "cpu":
        return f"compiling for {device.type} is not supported; cpu and cuda are"
    chosen = os.environ.get("CXX")
    names = [chosen] if chosen else ["cl"] if sys.platform == "win32" else ["g++", "clang++"]
    if any(shutil.which(name) for name in names):
        return ""
    wanted = f"CXX names {chosen!r}, which cannot be found" if chosen else "no C++ compiler found"
    return f"{wanted}: install g++ (Debian, Ubuntu: apt install g++), or set CXX to a compiler"


def compile_to_file(network: nn.Module, example: Tensor, target: Path) -> Path:
    """Compile a network ahead of time and cache it; the file is whole or not there.

    Args:
        network: frozen, in eval mode.
        example: an input of the shape, type and memory layout to compile for.
        target: from :func:`target_path`.

    Returns:
        The cached file.

    Raises:
        EnvironmentProblem: the folder cannot be written, or others may write into it.
    """
    from torch._inductor import config, cpu_vec_isa  # slow to import
    from torch._inductor.utils import fresh_inductor_cache

    known = config.get_config_copy()  # type: ignore[no-untyped-call]
    options = {name: value for name, value in _COMPILER_OPTIONS.items() if name in known}
    prepare_folder(target.parent)
    try:
        with (
            _COMPILING,
            tempfile.TemporaryDirectory(
                dir=target.parent, prefix=f"{_UNFINISHED}{target.stem}-"
            ) as folder,
        ):
            partial = Path(folder) / target.name
            # Intermediate files would stay in the system's temporary folder forever, hundreds
            # of MB per size.
            with (
                fresh_inductor_cache(dir=folder, delete=False),
                torch.no_grad(),
                ThreadPoolExecutor(1) as beside,
            ):
                # Small test programs, compiled while the network is traced.
                beside.submit(cpu_vec_isa.valid_vec_isa_list)
                torch._inductor.aoti_compile_and_package(
                    _traced(network, example), package_path=str(partial), inductor_configs=options
                )
            os.chmod(partial, 0o600)
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            kept = target.with_name(f"{target.stem}-{_content_digest(partial)}{target.suffix}")
            os.replace(partial, kept)
        prune(target.parent, keep=kept)
    except OSError as error:
        raise EnvironmentProblem(
            target,
            found=f"the compiled network could not be stored ({error})",
            expected="a folder that can be written, with room for it (some 40 to 200 MB)",
            remedy="free space, or set CGRSEG_CACHE to another folder",
        ) from error
    return kept


def _traced(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The network as a graph, with the form of GELU that is fastest on this processor."""
    # Tracing changes a module while it runs; other threads use the network.
    exported = torch.export.export(copy.deepcopy(network), (example,), strict=False)
    single = all(weight.dtype == torch.float32 for weight in network.parameters())
    if torch.backends.cpu.get_cpu_capability() != "AVX2" or not single:
        return exported
    # Without AVX-512, oneDNN's GELU takes longer than a kernel of its own that needs no exp.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch copies a class that it deprecates
        return exported.run_decompositions({torch.ops.aten.gelu.default: rational_gelu})


def rational_gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """GELU without exp: products, sums and one division.

    Args:
        x: float32, any shape.
        approximate: argument of the operator that this replaces; "none".

    Returns:
        x times the normal distribution function of x; the function is exact within 2.5e-7.
    """
    bounded = (x * 0.5**0.5).clamp(-4.0, 4.0)
    square = bounded * bounded
    above, below = (
        functools.reduce(lambda value, factor: value * square + factor, rest, first)
        for first, *rest in (_ERF_P, _ERF_Q)
    )
    return x * (0.5 * (bounded * above / below) + 0.5)


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """The compiled network of a cached file, as a function.

    Raises:
        RuntimeError: the file has changed or cannot run.  It is removed, so that the next
            attempt compiles anew.
        EnvironmentProblem: another user may have written it, or the machine cannot load it now.
    """
    _refuse_foreign(path)
    try:
        whole = _content_digest(path) == path.stem.rpartition("-")[2]
    except OSError as error:
        raise RuntimeError(f"{path}: not a usable compiled network ({error.strerror})") from error
    if not whole:
        raise _removed(path, "its content has changed")
    try:
        runner = _opened(path)
    except Exception as error:
        _refuse_unusable_tmp(path, error)
        raise_machine_problem(error, path)
        raise _removed(path, error) from error
    with contextlib.suppress(OSError):
        os.utime(path)  # pruning goes by the last use
    return runner


def _opened(path: Path) -> Callable[[Tensor], Tensor]:
    """The compiled network, callable by several Python threads at the same time where possible."""
    with zipfile.ZipFile(path) as package:
        names = package.namelist()
        libraries = [name for name in names if name.endswith(".so")]
        # Operators without a C function are listed in a JSON file, and need PyTorch's runner.
        listed = any(n.endswith(".json") and not n.endswith("_metadata.json") for n in names)
        known = hasattr(torch._C._aoti, "unsafe_alloc_void_ptrs_from_tensors")
        if len(libraries) == 1 and known and not listed and sys.platform != "win32":
            with tempfile.TemporaryDirectory() as folder:
                return _ParallelNetwork(package.extract(libraries[0], folder))
    return torch._inductor.aoti_load_package(str(path))


class _ParallelNetwork:
    """A compiled network that several Python threads run at the same time.

    PyTorch's own runner keeps Python's lock while it computes; a call through ctypes does not.
    The functions are those of PyTorch's `aoti_runtime/interface.h`, which is kept stable.

    Args:
        library: shared library of the package; not needed any more afterwards.
    """

    def __init__(self, library: str) -> None:
        code = ctypes.CDLL(library)
        self._run = code.AOTInductorModelContainerRun
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._run.argtypes = [pointer, pointer, size, pointer, size, pointer, pointer]
        self._container = ctypes.c_void_p()
        create = code.AOTInductorModelContainerCreateWithDevice
        create.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p]
        if create(ctypes.byref(self._container), _CALLS, b"cpu", None):
            raise RuntimeError("its weights cannot be loaded")
        code.AOTInductorModelContainerDelete.argtypes = [ctypes.c_void_p]
        weakref.finalize(self, _unload, code, self._container)

    def __call__(self, batch: Tensor) -> Tensor:
        tensors = torch._C._aoti
        # The network takes over its inputs, and gives away its outputs.
        given = (ctypes.c_void_p * 1)(
            _POINTER(tensors.unsafe_alloc_void_ptrs_from_tensors([batch])[0], None)
        )
        found = (ctypes.c_void_p * 1)()
        if self._run(self._container, given, 1, found, 1, None, None):
            raise RuntimeError("the compiled network failed; the lines above say why")
        return tensors.alloc_tensors_by_stealing_from_void_ptrs([_CAPSULE(found[0], None, None)])[0]


def _unload(code: ctypes.CDLL, container: ctypes.c_void_p) -> None:
    import _ctypes

    code.AOTInductorModelContainerDelete(container)
    _ctypes.dlclose(code._handle)


def _content_digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST // 2)
    with open_input(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _removed(path: Path, reason: object) -> RuntimeError:
    with contextlib.suppress(OSError):
        path.unlink()
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    return RuntimeError(f"{path}: not a usable compiled network ({lines[0]}); it is removed")


def _refuse_unusable_tmp(path: Path, error: Exception) -> None:
    """Report a temporary folder that is full, or whose file system runs no programs."""
    place = tempfile.gettempdir()
    wanted = int(_TEMPORARY_ROOM * path.stat().st_size)
    if shutil.disk_usage(place).free >= wanted and "failed to map segment" not in str(error):
        return
    raise EnvironmentProblem(
        place,
        found=f"a compiled network cannot be loaded from there ({error})",
        expected=f"{wanted:,} free bytes on a file system that may run programs (no noexec)",
        remedy="free space, or set TMPDIR to another folder",
    ) from error


def prepare_folder(folder: Path) -> None:
    """Create the cache folder, for this user alone.

    Raises:
        EnvironmentProblem: it cannot be created, or belongs to another user.
    """
    make_folder(folder.parent)
    with explained(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid == os.getuid():
            os.chmod(folder, 0o700)
    _refuse_foreign(folder)


def _refuse_foreign(path: Path) -> None:
    """Refuse machine code, or a folder of it, that another user may have written."""
    if not hasattr(os, "getuid"):
        return
    with explained(path):
        known = path.stat()
    by_others = "others may write to it" if known.st_mode & 0o022 else ""
    if known.st_uid not in (os.getuid(), 0):
        by_others = f"it belongs to another user (number {known.st_uid})"
    if by_others:
        raise EnvironmentProblem(
            path,
            found=f"{by_others}, and compiled networks are machine code",
            expected="a file or folder that this user alone may write",
            remedy="remove it (rm -r), or set CGRSEG_CACHE to a folder of your own",
        )


@contextlib.contextmanager
def compile_lock(target: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of one compilation: other processes that want the same one wait.

    Leftovers of killed compilations are removed.  On a file system without locks nobody
    waits, and each process compiles for itself.

    Args:
        target: from :func:`target_path`.
        on_wait: called when another process holds the lock.

    Raises:
        EnvironmentProblem: the folder cannot be written, or others may write into it.
    """
    prepare_folder(target.parent)
    place = target.with_name(f".{target.stem}.lock")
    with explained(place):
        descriptor = _locked(place, on_wait)
    try:
        for left in target.parent.glob(f"{_UNFINISHED}*"):
            stem = left.name.removeprefix(_UNFINISHED).rpartition("-")[0]
            if stem == target.stem or not _is_held(target.with_name(f".{stem}.lock")):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            place.unlink()  # while it is locked: a waiting process opens a new one
        os.close(descriptor)


def _locked(place: Path, on_wait: Callable[[], None]) -> int:
    """Descriptor of the locked file, which stays locked until it is closed."""
    waiting = False
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(place, flags | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            import fcntl
        except ImportError:  # Windows
            return descriptor
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waiting:
                    on_wait()
                waiting = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in _NO_LOCKS:
                return descriptor
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # the process that held it has removed it


def _is_held(place: Path) -> bool:
    """Whether a process holds a lock file; it is created before anything that it protects."""
    try:
        import fcntl

        descriptor = os.open(place, os.O_RDWR)
    except (ImportError, FileNotFoundError):
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        place.unlink()
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def prune(folder: Path, keep: Path | None = None, max_bytes: int = _MAX_BYTES) -> list[Path]:
    """Remove compiled networks unused for long, and those used longest ago beyond a size.

    Args:
        folder: the cache; other files in it stay.
        keep: file that must stay.
        max_bytes: total size of the files that stay.

    Returns:
        The removed files.
    """
    found: list[tuple[float, int, Path]] = []
    for path in folder.glob("cgrseg_*.pt2"):
        with contextlib.suppress(OSError):  # another process may prune, too
            known = path.stat()
            found.append((known.st_mtime, known.st_size, path))
    removed = []
    held = sum(size for _, size, _ in found)
    for used, size, path in sorted(found):
        if path != keep and (time.time() - used > _UNUSED_FOR or held > max_bytes):
            with contextlib.suppress(OSError):  # open elsewhere (Windows)
                path.unlink()
                removed.append(path)
                held -= size
    return removed
