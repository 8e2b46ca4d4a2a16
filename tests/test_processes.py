"""How processes end: signals in the main thread, and children with their parents."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

# A command that takes long, cleans up slowly, and says what happened.
LONG = """
import signal, sys, time
from cgrseg.processes import ending_by_signals, signals_deferred
if "ignore" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with ending_by_signals():
    with ending_by_signals():  # as `python -m cgrseg` does while it imports, and its command again
        try:
            if "hold" in sys.argv:
                with signals_deferred():
                    print("begun", flush=True)
                    time.sleep(1)
                    print("together", flush=True)
            elif "swallow" in sys.argv:
                try:
                    print("begun", flush=True)
                    time.sleep(30)
                except BaseException:
                    sys.exit(7)
            else:
                print("begun", flush=True)
            time.sleep(1 if "ignore" in sys.argv else 30)
        finally:
            time.sleep(0.5)
            print("cleaned", flush=True)
"""


# A signal comes while a finalizer runs, where Python ignores exceptions.
FINALIZER = """
import signal, time
from cgrseg.processes import ending_by_signals
class Noisy:
    def __del__(self):
        signal.raise_signal(signal.{signal})
        for _ in range(3):
            pass
with ending_by_signals():
    noisy = Noisy()
    del noisy
    time.sleep(30)
"""

# Ctrl-C comes while the interpreter shuts down.
SHUTDOWN = """
import signal, weakref
from cgrseg.processes import ending_by_signals
class Kept:
    pass
with ending_by_signals():
    kept = Kept()
    weakref.finalize(kept, signal.raise_signal, signal.SIGINT)
"""


def heed_signals() -> None:
    """Undo what a shell and `nohup` do to commands in the background, where the tests may run."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def finished(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=heed_signals,
    )


def signalled(*numbers: signal.Signals, mode: str = "") -> tuple[int, str, str]:
    """Status and output of a command that gets signals, one soon after the other."""
    process = subprocess.Popen(
        [sys.executable, "-c", LONG, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)
    out, problems = process.communicate(timeout=120)
    return process.returncode, out, problems


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGTERM, "\nstopped by SIGTERM\n"),
        (signal.SIGHUP, "\nstopped by SIGHUP\n"),
        (signal.SIGINT, "\nstopped\n"),
    ],
)
def test_a_signal_ends_in_order_and_a_second_one_disturbs_nothing(
    number: signal.Signals, said: str
) -> None:
    assert signalled(number, number, signal.SIGTERM) == (128 + number, "cleaned\n", said)


def test_steps_that_belong_together_are_not_torn_apart() -> None:
    assert signalled(signal.SIGTERM, mode="hold")[:2] == (143, "together\ncleaned\n")


def test_a_library_that_swallows_the_signal_does_not_change_the_status() -> None:
    assert signalled(signal.SIGTERM, mode="swallow") == (143, "cleaned\n", "")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    assert signalled(signal.SIGTERM, mode="ignore") == (0, "cleaned\n", "")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes on Linux")
@pytest.mark.parametrize("system", ["linux", "another"])
@pytest.mark.parametrize("start", ["fork", "spawn", "popen"])
def test_a_child_ends_with_its_killed_parent(start: str, system: str, tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(
        textwrap.dedent(
            """
            import multiprocessing, os, subprocess, sys, time
            from cgrseg.processes import end_with_parent, ignore_signals

            def child(system, parent=None):
                sys.platform = system
                ignore_signals()
                end_with_parent(parent)
                print(os.getpid(), flush=True)
                time.sleep(120)

            if __name__ == "__main__":
                start, system = sys.argv[1:]
                if start == "popen":
                    code = f"import family; family.child({system!r}, {os.getpid()})"
                    subprocess.Popen([sys.executable, "-c", code])
                else:
                    context = multiprocessing.get_context(start)
                    context.Process(target=child, args=(system,)).start()
                time.sleep(120)
            """
        )
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "family.py"), start, system],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    while Path("/proc", str(child)).exists():  # the test's end is the child's
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who sent a signal")
def test_only_its_parent_terminates_a_loader(tmp_path: Path) -> None:
    """multiprocessing does so when a program ends after an error, and waits for its children."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import multiprocessing, subprocess, sys
            from cgrseg.data.dataset import initialize_worker

            def work(pipe):
                initialize_worker(0)
                while True:
                    pipe.send("ready")
                    pipe.recv()

            if __name__ == "__main__":
                mine, other = multiprocessing.Pipe()
                child = multiprocessing.Process(target=work, args=(other,), daemon=True)
                child.start()
                print(mine.recv(), flush=True)
                subprocess.run(["kill", "-TERM", str(child.pid)], check=True)
                mine.send("go on")
                print(mine.recv(), flush=True)
                sys.exit(3)  # the interpreter terminates the child, and waits for it
            """)
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("ready\nready\n", 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_a_finalizer_swallows_comes_again(number: signal.Signals) -> None:
    done = finished(FINALIZER.format(signal=number.name))
    assert done.returncode == 128 + number
    assert "Traceback" not in done.stderr and "stopped" in done.stderr


def test_ctrl_c_while_the_interpreter_shuts_down_prints_no_trace() -> None:
    done = finished(SHUTDOWN)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_finalizer_without_memory_prints_no_stack_trace() -> None:
    program = """
import sys, weakref
from cgrseg.errors import EnvironmentProblem
from cgrseg.processes import ending_by_signals
from cgrseg.surroundings import readable_machine_problems

class Fails:
    def __del__(self):
        raise MemoryError
def fail():
    raise MemoryError
weakref.finalize(Fails, fail)
kept = Fails()
try:
    with ending_by_signals(), ending_by_signals(), readable_machine_problems():
        raise MemoryError("in the command")
except EnvironmentProblem as error:
    print(error, file=sys.stderr)
del kept
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "memory ran out (in the command)" in done.stderr
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr, done.stderr
