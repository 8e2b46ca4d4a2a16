"""Hugging Face datasets in parquet files, local or from the hub.

Format: https://huggingface.co/docs/datasets/image_dataset.  A row holds an image and its mask, each
as the bytes of a file with its path (the feature `Image` of `datasets`).  The schema's metadata has
the features as JSON under `huggingface`.  File names give the split, as in
`train-00000-of-00002.parquet`.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from cgrseg.class_names import MAX_CLASSES, check_class_names, listed, read_class_list
from cgrseg.data.convert.custom_format import IGNORE, written_name
from cgrseg.data.convert.format import Embedded, Failure, Option, reading
from cgrseg.data.convert.image_names import named_inside
from cgrseg.data.convert.tool_format import LabeledImage, MaskFormat, Source, plain_split
from cgrseg.data.file_index import plain_form
from cgrseg.data.image_files import JPEG_MAGIC, PNG_MAGIC
from cgrseg.data.label_files import ColorLabel, decode_label_values
from cgrseg.data.parallel import run_parallel
from cgrseg.errors import DataError, option
from cgrseg.extras import require
from cgrseg.hub import download, is_hub_id
from cgrseg.input_files import open_input, read_input_text, refuse_special
from cgrseg.provenance import file_state

CLASS_FILE = "id2label.json"
CONVERTED = "refs/convert/parquet"
"""Branch of the hub that has parquet files of datasets in other forms."""

_IMAGES = ("image", "pixel_values")
_LABELS = ("label", "annotation", "labels", "mask")
_SUFFIXES = {
    JPEG_MAGIC: ".jpg",
    PNG_MAGIC: ".png",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"RIFF": ".webp",
}
_MAGIC = b"PAR1"
_DEPTH = 3  # levels of folders with parquet files: CONFIGURATION/SPLIT/0000.parquet on the hub
_BATCH = 16  # rows that are decoded at a time
_BUFFER = 1 << 20  # bytes


@dataclass
class HuggingFace(MaskFormat):
    """Hugging Face datasets: a folder of parquet files, one file, or a hub id.

    Example:
      cgrseg data convert huggingface owner/name data/mine --ignore unlabeled
    """

    name = "huggingface"

    _: KW_ONLY
    image_column: Annotated[
        str | None, Option(f"Column of the images. Default: {' or '.join(_IMAGES)}.")
    ] = None
    label_column: Annotated[
        str | None, Option(f"Column of the masks. Default: {', '.join(_LABELS)}.")
    ] = None
    revision: Annotated[
        str | None, Option("Branch, tag or commit of a hub id. Default: the main branch.")
    ] = None

    @classmethod
    def recognize(cls, source: Path) -> str:
        """A parquet file."""
        for path in _parquet_files(source)[:1]:
            with contextlib.suppress(OSError), open_input(path) as stream:
                if stream.read(len(_MAGIC)) == _MAGIC:
                    return path.name
        return ""

    def find(self) -> Source:
        """Classes are those of id2label.json or of a ClassLabel feature, in the order of ids."""
        root = self._root()
        files = _parquet_files(root)
        if not files:
            raise DataError(
                root,
                found="no parquet files",
                expected="files such as data/train-00000-of-00001.parquet",
                remedy="write a dataset on disk with to_parquet; for a hub id, use "
                f"{option('--revision', CONVERTED)}, where the hub keeps other forms as parquet",
            )
        folder = root if root.is_dir() else root.parent
        _refuse_configurations(folder, files)
        scan = functools.partial(_scan, self.image_column, self.label_column)
        scans = list(run_parallel(scan, files, workers=self.workers))
        read = [each for each in scans if isinstance(each, _Scan)]
        images: list[LabeledImage | Failure] = [each for each in scans if isinstance(each, Failure)]
        if not read:
            raise DataError(next(each.message for each in images if isinstance(each, Failure)))
        table = next(
            (p for p in (folder / CLASS_FILE, folder.parent / CLASS_FILE) if p.exists()), None
        )
        codes, where = self._class_names(root, table, read)
        known: dict[int, str | None] = {IGNORE: None, **codes}
        splits = self._splits(folder, [each.file for each in read])
        alike = Counter((splits[path], path.stem.casefold()) for path in splits)
        prefixes = {
            path: path.stem
            if alike[split, path.stem.casefold()] == 1
            else "_".join(path.relative_to(folder).with_suffix("").parts)
            for path, split in splits.items()
        }
        taken = Counter(
            (splits[each.file], stem.casefold())
            for each in read
            for row in each.rows
            for stem in {_stem(row.path), f"{prefixes[each.file]}_{row.number:06d}"}
        )
        numbered = 0
        for each in read:
            images += each.failures
            split = splits[each.file]
            for row in each.rows:
                stem = _stem(row.path)
                if not stem or taken[split, stem.casefold()] > 1:
                    stem = f"{prefixes[each.file]}_{row.number:06d}"
                    numbered += bool(row.suffix)
                images.append(
                    LabeledImage(
                        each.file,
                        f"{stem}{row.suffix}" if row.suffix else row.path,
                        split=split,
                        folders=[each.file.parent],
                        mask=_Cell(each.file, row.number, each.columns, 1),
                        embedded=_Cell(each.file, row.number, each.columns, 0)
                        if row.suffix
                        else None,
                        inputs=[table] if table else (),
                        codes=known,
                    )
                )
        notes = [f"class names: {where}"]
        if numbered:
            notes.append(
                f"{numbered} images are named after file and row: their own names are missing, "
                "not unique, or no file names"
            )
        return Source(images, list(codes.values()), notes=notes)

    @staticmethod
    def read_codes(mask: Embedded) -> np.ndarray:
        """Values of a mask."""
        try:
            return decode_label_values(mask.read(), str(mask))
        except ColorLabel as error:
            raise DataError(
                mask,
                found="a mask in color",
                expected="class ids in gray or with a palette",
                remedy="choose another column of masks (--label-column), or save image and mask of "
                "each row as files and use `cgrseg data convert rgb IMAGES MASKS OUT`",
            ) from error

    def _root(self) -> Path:
        """The local source, downloaded where it is a hub id."""
        hub_id = self.source.as_posix()
        if self.source.exists():
            if self.revision is not None:
                raise DataError(
                    self.source,
                    found=f"a local source with {option('--revision', self.revision)}",
                    expected="a revision with a hub id only",
                    remedy=f"leave {option('--revision')} out; to download a hub id of this "
                    "name, run the command in another folder",
                )
            return self.source
        if not is_hub_id(hub_id):
            raise DataError(
                self.source,
                found="no such file or folder",
                expected="parquet files, or a hub id such as owner/name",
                remedy="check the path",
            )
        patterns = ["*.parquet", CLASS_FILE]
        return download(hub_id, patterns, DataError, repo_type="dataset", revision=self.revision)

    def _splits(self, folder: Path, files: Sequence[Path]) -> dict[Path, str | None]:
        """Split of each file."""
        splits = {path: self.split or _split_of(path.relative_to(folder)) for path in files}
        without = [str(path) for path, split in splits.items() if split is None]
        if without and len(without) < len(splits):
            raise DataError(
                folder,
                found=f"no split in the names of {listed(without)}, beside files with one",
                expected="a split in the name of each file, or of none",
                remedy="rename these files, such as train-0.parquet, or choose one split for all "
                f"files: {option('--split', 'train')}",
            )
        return splits

    def _class_names(
        self, root: Path, table: Path | None, scans: Sequence[_Scan]
    ) -> tuple[dict[int, str], str]:
        """Class name of each value of the masks, and where the names are from."""
        if table is not None:
            return _read_names(table), str(table)
        features = {each.names: each for each in scans if each.names}
        if len(features) == 1:
            ((column, names), scan) = next(iter(features.items()))
            place = f"the feature ClassLabel of {column}"
            named = (written_name(name, f"{scan.file}, {place}") for name in names)
            return dict(enumerate(named)), place
        if self.classes is not None:
            given = check_class_names(self.classes, "--classes", most=MAX_CLASSES)
            return dict(enumerate(given)), option("--classes")
        if self.class_file.is_file() and not self.ignored:  # it lacks names that were ignored
            return dict(enumerate(read_class_list(self.class_file))), str(self.class_file)
        found = " and ".join(column for column, _ in features) or "no names"
        raise DataError(
            root,
            found=f"{found}, where the names of the masks' values are needed",
            expected=f"{CLASS_FILE}, or one feature ClassLabel in a list",
            remedy=f"write {CLASS_FILE} beside the files, such as "
            '{"0": "road", "1": "car"}, or name the values from 0 on: '
            f"{option('--classes', 'road,car')}",
        )


@dataclass(frozen=True)
class _Cell(Embedded):
    """An image or a mask in a row of a file."""

    file: Path
    row: int
    columns: tuple[str, str]
    place: int
    """0: the image, 1: the mask."""

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}, {self.columns[self.place]}"

    def read(self) -> bytes:
        content, _ = _rows(self.file, file_state(self.file), self.columns)[self.row][self.place]
        return content or b""


@dataclass(frozen=True)
class _Row:
    """An image with a mask: its number in the file, its path, and the ending of its format.

    The ending is empty where the path is all there is of the image.
    """

    number: int
    path: str
    suffix: str


@dataclass(frozen=True)
class _Scan:
    """What a file holds; `names` are a column of class names and these names."""

    file: Path
    columns: tuple[str, str]
    names: tuple[str, tuple[str, ...]] | None
    rows: list[_Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class _Rows:
    """Rows of a file by number, read fastest in rising order; one row group is in memory.

    Raises:
        DataError: the file or the row is damaged.
    """

    def __init__(self, file: Path, columns: tuple[str, str]) -> None:
        self._name, self._columns = file, columns
        with _reading(file):
            self._file = _open(file)
            groups = range(self._file.num_row_groups)
            sizes = [self._file.metadata.row_group(k).num_rows for k in groups]
            if min(sizes, default=0) < 0:
                raise ValueError("a row group of fewer than 0 rows")
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._damaged: dict[int, tuple[int, Exception]] = {}  # of a group: first row, and why
        # The batch in memory: its row group (none yet), its first row, and how many rows it has.
        self._group, self._first, self._length = -1, 0, 0
        self._batch: Any = None
        self._batches: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return self._starts[-1]

    def after(self, row: int) -> int:
        """The next row that may be readable."""
        group = bisect.bisect_right(self._starts, row) - 1
        lost, _ = self._damaged.get(group, (row + 1, None))
        return self._starts[group + 1] if row >= lost else row + 1

    def __getitem__(self, row: int) -> tuple[tuple[bytes | None, str], tuple[bytes | None, str]]:
        """Bytes and path of image and mask."""
        group = bisect.bisect_right(self._starts, row) - 1
        lost, reason = self._damaged.get(group, (row + 1, None))
        if reason is not None and row >= lost:
            with _reading(f"{self._name}, rows {lost} to {self._starts[group + 1] - 1}"):
                raise reason
        with _reading(f"{self._name}, row {row}"):
            if group != self._group or row < self._first:
                self._group, self._first, self._length = group, self._starts[group], 0
                self._batches = self._file.iter_batches(
                    _BATCH, row_groups=[group], columns=list(self._columns)
                )
            while row >= self._first + self._length:
                self._first, self._length = self._first + self._length, 0
                try:
                    self._batch = next(self._batches)
                    self._batch.validate()
                except Exception as error:
                    self._damaged[group] = self._first, error
                    return self[row]
                self._length = self._batch.num_rows
            cells = (self._batch.column(name)[row - self._first] for name in self._columns)
            image, mask = (_content(cell.as_py()) for cell in cells)
            return image, mask


@functools.lru_cache(maxsize=1)
def _rows(file: Path, state: str, columns: tuple[str, str]) -> _Rows:
    return _Rows(file, columns)


def _open(file: Path) -> Any:
    parquet = require("pyarrow.parquet", file)
    refuse_special(file)
    return parquet.ParquetFile(str(file), buffer_size=_BUFFER, page_checksum_verification=True)


_reading = functools.partial(
    reading,
    expected="parquet as `datasets` writes it",
    remedy="download or write the file again",
    also=(Exception,),  # Arrow's errors are of many classes
)


def _content(value: Any) -> tuple[bytes | None, str]:
    """Bytes and path of a file in a cell."""
    cell = {"bytes": value} if isinstance(value, bytes) else value or {}
    content, path = cell.get("bytes"), cell.get("path")
    return content if isinstance(content, bytes) else None, path if isinstance(path, str) else ""


def _parquet_files(source: Path) -> list[Path]:
    if source.suffix == ".parquet" and not source.is_dir():
        return [source]
    levels = ("*/" * depth + "*.parquet" for depth in range(_DEPTH))
    found = (path for pattern in levels for path in source.glob(pattern))
    return sorted(path for path in found if "/." not in f"/{path.relative_to(source).as_posix()}")


def _refuse_configurations(folder: Path, files: Sequence[Path]) -> None:
    """Raise where the folders are several datasets of one repository."""
    tops = {}
    for path in files:
        below = path.relative_to(folder).parts
        below = below[1:] if below[0] == "data" else below
        name = below[0] if len(below) > 1 else "."
        if not _split_of(Path(name)):
            tops[name] = path.parents[max(len(below) - 2, 0)]
    if len(tops) > 1:
        raise DataError(
            folder,
            found=f"parquet files of several configurations: {listed(sorted(tops))}",
            expected="one of them",
            remedy=f"convert one folder, such as {tops[max(tops)]}",
        )


def _split_of(path: Path) -> str | None:
    """The first word of a file's name, or of the folders above it, that names a split."""
    for part in (path.stem, *reversed(path.parts[:-1])):
        for word in re.split(r"[\W_\d]+", part):
            if split := plain_split(word):
                return split
    return None


def _stem(path: str) -> str:
    """Name of an image without ending; empty: it has none that a file may have."""
    stem = plain_form(Path(path.replace("\\", "/").rpartition("/")[2]).stem)
    with contextlib.suppress(ValueError):
        named_inside(Path(), f"{stem}.webp")
        return "" if stem.startswith(".") else stem
    return ""


def _scan(image_column: str | None, label_column: str | None, file: Path) -> _Scan | Failure:
    """Columns, class names and rows of a file; or why it cannot be used."""
    try:
        with _reading(file):
            schema = _open(file).schema_arrow
            features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            names = _class_labels(features.get("info", {}).get("features", {}))
            columns = (
                _column(schema, image_column, _IMAGES, file, option("--image-column", "NAME")),
                _column(schema, label_column, _LABELS, file, option("--label-column", "NAME")),
            )
            rows = _Rows(file, columns)
    except DataError as error:
        return Failure(str(file), str(error))
    scan = _Scan(file, columns, names)
    number = 0
    while number < len(rows):
        try:
            (image, path), (mask, _) = rows[number]
            suffix = "" if image is None else _suffix(image, f"{file}, row {number}, {columns[0]}")
            if mask is None or not (suffix or path):
                raise DataError(
                    f"{file}, row {number}",
                    found=f"no bytes in {columns[1] if mask is None else columns[0]}",
                    expected="image and mask inside the file",
                    remedy="write the file with the images embedded, as push_to_hub does",
                )
            scan.rows.append(_Row(number, path, suffix))
        except DataError as error:
            scan.failures.append(Failure(str(file), str(error)))
        number = rows.after(number)
    return scan


def _suffix(image: bytes, where: str) -> str:
    for magic, suffix in _SUFFIXES.items():
        if image.startswith(magic):
            return suffix
    raise DataError(
        where,
        found=f"bytes that begin with {image[:8]!r}",
        expected="JPEG, PNG, BMP, TIFF or WebP",
        remedy="convert the image, and write the file again",
    )


def _column(schema: Any, given: str | None, known: Sequence[str], file: Path, remedy: str) -> str:
    """The only column with files of images that is `given`, or else one of those `known`."""
    types = require("pyarrow", file).types
    usable = [
        each.name
        for each in schema
        if types.is_binary(each.type)
        or types.is_large_binary(each.type)
        or (types.is_struct(each.type) and each.type.get_field_index("bytes") >= 0)
    ]
    chosen = [name for name in usable if name in ([given] if given else known)]
    if len(chosen) != 1:
        raise DataError(
            file,
            found=f"the columns {listed(schema.names)}, of which {listed(usable) or 'none'} hold "
            "image files",
            expected=f"one column {given or ' or '.join(known)} with image files",
            remedy=f"choose the column: {remedy}",
        )
    return chosen[0]


def _class_labels(features: Any) -> tuple[str, tuple[str, ...]] | None:
    """The only column that is a list of class names, and these; None: there is not one.

    A ClassLabel outside a list names the whole image, one in a struct names objects.
    """
    found = {}
    for column, feature in features.items():
        inner = feature
        while isinstance(inner, list) and len(inner) == 1:
            inner = inner[0]
        while isinstance(inner, dict) and {"_type", "feature"} <= inner.keys():
            inner = inner["feature"]
        if inner is not feature and isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            found[tuple(map(str, inner["names"]))] = column
    return (
        next(((column, names) for names, column in found.items()), None)
        if len(found) == 1
        else None
    )


def _read_names(path: Path) -> dict[int, str]:
    with reading(
        path,
        expected='the name of each value, such as {"0": "road", "1": "car"}',
        remedy="download or correct the file",
    ):
        entries = json.loads(read_input_text(path))
        names = {int(key): name for key, name in entries.items()}
        if not names or min(names) < 0 or len(names) < len(entries):
            raise ValueError("it names no value, a negative one, or one twice")
        return {k: written_name(names[k], f"{path}, {k}") for k in sorted(names)}
