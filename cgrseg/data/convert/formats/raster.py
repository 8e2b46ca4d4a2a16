"""Georeferenced rasters with their labels, cut into tiles (extra `geo`).

Square blocks of tiles lie side by side with a gap between them.  A block is drawn for one split as
a whole, so that pixels of different splits neither overlap nor touch.

Labels are a raster on the same grid, or polygons of a GeoJSON file: RFC 7946 (longitude and
latitude), or with the member `crs` of GeoJSON 2008.  `rasterio.features.rasterize` draws them: a
pixel belongs to the last polygon that covers its center.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np

from cgrseg.class_names import listed
from cgrseg.config.fields import MAX_SIDE
from cgrseg.config.schema import AugmentConfig
from cgrseg.data.convert.custom_format import (
    IGNORE,
    Background,
    Classes,
    ClassTable,
    CustomFormat,
    OutFolder,
    written_name,
)
from cgrseg.data.convert.format import (
    Annotations,
    Argument,
    Embedded,
    Failure,
    Option,
    Task,
    reading,
)
from cgrseg.data.scenes import RASTER_SUFFIXES, opened_scene, reading_scene
from cgrseg.errors import ConfigError, DataError, option
from cgrseg.extras import require
from cgrseg.input_files import read_input_text
from cgrseg.provenance import content_digest, joint_state

_SCENE_SUFFIXES = (*RASTER_SUFFIXES, ".vrt")
_VECTOR_SUFFIXES = (".geojson", ".json")
_OTHER_VECTORS = (".gpkg", ".shp", ".kml", ".gml", ".fgb", ".gdb")
_ATTRIBUTES = ("class", "label", "name")
_LONGITUDE_LATITUDE = "OGC:CRS84"


@dataclass(frozen=True)
class _Scene:
    """A raster, its labels, and where it lies.

    Attributes:
        path: path or address that GDAL opens.
        labels: file with its labels.
        attribute: property of the polygons with the class; None: found by itself.
        size: height and width.
        crs: coordinate system as WKT; None: it names none.
        transform: from (column, row) to coordinates, six numbers.
        bands: names of its bands.
        types: types of their values.
        state: digest of the state of its files and of its labels.
    """

    path: str
    labels: str
    attribute: str | None
    size: tuple[int, int]
    crs: str | None
    transform: tuple[float, ...]
    bands: tuple[str, ...]
    types: tuple[str, ...]
    state: str

    @property
    def has_polygons(self) -> bool:
        return Path(self.labels).suffix.lower() in _VECTOR_SUFFIXES

    def bounds(self, row: int, column: int, height: int, width: int) -> tuple[float, ...]:
        """Left, bottom, right, top of a part, in coordinates."""
        a, b, c, d, e, f = self.transform
        corners = [(column + w, row + h) for w in (0, width) for h in (0, height)]
        xs = [a * x + b * y + c for x, y in corners]
        ys = [d * x + e * y + f for x, y in corners]
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class _Tile(Embedded):
    """A square part of a scene; beyond its border there is no data.

    Attributes:
        scene: the scene.
        row: of the first pixel.
        column: of the first pixel.
        side: height and width.
        table: label value of each class name.
        codes: label value of each value 0..255 of a label raster; -1: unknown.
    """

    scene: _Scene
    row: int
    column: int
    side: int
    table: ClassTable
    codes: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.scene.path}, row {self.row}, column {self.column}"

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns inside the scene."""
        height, width = self.scene.size
        return (
            (self.row, min(self.row + self.side, height)),
            (self.column, min(self.column + self.side, width)),
        )

    def padded(self, part: np.ndarray, fill: Any) -> np.ndarray:
        """(side, side) of a part (h, w) inside the scene."""
        margins = [(0, self.side - length) for length in part.shape]
        return np.pad(part, margins, constant_values=fill)

    def _filled(self, pixels: np.ndarray, known: np.ndarray) -> np.ndarray:
        """(C, side, side) of a part (C, h, w): where there is no data, the mean of the band.

        A number that stands for no data would spoil mean and deviation of the channels.
        """
        bands = []
        for band in pixels:
            valid = known & np.isfinite(band)
            mean = band[valid].mean(dtype=float) if valid.any() else 0.0
            fill = mean if band.dtype.kind == "f" else round(mean)
            bands.append(self.padded(np.where(valid, band, band.dtype.type(fill)), fill))
        return np.stack(bands)

    def transform(self) -> Any:
        """Affine transform of the tile."""
        rasterio = require("rasterio", self.scene.path)
        shift = rasterio.Affine.translation(self.column, self.row)
        return rasterio.Affine(*self.scene.transform) @ shift

    def read(self) -> bytes:
        """A GeoTIFF of the tile: all bands, their type, names and colors, CRS and transform."""
        rasterio = require("rasterio", self.scene.path)
        with opened_scene(self.scene.path) as scene, rasterio.io.MemoryFile() as memory:
            with reading_scene(self.scene.path):
                pixels = scene.read(window=self.window)
                known = scene.dataset_mask(window=self.window) != 0
            colors = [color.name for color in scene.colorinterp]
            profile = {
                "driver": "GTiff",
                "height": self.side,
                "width": self.side,
                "count": scene.count,
                "dtype": pixels.dtype,
                "crs": scene.crs,
                "transform": self.transform(),
                "photometric": "rgb" if colors[:3] == ["red", "green", "blue"] else "minisblack",
                "compress": "deflate",
            }
            with memory.open(**profile) as target:
                target.write(self._filled(pixels, known))
                target.descriptions = scene.descriptions
                with contextlib.suppress(ValueError):  # colors that a GeoTIFF does not have
                    target.colorinterp = scene.colorinterp
            return bytes(memory.getbuffer())


@dataclass
class RasterTiles(CustomFormat):
    """Tiles of GeoTIFFs and other rasters, with polygons or label rasters.

    Blocks of tiles are drawn for train or val as a whole, with a gap between
    them. Pixels without data, or without a label, are ignored. Needs the
    extra [geo].

    Example:
      cgrseg data convert raster scene.tif fields.geojson data/mine
    """

    name = "raster"
    scene: Annotated[
        str, Argument("Raster that GDAL reads, also at an address; or a folder of rasters.")
    ]
    labels: Annotated[
        str,
        Argument(
            "GeoJSON polygons, or a label raster on the same grid; or a folder with files of "
            "the rasters' names."
        ),
    ]
    out: OutFolder
    _: KW_ONLY
    classes: Classes = None
    background: Background = None
    attribute: Annotated[
        str | None,
        Option("Region attribute that holds the class. Default: class, label or name."),
    ] = None
    first_id: Annotated[
        int, Option("Value of the first class in a label raster.", least=0, most=255)
    ] = 0
    tile: Annotated[
        int, Option("Height and width of a tile in pixels.", least=32, most=MAX_SIDE)
    ] = 512
    block: Annotated[int, Option("Tiles of a block along each axis.", least=1, most=10_000)] = 4
    gap: Annotated[int, Option("Pixels between neighboring blocks.", least=1, most=MAX_SIDE)] = 64
    val_share: Annotated[
        float, Option("Share of the blocks drawn for val.", least=0, most=0.99)
    ] = 0.2
    seed: Annotated[int, Option("Seed of all random numbers.", least=0, most=2**63 - 1)] = 0

    def read(self) -> Annotations:
        """Class ids follow the class names given, else the label raster's, else the alphabet."""
        self._check_settings()
        failures: list[Failure] = []
        errors: list[DataError] = []
        scenes: list[_Scene] = []
        for path, labels in self._sources():
            try:
                if labels is None:
                    raise DataError(
                        path,
                        found=f"no labels of this name in {self.labels}",
                        expected="a label raster or GeoJSON for each raster",
                        remedy="add the labels, or move the raster away",
                    )
                scenes.append(_scene(path, labels, self.attribute))
            except DataError as error:
                errors.append(error)
                failures.append(Failure(path, str(error)))
        if not scenes:
            raise errors[0]
        if self._divides:
            _refuse_neighbors(scenes)
        left_out: Counter[str] = Counter()
        table, codes = self._table(scenes, left_out)
        tasks, notes = self._tasks(scenes, table, codes)
        notes += [f"left out: {count} x {what}" for what, count in left_out.items()]
        notes += _advice(scenes)
        if self.tile != min(AugmentConfig().scale):
            scale = f"scale=[{self.tile},{self.tile}]"
            notes.append(
                f"to train at the resolution of the raster: 'augment.{scale}' 'test.{scale}'"
            )
        annotations = self.shape_annotations(table, [*failures, *tasks], notes)
        own = ("attribute", "first_id", "tile", "block", "gap", "val_share", "seed")
        annotations.settings = {
            **annotations.settings,
            **{name: getattr(self, name) for name in own},
        }
        return annotations

    @staticmethod
    def draw(task: Task) -> np.ndarray:
        """The labels of one tile."""
        tile: _Tile = task.content
        found = _drawn(tile) if tile.scene.has_polygons else _looked_up(tile)
        if (found != IGNORE).any():
            with opened_scene(tile.scene.path) as scene, reading_scene(tile.scene.path):
                found[scene.dataset_mask(window=tile.window) == 0] = IGNORE
        return tile.padded(found, IGNORE)

    @property
    def _divides(self) -> bool:
        return self.split is None and self.val_share > 0

    def _check_settings(self) -> None:
        for name, fits, expected in (
            ("tile", self.tile >= 32, "at least 32 pixels"),
            ("block", self.block >= 1, "at least 1 tile"),
            ("gap", self.gap >= 1, "at least 1 pixel, so that blocks do not touch"),
            ("val_share", 0 <= self.val_share < 1, "a share from 0 to less than 1"),
        ):
            if not fits:
                raise ConfigError(
                    name,
                    found=f"{getattr(self, name)}, which tiles cannot be cut with",
                    expected=expected,
                    remedy="correct it, or leave it out",
                )

    def _sources(self) -> list[tuple[str, str | None]]:
        """Each raster with its labels."""
        folder, labels = Path(self.scene), Path(self.labels)
        if not folder.is_dir():
            return [(self.scene, self.labels)]
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SCENE_SUFFIXES)
        if not paths:
            raise DataError(
                folder,
                found="no rasters",
                expected=f"files that end in one of {', '.join(_SCENE_SUFFIXES)}",
                remedy="check the path",
            )
        if not labels.is_dir():
            return [(str(path), self.labels) for path in paths]
        named = {
            path.stem: str(path)
            for path in sorted(labels.iterdir())
            if path.suffix.lower() in (*_SCENE_SUFFIXES, *_VECTOR_SUFFIXES, *_OTHER_VECTORS)
        }
        return [(str(path), named.get(path.stem)) for path in paths]

    def _table(
        self, scenes: Sequence[_Scene], left_out: Counter[str]
    ) -> tuple[ClassTable, tuple[int, ...]]:
        """Label values of the class names, and those of the values of a label raster."""
        used: dict[str, None] = {}
        listed_names: list[str] | None = None
        for each in scenes:
            if each.has_polygons:
                features = _features(each.labels, each.attribute, each.crs, each.state)
                used |= dict.fromkeys(feature.name for feature in features.found)
                left_out.update(features.left_out)
            elif listed_names is None:
                listed_names = self._raster_classes(each)
        if listed_names is None:
            names = self.kept_names(self.labels, sorted(used))
            table = self.settle_classes(self.classes, found=names, background=self.background)
            unknown = [name for name in used if name not in (*table.classes, *table.ignored)]
            if unknown:
                raise DataError(
                    self.labels,
                    found=f"polygons of {listed(unknown)}",
                    expected=f"the class names {listed(table.classes)}",
                    remedy=f"add them with {option('--classes')}, or leave their pixels out with "
                    f"{option('--ignore')}",
                )
            return table, ()
        kept = self.kept_names(self.labels, listed_names)
        table = self.settle_classes([*kept, *sorted(set(used) - set(listed_names))])
        codes = [-1] * 256
        for k, name in enumerate(listed_names[: 256 - self.first_id]):
            codes[self.first_id + k] = table.value(name)
        codes[IGNORE] = IGNORE
        return table, tuple(codes)

    def _raster_classes(self, scene: _Scene) -> list[str]:
        """Class names in the order of the values of a label raster."""
        if self.classes is not None:
            return list(self.classes)
        with opened_scene(scene.labels) as labels:
            given = labels.tags().get("classes")
        with reading(
            scene.labels,
            expected="a label raster whose tag 'classes' is a JSON list of names",
            remedy=f"give the names with {option('--classes')}",
        ):
            names = json.loads(given) if given else None
            if not isinstance(names, list):
                raise ValueError("no class names")
            return [written_name(name, scene.labels) for name in names]

    def _tasks(
        self, scenes: Sequence[_Scene], table: ClassTable, codes: tuple[int, ...]
    ) -> tuple[list[Task], list[str]]:
        tasks: list[Task] = []
        tiles: Counter[str] = Counter()
        blocks: dict[str, set[tuple[str, int, int]]] = {}
        for scene in scenes:
            stem = Path(scene.path).stem
            rows, columns = (list(self._starts(length)) for length in scene.size)
            for block_row, row in rows:
                for block_column, column in columns:
                    split = self._split_of(stem, block_row, block_column)
                    tiles[split] += 1
                    blocks.setdefault(split, set()).add((stem, block_row, block_column))
                    tile = _Tile(scene, row, column, self.tile, table, codes)
                    task = self.task(
                        Path(scene.path),
                        Path(f"{stem}_{row:06d}_{column:06d}.tif"),
                        split=split,
                        embedded=tile,
                        size=(self.tile, self.tile),
                        source_state=scene.state,
                        content=tile,
                        optional=True,
                    )
                    tasks.append(task)
        if tasks and self._divides and len(blocks) < 2:
            ((only, all_blocks),) = blocks.items()
            raise ConfigError(
                "seed",
                found=f"{len(all_blocks)} blocks, all drawn for {only}",
                expected="blocks of train and of val",
                remedy=f"try another seed, or smaller blocks ({option('--block')}); with "
                f"{option('--split')} all tiles go to one split",
            )
        return tasks, [f"{k}: {tiles[k]} tiles in {len(blocks[k])} blocks" for k in sorted(blocks)]

    def _starts(self, length: int) -> Iterator[tuple[int, int]]:
        """Number of the block, and first pixel, of each tile along an axis."""
        pitch = self.block * self.tile + self.gap
        for block, first in enumerate(range(0, length, pitch)):
            for start in range(first, min(first + self.block * self.tile, length), self.tile):
                yield block, start

    def _split_of(self, stem: str, row: int, column: int) -> str:
        digest = content_digest(f"{self.seed} {stem} {row} {column}".encode())
        return "val" if int(digest[:8], 16) < self.val_share * 2**32 else "train"


@dataclass(frozen=True)
class _Feature:
    """A polygon: class name, geometry in the coordinates of a scene, and its bounds."""

    name: str
    geometry: dict[str, Any]
    bounds: tuple[float, ...]


@dataclass(frozen=True)
class _Features:
    """Polygons of a file, the lowest first; and what has no area or no class."""

    found: list[_Feature]
    left_out: Counter[str]


@functools.lru_cache(maxsize=2)  # read once per process
def _features(path: str, attribute: str | None, crs: str | None, _state: str) -> _Features:
    """Polygons of a GeoJSON file in a coordinate system.

    Raises:
        DataError: malformed, or no polygon has a class.
    """
    rasterio = require("rasterio", path)
    features = require("rasterio.features", path)
    warp = require("rasterio.warp", path)
    found: list[_Feature] = []
    left_out: Counter[str] = Counter()
    with reading(
        path,
        expected="a GeoJSON FeatureCollection of polygons with a class",
        remedy="export it again, or convert it: ogr2ogr -f GeoJSON NEW.geojson OLD",
        also=(rasterio.errors.RasterioError,),
    ):
        data = json.loads(read_input_text(Path(path), "utf-8-sig"))
        given = (data.get("crs") or {}).get("properties", {}).get("name", _LONGITUDE_LATITUDE)
        source, target = rasterio.CRS.from_user_input(given), rasterio.CRS.from_wkt(crs)
        for number, feature in enumerate(data["features"], start=1):
            geometry, properties = feature["geometry"], feature.get("properties") or {}
            kind = "no geometry" if geometry is None else geometry["type"]
            if kind not in ("Polygon", "MultiPolygon"):
                left_out[f"{kind}, which has no area"] += 1
                continue
            name = _class_of(properties, attribute)
            if name is None:
                left_out[f"feature without {attribute or 'a class'}"] += 1
                continue
            if not features.is_valid_geom(geometry):
                left_out["polygon without three corners"] += 1
                continue
            if source != target:
                geometry = warp.transform_geom(source, target, geometry)
            name = written_name(name, f"{path}, feature {number}")
            found.append(_Feature(name, geometry, features.bounds(geometry)))
    if not found:
        properties = sorted(
            {key for one in data["features"] for key in one.get("properties") or ()}
        )
        raise DataError(
            path,
            found=f"no polygon with a class; properties: {listed(properties) or 'none'}",
            expected=f"polygons with the property {attribute or ' or '.join(_ATTRIBUTES)}",
            remedy=f"name the property with {option('--attribute')}",
        )
    return _Features(found, left_out)


def _class_of(properties: dict[str, Any], attribute: str | None) -> str | None:
    """The class of a feature; numbers count where their property is named."""
    if attribute is not None:
        value = properties.get(attribute)
        return None if value is None else str(value)
    texts = (properties.get(name) for name in _ATTRIBUTES)
    return next((text for text in texts if isinstance(text, str) and text.strip()), None)


def _scene(path: str, labels: str, attribute: str | None) -> _Scene:
    """Open a raster and its labels once.

    Raises:
        DataError: GDAL cannot open them, labels of another kind or on another grid, or bands
            of different types.
    """
    if Path(labels).suffix.lower() in _OTHER_VECTORS:
        raise DataError(
            labels,
            found="vector labels of another format than GeoJSON",
            expected=f"GeoJSON ({', '.join(_VECTOR_SUFFIXES)}), or a label raster",
            remedy="convert them: ogr2ogr -f GeoJSON labels.geojson LABELS",
        )
    with opened_scene(path) as scene:
        if len(set(scene.dtypes)) > 1:
            raise DataError(
                path,
                found=f"bands of {', '.join(scene.dtypes)}",
                expected="one type, since a GeoTIFF has one",
                remedy="convert it: gdal_translate -ot Float32 SCENE NEW.tif",
            )
        found = _Scene(
            path=path,
            labels=labels,
            attribute=attribute,
            size=(scene.height, scene.width),
            crs=scene.crs.to_wkt() if scene.crs else None,
            transform=tuple(scene.transform)[:6],
            bands=tuple(
                name or f"band{number}" for number, name in enumerate(scene.descriptions, start=1)
            ),
            types=scene.dtypes,
            state=joint_state([path, *scene.files, labels]),
        )
        if found.has_polygons:
            if found.crs is None or scene.transform.is_identity:
                raise DataError(
                    path,
                    found="a raster without a coordinate system or a transform",
                    expected="both, to place polygons on it",
                    remedy="warp it (gdalwarp SCENE WARPED.tif), or name the system: gdal_edit.py "
                    "-a_srs EPSG:NUMBER SCENE",
                )
            return found
        with opened_scene(labels) as other:
            same = scene.transform.almost_equals(other.transform, abs(scene.transform.a) * 1e-3)
            if scene.shape != other.shape or scene.crs != other.crs or not same:
                raise DataError(
                    labels,
                    found=f"{_grid(other)}, while {path} has {_grid(scene)}",
                    expected="a label raster on the same grid",
                    remedy="resample it to the size and bounds of the raster: gdalwarp -r near -ts "
                    "WIDTH HEIGHT -te LEFT BOTTOM RIGHT TOP LABELS NEW.tif",
                )
            if other.count != 1 or np.dtype(other.dtypes[0]).kind not in "ui":
                raise DataError(
                    labels,
                    found=f"{other.count} bands of {', '.join(other.dtypes)}",
                    expected="one band of whole numbers, the ids of the classes",
                    remedy="choose the band and its type: gdal_translate -b 1 -ot Byte LABELS "
                    "NEW.tif",
                )
    return found


def _grid(scene: Any) -> str:
    transform = ", ".join(f"{value:g}" for value in tuple(scene.transform)[:6])
    system = scene.crs.to_string() if scene.crs else "no coordinate system"
    return f"{scene.width}x{scene.height} pixels, {system}, transform ({transform})"


def _refuse_neighbors(scenes: Sequence[_Scene]) -> None:
    """Refuse scenes that overlap or touch: blocks of each are drawn by themselves."""
    placed = [scene for scene in scenes if scene.crs is not None]
    for one, other in combinations(placed, 2):
        left, bottom, right, top = one.bounds(0, 0, *one.size)
        box = other.bounds(0, 0, *other.size)
        if one.crs != other.crs:
            warp = require("rasterio.warp", one.path)
            box = warp.transform_bounds(other.crs, one.crs, *box)
        near_x, near_y = (right - left) / one.size[1] / 2, (top - bottom) / one.size[0] / 2
        apart = box[0] > right + near_x or box[2] < left - near_x
        if not apart and box[1] <= top + near_y and box[3] >= bottom - near_y:
            raise DataError(
                other.path,
                found=f"it overlaps or touches {one.path}",
                expected="rasters apart from each other: else one ground would be in train and val",
                remedy="join them (gdalbuildvrt all.vrt SCENES) and convert all.vrt, or give all "
                f"tiles to one split with {option('--split')}",
            )


def _advice(scenes: Sequence[_Scene]) -> list[str]:
    """How to train on images with other channels than 8-bit RGB."""
    kinds = {(scene.bands, scene.types[0]) for scene in scenes}
    if len(kinds) != 1:
        return [f"rasters with {len(kinds)} kinds of bands: one network takes one kind"] * bool(
            kinds
        )
    ((bands, kind),) = kinds
    if len(bands) == 3 and kind == "uint8":
        return []
    names = ",".join(name.replace(" ", "_").replace(",", "_") for name in bands)
    return [f"{len(bands)} bands of {kind}: check and train with 'data.channels.names=[{names}]'"]


def _drawn(tile: _Tile) -> np.ndarray:
    """Labels of the polygons on a tile, inside the scene."""
    features = require("rasterio.features", tile.scene.labels)
    scene = tile.scene
    (top, bottom), (first, last) = tile.window
    box = scene.bounds(top, first, bottom - top, last - first)
    shapes = [
        (each.geometry, tile.table.value(each.name))
        for each in _features(scene.labels, scene.attribute, scene.crs, scene.state).found
        if each.bounds[0] <= box[2]
        and each.bounds[2] >= box[0]
        and each.bounds[1] <= box[3]
        and each.bounds[3] >= box[1]
    ]
    size, fill = (bottom - top, last - first), tile.table.unlabeled
    if not shapes:
        return np.full(size, fill, np.uint8)
    drawn = features.rasterize(
        shapes, out_shape=size, fill=fill, transform=tile.transform(), dtype="uint8"
    )
    return cast(np.ndarray, drawn)


def _looked_up(tile: _Tile) -> np.ndarray:
    """Labels of a label raster on a tile, inside the scene."""
    path = tile.scene.labels
    with opened_scene(path) as labels, reading_scene(path):
        values = labels.read(1, window=tile.window)
        values = np.where(labels.dataset_mask(window=tile.window) == 0, IGNORE, values)
    codes = np.array(tile.codes)
    known = (values >= 0) & (values < len(codes))
    found = np.where(known, codes[np.where(known, values, 0)], -1)
    if (found < 0).any():
        strange = np.unique(values[found < 0])
        raise DataError(
            path,
            found=f"values {listed([str(value) for value in strange[:5]])} in {tile}",
            expected=f"ids of {listed(tile.table.classes)}, {IGNORE}, or its nodata value",
            remedy=f"name all classes with {option('--classes')}; where the first one is not 0, "
            f"say so with {option('--first-id')}; name the value of unlabeled pixels: "
            "gdal_edit.py -a_nodata VALUE LABELS",
        )
    return found.astype(np.uint8)
