"""Reading MATLAB files in a process of their own, which a damaged file may end.

scipy's reader is native code that trusts the file: three changed bytes end its process with a
segmentation fault.  Here one long-lived process reads file after file for its parent.  When
it dies, the file that it was reading is the one to blame, and the next file starts another.

The child imports scipy and numpy only, takes one request a line on its standard input
(JSON: path and field), and answers on its standard output with a length, a JSON header and
the array's values.  It ends when its input ends, so it never outlives its parent.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cgrseg.input_files import open_input

# Address space of the child: a damaged file can state any size.
_MOST_MEMORY = 8 << 30
_START = "import sys; sys.path[:] = {path!r}; from cgrseg.data.mat_process import serve; serve()"


class ReaderDied(Exception):
    """The process that read a file ended; the text says how."""


class ReaderMissing(Exception):
    """The process that reads files does not start; the text says why."""


@dataclass(frozen=True)
class MatAnswer:
    """What the process says of one file.

    Attributes:
        error: name of the exception that scipy raised; empty: none.
        reason: its text.
        fields: names of the variables in the file.
        form: shape and dtype of the wanted field, for messages.
        values: the wanted field, where it is an array of numbers; None otherwise.
    """

    error: str
    reason: str
    fields: list[str]
    form: str
    values: np.ndarray | None


class MatReader:
    """One child process that reads MATLAB files, started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def read(self, path: Path, field: str) -> MatAnswer:
        """Read one field of a file.

        Raises:
            ReaderDied: the child ended while it read the file.
            ReaderMissing: the child does not start.
        """
        with self._lock:
            process = self._process or self._start()
            self._process = process
            request = json.dumps({"path": os.fspath(path), "field": field})
            try:
                _pipe(process.stdin).write(request.encode() + b"\n")
                _pipe(process.stdin).flush()
                return _receive(_pipe(process.stdout))
            except (OSError, EOFError):
                raise ReaderDied(self._buried()) from None
            except BaseException:
                self._buried()  # an answer that was not read would be the next file's
                raise

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            if self._process is not None:
                self._buried()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            # With the parent's module path: the working folder may hold foreign modules.
            [sys.executable, "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            _receive(_pipe(process.stdout))
        except (OSError, EOFError):
            self._process = process
            raise ReaderMissing(self._buried()) from None
        return process

    def _buried(self) -> str:
        """End the child and say how it ended."""
        process, self._process = self._process, None
        assert process is not None
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                _pipe(stream).close()
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code >= 0:
            return f"status {code}"
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"signal {-code}"


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _receive(stream: IO[bytes]) -> MatAnswer:
    (length,) = struct.unpack("<Q", _exactly(stream, 8))
    header = json.loads(_exactly(stream, length))
    values = None
    if header["shape"] is not None:
        dtype, shape = np.dtype(header["dtype"]), tuple(header["shape"])
        content = _exactly(stream, dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
        values = np.frombuffer(content, dtype).reshape(shape)
    return MatAnswer(header["error"], header["reason"], header["fields"], header["form"], values)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise EOFError
    return content


def serve() -> None:
    """What the child does: answer requests until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = _MOST_MEMORY if hard == resource.RLIM_INFINITY else min(hard, _MOST_MEMORY)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    import scipy.io

    _send(answers)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            with open_input(request["path"]) as stream:
                variables = scipy.io.loadmat(stream)
        except Exception as error:  # scipy raises whatever the damaged bytes lead it to
            _send(answers, error=type(error).__name__, reason=str(error))
            continue
        fields = sorted(name for name in variables if not name.startswith("__"))
        _send(answers, fields=fields, values=variables.get(request["field"]))


def _send(
    stream: IO[bytes],
    *,
    error: str = "",
    reason: str = "",
    fields: list[str] | None = None,
    values: Any = None,
) -> None:
    array = None if values is None else np.asarray(values)
    form = "" if array is None else f"shape {array.shape} and type {array.dtype}"
    plain = array if array is not None and array.dtype.kind in "buif" else None
    header = {
        "error": error,
        "reason": reason,
        "fields": fields or [],
        "form": form,
        "shape": None if plain is None else plain.shape,
        "dtype": "" if plain is None else plain.dtype.str,
    }
    text = json.dumps(header).encode()
    stream.write(struct.pack("<Q", len(text)) + text)
    if plain is not None:
        stream.write(np.ascontiguousarray(plain).tobytes())
    stream.flush()


MAT_READER = MatReader()
"""The reader of this process."""

atexit.register(MAT_READER.close)
