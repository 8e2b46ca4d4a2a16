"""A place beside the target where a file is made, tried out and only then put in place."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cgrseg.errors import CGRSegError, ConfigError, EnvironmentProblem, option
from cgrseg.files import explained, make_folder, partial_folder, refuse_moved, writing_problem
from cgrseg.processes import signals_deferred

# Below this much free space a failed write of a runtime is taken for a full disk.
_FULL_BELOW = 1 << 20


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Nothing is overwritten unasked.

    Raises:
        ConfigError: there is something, and it may not be replaced.
    """
    for path in parts_of(target):
        if path.is_dir() or (path.exists() and not overwrite):
            raise ConfigError(
                path,
                found="a folder of that name" if path.is_dir() else "a file is there already",
                expected="a new name",
                remedy=f"choose another name with {option('--out')}"
                + ("" if path.is_dir() else f", or replace it with {option('--overwrite')}"),
            )


def parts_of(target: Path) -> Sequence[Path]:
    """Files that an export consists of, in the order in which they are put in place."""
    return (target.with_suffix(".bin"), target) if target.suffix == ".xml" else (target,)


@contextlib.contextmanager
def staged(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a path to write to; what is there replaces the target once the block has ended.

    On any error nothing is left and the target, both of its files if it has two, stays as it
    was.

    Args:
        target: the file.
        overwrite: replace a file of that name.

    Raises:
        ConfigError: something of that name appeared meanwhile, and may not be replaced.
        EnvironmentProblem: full disk, read-only folder and the like.
    """
    make_folder(target.parent)
    with contextlib.ExitStack() as stack:
        with explained(target):
            folder = stack.enter_context(partial_folder(target.parent, "exporting"))
        try:
            draft = folder / target.name
            yield draft
            for part in parts_of(draft):
                with part.open("rb") as stream:
                    os.fsync(stream.fileno())
            refuse_moved(target.parent)
            refuse_existing(target, overwrite)
            with signals_deferred():
                _put_in_place(draft, target)
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


def _put_in_place(draft: Path, target: Path) -> None:
    """Rename the parts; if one of them fails, those before it become what they were."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for part, place in zip(parts_of(draft), parts_of(target), strict=True):
            old = None
            if part != draft and place.exists():  # the last one needs no way back
                old = draft.with_name(f"old-{place.name}")
                _keep(place, old)
            os.replace(part, place)
            done.append((place, old))
    except OSError:
        for place, old in reversed(done):
            if old is None:
                place.unlink()
            else:
                os.replace(old, place)
        raise


def _keep(file: Path, copy: Path) -> None:
    try:
        os.link(file, copy)
    except OSError:  # file systems without hard links
        shutil.copy2(file, copy)
