"""Write an export to a temporary folder beside its target, and move it there when complete."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cgrseg.errors import CGRSegError, ConfigError, EnvironmentProblem, option
from cgrseg.files import explained, make_folder, partial_folder, refuse_moved, writing_problem
from cgrseg.processes import signals_deferred

# With less free space than this, a failed write of a runtime counts as a full disk.
_FULL_BELOW = 1 << 20


def refuse_existing(files: Sequence[Path], overwrite: bool) -> None:
    """Refuse to replace files unless asked to.

    Raises:
        ConfigError: one of the files exists.
    """
    for path in files:
        if path.is_dir() or (path.exists() and not overwrite):
            raise ConfigError(
                path,
                found="a folder of that name" if path.is_dir() else "a file is there already",
                expected="a new name",
                remedy=f"choose another name with {option('--out')}"
                + ("" if path.is_dir() else f", or replace it with {option('--overwrite')}"),
            )


@contextlib.contextmanager
def staged(files: Sequence[Path], overwrite: bool = False) -> Iterator[Path]:
    """Give a path to write to; when the block ends, what is there replaces the files.

    On any error nothing is left, and all files stay as they were.

    Args:
        files: files of one export, in one folder, in the order in which they are put in place.
            The path that is given has the name of the last one.
        overwrite: replace existing files.

    Raises:
        ConfigError: one of the files was created meanwhile, and may not be replaced.
        EnvironmentProblem: full disk, read-only folder and the like.
    """
    target = files[-1]
    make_folder(target.parent)
    with contextlib.ExitStack() as stack:
        with explained(target):
            folder = stack.enter_context(partial_folder(target.parent, "exporting"))
        try:
            yield folder / target.name
            for file in files:
                written = folder / file.name
                for part in (written, *written.rglob("*")):
                    if not part.is_dir():
                        with part.open("rb") as stream:
                            os.fsync(stream.fileno())
            refuse_moved(target.parent)
            refuse_existing(files, overwrite)
            with signals_deferred():
                _put_in_place(folder, files)
        except CGRSegError:
            raise
        except OSError as error:
            raise writing_problem(target, error) from error
        except Exception as error:
            # Runtimes that write by themselves report a full disk in words of their own.
            if shutil.disk_usage(target.parent).free < _FULL_BELOW:
                raise EnvironmentProblem(
                    target,
                    found="the disk is full",
                    expected="a place that can be written",
                    remedy="free some space, or choose another folder",
                ) from error
            raise


def _put_in_place(folder: Path, files: Sequence[Path]) -> None:
    """Rename the files; if one of them fails, those before it become what they were."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for file in files:
            old = None
            if file != files[-1] and file.exists():  # the last one needs no way back
                old = folder / f"old-{file.name}"
                try:
                    os.link(file, old)
                except OSError:  # file systems without hard links
                    shutil.copy2(file, old)
            os.replace(folder / file.name, file)
            done.append((file, old))
    except OSError:
        for file, old in reversed(done):
            if old is None:
                file.unlink()
            else:
                os.replace(old, file)
        raise
