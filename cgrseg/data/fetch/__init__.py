"""Datasets by name: download, unpack, lay out, convert and check what a dataset's file names.

Everything happens below the dataset root. `archives/` holds downloads and what a stopped one has
left, with the ending `.downloaded`; only these are ever removed. A dataset is unpacked and
converted in a partial folder, renamed to `.fetched` when it is whole, and moved into place from
there, `fetch.json` last: a process that is killed leaves a state from which the same call goes on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cgrseg
from cgrseg.config.schema import DataConfig
from cgrseg.data.check import check_dataset
from cgrseg.data.check.report import CheckReport
from cgrseg.data.convert.format import ConversionReport
from cgrseg.data.convert.formats import formats
from cgrseg.data.convert.image_names import same_content
from cgrseg.data.convert.runner import run_conversion
from cgrseg.data.fetch.unpack import Damaged, unpack
from cgrseg.datasets import get_spec, list_specs
from cgrseg.datasets.spec import Archive, DatasetSpec, Download
from cgrseg.downloading import (
    ENDINGS,
    Unreachable,
    checked_address,
    download,
    file_digests,
    hidden_query,
)
from cgrseg.errors import ConfigError, DataError, EnvironmentProblem
from cgrseg.extras import require
from cgrseg.files import explained, make_folder, partial_folder, write_json
from cgrseg.locks import output_lock
from cgrseg.progress import Progress

ARCHIVES = "archives"
RECORD = "fetch.json"
_READY = ".fetched"
_DOWNLOADED = ".downloaded"
# Room for one more copy of the content beside the archives, and for label maps.
_UNPACKED = 1.3

Shown = Callable[[str, str], AbstractContextManager[Progress | None]]
"""Shows the progress of a piece of work: description and unit."""


@dataclass
class Fetched:
    """What :func:`fetch_dataset` did.

    Attributes:
        root: dataset root.
        report: findings of the check; a quick one where everything was there already.
        there: nothing had to be done.
        conversion: report of the conversion, if there was one.
        archives: folder of the archives that were kept.
    """

    root: Path
    report: CheckReport
    there: bool = False
    conversion: ConversionReport | None = None
    archives: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether everything was converted and the check has no errors."""
        return self.report.ok and (self.conversion is None or not self.conversion.failures)


def find_download(name: str) -> tuple[DatasetSpec, Download]:
    """The dataset of a name, and what is downloaded for it.

    Args:
        name: name in the catalogue, also with dashes; or a beginning that names one download.

    Raises:
        ConfigError: no such dataset, or none that can be downloaded.
    """
    plain = name.replace("-", "_").lower()
    known = [get_spec(each) for each in list_specs()]
    begun = [spec for spec in known if spec.name.startswith(plain) and spec.download is not None]
    if (
        plain not in list_specs()
        and begun
        and all(each.download == begun[0].download for each in begun)
    ):
        plain = begun[0].name
    spec = get_spec(plain)
    if spec.download is None:
        raise ConfigError(
            f"cgrseg data fetch {name}",
            found=f"{spec.title}: nothing is published to download",
            expected="one of " + ", ".join(each.name for each in known if each.download),
            remedy=spec.how_to_get,
        )
    return spec, spec.download


def plan_text(spec: DatasetSpec, download: Download, root: Path, sources: Sequence[str]) -> str:
    """What is downloaded from where, how large it is, its terms, and where it goes."""
    lines = [spec.title]
    for archive in download.archives:
        places = _places(archive, download, sources)
        size = f"about {archive.size / 1e9:.2g} GB" if archive.size else "size not published"
        place = places[0] if places else "a file of yours"
        place = hidden_query(place) if _is_address(place) else place
        lines += [f"  {archive.name}, {size}, from {place}"]
        checked = f"{archive.digest.partition(':')[0]} from {archive.digest_from}"
        lines += [f"    checked by: {checked if archive.digest else 'the sums in the archive'}"]
    return "\n".join(
        [*lines, f"terms: {download.terms}", f"  {download.terms_page}", f"goes to: {root}"]
    )


def fetch_dataset(
    name: str,
    root: Path | str | None = None,
    *,
    sources: Sequence[str] = (),
    keep_archives: bool = False,
    shown: Shown | None = None,
    workers: int | None = None,
) -> Fetched:
    """Download, unpack, lay out, convert and check a dataset of the catalogue.

    A call after an interruption resumes the work.  Files of yours below the
    root are never replaced.

    Args:
        name: as :func:`find_download` takes it.
        root: dataset root; None: the default of the dataset's presets.
        sources: places in front of the published ones: archives, folders of archives, or
            addresses of either (an address of a folder ends with a slash).
        keep_archives: keep downloaded archives in `ROOT/archives`.
        shown: shows the progress.
        workers: number of worker processes of conversion and check.

    Raises:
        ConfigError: no such dataset, or a source that is none of its archives.
        DataError: an archive that cannot be had, is damaged, is another file than the published
            one or is not safe to unpack; files of yours in the way.
        EnvironmentProblem: a full disk and the like, a missing package, or another command that
            writes there.
    """
    spec, published = find_download(name)
    target = Path(spec.default_root if root is None else root)
    shown = shown or _unseen
    if published.package:
        require(published.package, f"cgrseg data fetch {name}")
    with output_lock(target, below=True):
        ready, record = target / _READY, target / RECORD
        conversion = None
        if not ready.is_dir():
            if record.is_file() or not _downloads(target, published):
                there = check_dataset(_config(spec, target), quick=True)
                if there.ok:
                    _settle_downloads(target, published, keep_archives)
                    return Fetched(target, there, there=True)
            if not record.is_file():
                _refuse_taken(spec, target)
            try:
                conversion = _make_ready(spec, published, target, sources, shown, workers)
            finally:
                with contextlib.suppress(OSError):  # it holds a part of a download
                    (target / ARCHIVES).rmdir()
        if (ready / RECORD).is_file():
            record.unlink(missing_ok=True)
        _move_in(ready, target)
        _settle_downloads(target, published, keep_archives)
        if conversion is not None:
            conversion.out = target  # it was made beside its place
        with shown("checking", "files") as progress:
            report = check_dataset(_config(spec, target), workers=workers, progress=progress)
        kept = target / ARCHIVES if keep_archives else None
        return Fetched(target, report, conversion=conversion, archives=kept)


def _make_ready(
    spec: DatasetSpec,
    published: Download,
    root: Path,
    sources: Sequence[str],
    shown: Shown,
    workers: int | None,
) -> ConversionReport | None:
    """Make the folder of the whole dataset that only has to be moved into place."""
    places = {each.name: _places(each, published, sources) for each in published.archives}
    for archive in published.archives:
        found, own = places[archive.name], root / ARCHIVES / archive.name
        if os.path.lexists(own) and (not found or _is_address(found[0])):
            places[archive.name] = [str(own)]  # a file of the user: used, never removed
    for source in sources:
        if all(
            _places(each, published, [source]) == [*each.addresses] for each in published.archives
        ):
            raise ConfigError(
                "--from",
                found=hidden_query(source) if _is_address(source) else source,
                expected="one of the files "
                + ", ".join(a.name for a in published.archives)
                + ", or the folder that holds them (an address of a folder ends with a slash)",
                remedy="give one of these files, their folder, or the address of either",
            )
    for name, found in places.items():
        if not found:
            raise DataError(
                f"cgrseg data fetch {spec.name}: {name}",
                found="it can only be downloaded by hand",
                expected="the file of the dataset's makers",
                remedy=f"{published.by_hand}, and run this command with --from FOLDER",
            )
    needed = sum(
        archive.size * (_UNPACKED + _is_address(places[archive.name][0]))
        for archive in published.archives
    )
    _refuse_full_disk(root, needed - sum(p.stat().st_size for p in _downloads(root, published)))
    with partial_folder(root, "fetch") as staging:
        content, raw = make_folder(staging / "content"), make_folder(staging / "raw")
        origins = []
        for archive in published.archives:
            below = raw if archive.raw else content
            origins.append(_obtain(archive, places[archive.name], root / ARCHIVES, below, shown))
        conversion = None
        if published.converter:
            given: dict[str, Any] = {"source": raw / published.converter_source, "out": content}
            format = formats()[published.converter](**given, workers=workers)
            with shown("converting", "images") as progress:
                conversion = run_conversion(format, progress)
        write_json(
            content / RECORD,
            {
                "dataset": spec.name,
                "archives": origins,
                "terms": published.terms_page,
                "cgrseg": cgrseg.__version__,
            },
        )
        if hasattr(os, "sync"):
            os.sync()  # tens of thousands of small files, before their new names
        with explained(root):
            os.rename(content, root / _READY)
    return conversion


def _obtain(
    archive: Archive, places: Sequence[str], folder: Path, below: Path, shown: Shown
) -> dict[str, str]:
    """Download one archive and unpack it; its entry for the record.

    A damaged download is removed and repeated once, before the next place is tried.
    """
    problems: dict[str, None] = {}
    for place in places:
        path = Path(place)
        if _is_address(place):
            path = make_folder(folder) / f"{archive.name}{_DOWNLOADED}"
        for _ in range(2):
            try:
                if _is_address(place):
                    with shown(archive.name, "MB") as progress:
                        download(place, path, archive.size, progress)
                sums = _checked_digests(path, archive)
                with partial_folder(below, "archive") as own:
                    with shown("unpacking", "MB") as progress:
                        unpack(path, archive, own, progress)
                    _move_in(own, below)
            except Unreachable as problem:
                problems[_first_line(problem)] = None
                break
            except Damaged as problem:
                if not _is_address(place):
                    raise
                reason = _first_line(problem).removeprefix(f"{path}: ")
                problems[f"{hidden_query(place)}: {reason}"] = None
                path.unlink()
            except DataError:  # it is not safe to unpack
                if _is_address(place):
                    path.unlink()
                raise
            else:
                shown_place = hidden_query(place) if _is_address(place) else place
                return {"name": archive.name, "from": shown_place, "sha256": sums["sha256"]}
    raise DataError(
        f"cgrseg data fetch: {archive.name}",
        found="\n  ".join(problems),
        expected="the published file",
        remedy="try again later, or download it by hand and give it with --from FILE. Nothing of "
        "it was unpacked",
    )


def _checked_digests(path: Path, archive: Archive) -> dict[str, str]:
    algorithm, _, published = archive.digest.partition(":")
    try:
        sums = file_digests(path, algorithm)
    except OSError as error:
        raise DataError(
            path,
            found=f"it cannot be read ({error.strerror})",
            expected=f"the published {archive.name}",
            remedy="check the path and its permissions",
        ) from error
    if published and sums[algorithm] != published:
        raise Damaged(
            path,
            found=f"it is damaged or another file: its {algorithm} is {sums[algorithm]}, not "
            f"{published} (from {archive.digest_from})",
            expected=f"the published {archive.name}",
            remedy="remove this file or replace it by the published one; nothing was unpacked",
        )
    return sums


def _first_line(problem: DataError) -> str:
    return str(problem).partition("\n")[0]


def _is_address(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def _places(archive: Archive, published: Download, sources: Sequence[str]) -> list[str]:
    """Where to get an archive from: the given sources that have it, then the published places."""
    found = []
    for source in sources:
        if _is_address(source):
            source = checked_address(source, "--from")
        name = Path(source.rstrip("/")).name
        if source.endswith("/") if _is_address(source) else (Path(source) / archive.name).is_file():
            found.append(f"{source.rstrip('/')}/{archive.name}")
        elif name == archive.name or (
            len(published.archives) == 1 and (_is_address(source) or Path(source).is_file())
        ):
            found.append(source)
    return [*found, *archive.addresses]


def _downloads(root: Path, published: Download) -> list[Path]:
    """Downloads in the root, finished and unfinished ones, with their notes."""
    names = [
        f"{each.name}{_DOWNLOADED}{end}" for each in published.archives for end in ("", *ENDINGS)
    ]
    return [path for name in names if (path := root / ARCHIVES / name).is_file()]


def _settle_downloads(root: Path, published: Download, keep: bool) -> None:
    """Remove what this command downloaded, or give it the name of the archive."""
    for path in _downloads(root, published):
        if keep and path.suffix == _DOWNLOADED and not os.path.lexists(path.with_suffix("")):
            with explained(path):
                path.rename(path.with_suffix(""))
        else:
            path.unlink()
    with contextlib.suppress(OSError):  # it holds other files too, or does not exist
        (root / ARCHIVES).rmdir()


def _refuse_taken(spec: DatasetSpec, root: Path) -> None:
    """Refuse, before a download, folders of the dataset that hold files of the user."""
    folders = {
        below
        for layout in spec.splits.values()
        for below in (layout.images, layout.labels)
        if below
    }
    for below in sorted(folders):
        for part in (*[*reversed(Path(below).parents)][1:], Path(below)):
            place = root / part
            if place.is_symlink() or (os.path.lexists(place) and not place.is_dir()):
                found = "it is a symlink or a file"
            elif part == Path(below) and any(not each.is_dir() for each in place.rglob("*")):
                found = "it holds files that this command did not write"
            else:
                continue
            raise DataError(
                place,
                found=f"{found}; nothing was downloaded",
                expected="no files there: files of yours are never replaced",
                remedy="move it away and run the command again, or choose another folder with "
                "--out",
            )


def _refuse_full_disk(root: Path, needed: float) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        raise EnvironmentProblem(
            root,
            found=f"{free / 1e9:.1f} GB free on its disk",
            expected=f"about {needed / 1e9:.1f} GB, for the archives and their content",
            remedy="free some space, or choose another folder with --out",
        )


def _move_in(source: Path, target: Path) -> None:
    """Move the content of a folder into another one of the same disk, a record last.

    A call after an interruption moves the rest.

    Raises:
        DataError: other files of the same names are there; nothing is moved.
    """
    inside = sorted(path for path in source.rglob("*") if not path.is_dir())
    taken = [path for path in inside if _is_taken(path, source, target)]
    if taken:
        first = target / taken[0].relative_to(source)
        raise DataError(
            first,
            found=f"another file than the dataset's is there, and {len(taken) - 1} more below "
            f"{target}",
            expected="the same file, or none: files of yours are never replaced",
            remedy="move these files away and run the command again: the downloaded dataset is in "
            f"{source} and is moved from there",
        )
    for path in sorted(inside, key=lambda path: path.name == RECORD):
        _move(path, source, target)
    shutil.rmtree(source)


def _move(path: Path, source: Path, target: Path) -> None:
    """Move a file, or the outermost folder of it that the target does not have."""
    if not path.exists():
        return  # moved with its folder
    inside = path.relative_to(source)
    for part in (*[*reversed(inside.parents)][1:], inside):
        if not (target / part).exists():
            with explained(target / part):
                os.rename(source / part, target / part)
            return
    path.unlink()  # the same file is there


def _is_taken(path: Path, source: Path, target: Path) -> bool:
    """Whether another file, or a symlink, is in the place of a file."""
    inside = path.relative_to(source)
    above = [target / part for part in inside.parents]
    if any(each != target and (each.is_symlink() or each.is_file()) for each in above):
        return True
    place = target / inside
    return os.path.lexists(place) and not (
        place.is_file() and not place.is_symlink() and same_content(path, place)
    )


def _config(spec: DatasetSpec, root: Path) -> DataConfig:
    return DataConfig(dataset=spec.name, root=str(root))


@contextlib.contextmanager
def _unseen(what: str, unit: str) -> Iterator[Progress | None]:
    yield None
