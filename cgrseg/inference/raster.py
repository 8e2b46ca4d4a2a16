"""Label rasters of georeferenced scenes of any size (extra `geo`).

A scene is read row of windows by row of windows at its own resolution.  Windows begin at multiples
of eight pixels, so that their logits, which stand for squares of eight pixels, lie on one grid for
the whole scene.  There overlapping windows are blended with cosine weights, and the blended logits
are resized and decided as those of one image (:mod:`cgrseg.ops.array_argmax`): labels have no seam
where a window ends.  Memory grows with the width of the scene, not with its height; polygons are
all in memory at once.

Finished strips are kept beside the target until the whole raster is written, so that the same call
resumes.

    K classes   H, W size of the scene   h, w size of a window   one cell: 8x8 pixels
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.data.channels import known_type, listed_types, mixed_types
from cgrseg.data.color import normalize
from cgrseg.data.geometry import round_up
from cgrseg.data.label_files import label_note, read_label, write_label_png
from cgrseg.data.scenes import RASTER_SUFFIXES, opened_scene, reading_scene
from cgrseg.errors import CGRSegError, ConfigError, DataError, EnvironmentProblem, option
from cgrseg.extras import require
from cgrseg.files import partial_folder, remove_leftovers
from cgrseg.inference.backends import run_network
from cgrseg.inference.predictor import Predictor
from cgrseg.inference.records import made_by
from cgrseg.inference.results import refuse_taken
from cgrseg.inference.views import network_input, windows_at_once
from cgrseg.locks import locking
from cgrseg.ops.array_argmax import array_argmax
from cgrseg.processes import signals_deferred
from cgrseg.progress import Progress
from cgrseg.provenance import file_state, settings_digest
from cgrseg.variants import NETWORK_STRIDE

NODATA = 255
"""Label of pixels where the scene has no data."""

CELL = 8
"""Pixels per cell of the logits, along each axis."""

_LOG = logging.getLogger("cgrseg.inference")
_STRIP = "strip "  # begins the note of a strip's file
_WINDOW = (512, 512)
_WIDEST = 1_000_000  # pixels of a PNG file that its readers accept
_BLOCK = 512  # side of the tiles of the written raster


@dataclass(frozen=True)
class RasterReport:
    """What :func:`predict_raster` did.

    Attributes:
        target: the label raster.
        size: its height and width.
        windows: number of windows that the network saw now; fewer than all after a resumption.
        polygons: number of polygons written; None: none were asked for.
    """

    target: Path
    size: tuple[int, int]
    windows: int
    polygons: int | None = None


@locking(lambda given: Path(given["out"]).parent)
def predict_raster(
    predictor: Predictor,
    source: str | Path,
    out: str | Path,
    *,
    bands: Sequence[int] | None = None,
    overwrite: bool = False,
    checkpoint: str | Path | None = None,
    geojson: bool = False,
    progress: Progress | None = None,
) -> RasterReport:
    """Write the labels of a raster as a GeoTIFF with the same georeference.

    The result has one uint8 band with the ids of the classes, 255 where the scene has no data, the
    colors of the classes, tiles, compression and overviews.  With `test.mode=slide`, windows have
    `test.crop_size` and lie `test.stride` apart; otherwise they have 512x512 pixels (or the size
    that an exported file takes) and overlap by half.

    Args:
        predictor: labels the windows.
        source: a file or an address that GDAL opens; bands of 8 bits, or of the types that the
            network was trained on (`data.channels.types`).
        out: target, `.tif` or `.tiff`.
        bands: numbers of the bands of the network's channels, from 1, in their order; None: the
            first ones.
        overwrite: replace existing files.
        checkpoint: source of the network, to recognize strips of an interrupted call.
        geojson: also write polygons of the labels, in the coordinates of the raster, to a file
            of the target's name with the suffix `.geojson`.
        progress: called with the finished windows and all windows.

    Raises:
        DataError: a source that cannot be read or has other bands, or an existing target.
        ConfigError: test settings that rasters do not have, or polygons of a scene without a
            coordinate system.
        EnvironmentProblem: rasterio is missing, or the target cannot be written.
    """
    out = Path(out)
    polygons = out.with_suffix(".geojson") if geojson else None
    with contextlib.ExitStack() as stack:
        scene = stack.enter_context(opened_scene(source))
        channels = _channel_names(predictor)
        bands = list(bands or range(1, len(channels) + 1))
        _check(scene, source, bands, predictor)
        _check_targets(out, polygons, scene, overwrite)
        if not (scene.crs or scene.gcps[1] or scene.rpcs):
            _LOG.warning("%s: it names no coordinate system, and its labels will not", source)
        layout = Layout.of(predictor, (scene.height, scene.width))
        made = {
            **made_by(predictor, checkpoint),
            "raster": [scene.height, scene.width, bands],
            "files": [[name, file_state(name)] for name in sorted({str(source), *scene.files})],
            "layout": [layout.window, layout.stride],
        }
        parts = out.with_name(f"{out.name}.parts")
        strips = _Strips(predictor, scene, bands, layout, parts, settings_digest(made))
        with reading_scene(
            source, "finished strips are kept, and the same command goes on with them"
        ):
            strips.write(progress)
        folder = stack.enter_context(partial_folder(out.parent, out.name))
        with _writing(out):
            _assemble(scene, strips, predictor, folder / out.name)
        count = None
        if polygons is not None:
            with _writing(polygons):
                count = _write_polygons(folder / out.name, folder / polygons.name, predictor)
        with signals_deferred():
            for path in _sidecars(out):
                path.unlink(missing_ok=True)
            for path in filter(None, (polygons, out)):
                (folder / path.name).replace(path)
        strips.remove()
    return RasterReport(out, layout.size, strips.windows_run, count)


def _channel_names(predictor: Predictor) -> list[str]:
    channels = predictor.test.image_channels
    return (channels.names if channels is not None else None) or ["red", "green", "blue"]


def _sidecars(out: Path) -> list[Path]:
    """Files in which GDAL keeps more about a raster; they would outlive it."""
    return [out.with_name(f"{out.name}.{ending}") for ending in ("aux.xml", "ovr", "msk")]


def _check_targets(out: Path, polygons: Path | None, scene: Any, overwrite: bool) -> None:
    """Refuse targets of another suffix, those that exist, and the files of the scene."""
    if out.suffix.lower() not in RASTER_SUFFIXES:
        raise ConfigError(
            "out",
            found=str(out),
            expected=f"a name that ends with {' or '.join(RASTER_SUFFIXES)}",
            remedy="rename it",
        )
    for path in filter(None, (out, polygons, *_sidecars(out))):
        refuse_taken(path, map(Path, scene.files), "a file of the scene itself", overwrite)
    if polygons is not None and scene.gcps[0] and scene.transform.is_identity:
        raise ConfigError(
            "polygons",
            found="a scene that is placed by ground control points",
            expected="one with a transform, for polygons in its coordinates",
            remedy="warp it first: gdalwarp SCENE WARPED.tif; or leave out the polygons",
        )
    if polygons is not None and not scene.crs:
        raise ConfigError(
            "polygons",
            found="a scene without a coordinate system",
            expected="one that names it: without it, GeoJSON is longitude and latitude",
            remedy="name it: gdal_edit.py -a_srs EPSG:NUMBER SCENE; or leave out the polygons",
        )


@dataclass(frozen=True)
class Layout:
    """Where the windows of a scene lie.

    Attributes:
        size: height and width of the scene.
        window: height and width of a window, multiples of 32.
        stride: distances of neighboring windows, multiples of 8, at most a window.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    stride: tuple[int, int]

    @classmethod
    def of(cls, predictor: Predictor, size: tuple[int, int]) -> Layout:
        """The layout that the test settings and the network's input sizes ask for.

        Raises:
            ConfigError: ratios, a mirrored image, or windows that the network does not take.
        """
        test, sizes = predictor.test, predictor.backend.sizes
        if test.flip or list(test.ratios) != [1.0]:
            raise ConfigError(
                "test.flip" if test.flip else "test.ratios",
                found="several views of a raster",
                expected="one view at the raster's own resolution",
                remedy="set test.flip=false test.ratios=[1.0]",
            )
        if test.mode == "slide":
            window, stride = tuple(test.crop_size), tuple(test.stride)
        else:
            window = max(sizes, key=lambda one: one[0] * one[1]) if sizes else _WINDOW
            stride = tuple(side // 2 // CELL * CELL for side in window)
        unfit = any(side % NETWORK_STRIDE for side in window) or any(
            step % CELL or not 0 < step <= side for step, side in zip(stride, window, strict=True)
        )
        if unfit or (sizes is not None and window not in [tuple(one) for one in sizes]):
            accepted = " or ".join(f"{height}x{width}" for height, width in sizes or [])
            raise ConfigError(
                "test.crop_size",
                found=f"windows of {window[0]}x{window[1]}, {stride[0]} and {stride[1]} apart",
                expected=f"windows of {accepted or f'multiples of {NETWORK_STRIDE}'}, at most "
                f"their side and a multiple of {CELL} apart",
                remedy="set test.crop_size and test.stride, or test.mode=whole for windows of "
                "512x512",
            )
        return cls(size, (window[0], window[1]), (stride[0], stride[1]))

    def starts(self, axis: int) -> list[int]:
        """First cells of the windows along an axis; the last one reaches the border."""
        room = max(0, self.size[axis] - self.window[axis])
        last = round_up(room, CELL) // CELL
        return [*range(0, last, self.stride[axis] // CELL), last]

    def weights(self, axis: int) -> NDArray[np.float32]:
        """Shares of each window in its cells along an axis: (windows, cells of a window).

        The shares of all windows over a cell sum to 1.
        """
        cells = self.window[axis] // CELL
        bell = np.sin(np.pi * (np.arange(cells) + 0.5) / cells) ** 2
        starts = self.starts(axis)
        total = np.zeros(starts[-1] + cells)
        for start in starts:
            total[start : start + cells] += bell
        return np.stack([bell / total[start : start + cells] for start in starts], dtype=np.float32)

    def strips(self) -> list[slice]:
        """Rows of pixels that are final after each row of windows."""
        ends = [start * CELL - CELL // 2 for start in self.starts(0)[1:]] + [self.size[0]]
        return [slice(*pair) for pair in zip([0, *ends[:-1]], ends, strict=True)]


class _Strips:
    """The label map of a scene, strip by strip, each in a PNG file of a folder."""

    def __init__(
        self,
        predictor: Predictor,
        scene: Any,
        bands: Sequence[int],
        layout: Layout,
        folder: Path,
        note: str,
    ) -> None:
        self._predictor, self._scene, self._bands = predictor, scene, list(bands)
        self._channels = predictor.test.image_channels
        self._layout, self._folder, self._note = layout, folder, f"{_STRIP}{note}"
        self._starts = (layout.starts(0), layout.starts(1))
        self._weights = (layout.weights(0), layout.weights(1))
        self._cells = self._starts[1][-1] + layout.window[1] // CELL
        self._kept: dict[int, NDArray[np.float32]] = {}
        self.rows = layout.strips()
        self.windows_run = 0

    def write(self, progress: Progress | None) -> None:
        """Write the strips that are missing."""
        self._refuse_others()
        missing = [number for number in range(len(self.rows)) if not self._is_ready(number)]
        columns = len(self._starts[1])
        self._predictor.backend.expect(len(missing) * columns)
        for done, number in enumerate(missing, start=len(self.rows) - len(missing) + 1):
            labels = self._labels(number)
            write_label_png(self._file(number), labels, self._predictor.palette, note=self._note)
            if progress is not None:
                progress(done * columns, len(self.rows) * columns)
        self._kept.clear()

    def __iter__(self) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
        """Rows of pixels and labels of every strip."""
        for number, rows in enumerate(self.rows):
            yield rows, read_label(self._file(number))

    def remove(self) -> None:
        """Remove the strips, also those of an earlier call, and their folder."""
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()

    def _refuse_others(self) -> None:
        """Refuse a folder of that name that holds anything but strips."""
        if not os.path.lexists(self._folder):
            return
        if self._folder.is_dir():
            remove_leftovers(self._folder)
        found = sorted(self._folder.iterdir()) if self._folder.is_dir() else [self._folder]
        for path in found:
            if not (label_note(path) or "").startswith(_STRIP):
                raise DataError(
                    path,
                    found="a file that is no strip of a label raster",
                    expected=f"no {self._folder.name}, or one that an interrupted call left",
                    remedy="move it away, or choose another name for the raster",
                )

    def _is_ready(self, number: int) -> bool:
        """Whether a strip of these settings is there, whole."""
        path, rows = self._file(number), self.rows[number]
        if label_note(path) != self._note:
            return False
        try:
            found = read_label(path).shape
        except DataError:
            return False
        return found == (rows.stop - rows.start, self._layout.size[1])

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06d}.png"

    def _labels(self, number: int) -> NDArray[np.uint8]:
        """Labels (rows, W) of a strip."""
        rows, width = self.rows[number], self._layout.size[1]
        count = rows.stop - rows.start
        logits = self._blended(number)
        labels = array_argmax(logits, (logits.shape[1] * CELL, logits.shape[2] * CELL))
        # Half of the first cell belongs to the strip above, which it is resized with.
        first = CELL // 2 if number else 0
        labels = np.ascontiguousarray(labels[first : first + count, :width])
        labels[self._mask(rows) == 0] = NODATA
        return labels.astype(np.uint8, copy=False)

    def _blended(self, number: int) -> NDArray[np.float32]:
        """Logits (K, cells, cells) that the pixels of a strip are resized from."""
        starts, height = self._starts[0], self._layout.window[0] // CELL
        top = starts[number] - 1 if number else 0
        bottom = [*starts[1:], starts[-1] + height][number]
        used = [j for j, start in enumerate(starts) if start < bottom and start + height > top]
        self._kept = {j: self._kept[j] if j in self._kept else self._row(j) for j in used}
        total = np.zeros((len(self._kept[used[0]]), bottom - top, self._cells), np.float32)
        for j, values in self._kept.items():
            first, last = max(top, starts[j]), min(bottom, starts[j] + height)
            total[:, first - top : last - top] += values[:, first - starts[j] : last - starts[j]]
        return total

    def _row(self, number: int) -> NDArray[np.float32]:
        """Weighted sum of a row of windows: (K, cells of a window, cells of the scene)."""
        height, width = self._layout.window
        top = self._starts[0][number] * CELL
        rows = slice(top, min(top + height, self._layout.size[0]))
        pixels, mask = self._pixels(rows).transpose(1, 2, 0), self._mask(rows)
        shape = (self._predictor.backend.num_classes, height // CELL, self._cells)
        total = np.zeros(shape, np.float32)
        vertical = self._weights[0][number][:, None]
        places = [
            (column, start)
            for column, start in enumerate(self._starts[1])
            if mask[:, start * CELL : start * CELL + width].any()
        ]
        at_once = windows_at_once(self._predictor.backend)
        for group in (places[i : i + at_once] for i in range(0, len(places), at_once)):
            batch = []
            for _, start in group:
                span = slice(start * CELL, start * CELL + width)
                values = normalize(np.ascontiguousarray(pixels[:, span]), self._channels)
                values[:, mask[:, span] == 0] = 0  # the mean, as padding
                batch.append(network_input(values, (height, width)))
            found = run_network(self._predictor.backend, np.concatenate(batch))
            for (column, start), logits in zip(group, found, strict=True):
                values = logits if isinstance(logits, np.ndarray) else logits.float().cpu().numpy()
                weighted = values * (vertical * self._weights[1][column])
                total[:, :, start : start + width // CELL] += weighted
            self.windows_run += len(group)
        return total

    def _pixels(self, rows: slice) -> NDArray[Any]:
        """(C, rows, W): uint8 RGB, or float32 values of the channels."""
        bands, types = self._bands, {self._scene.dtypes[band - 1] for band in self._bands}
        groups = [bands] if len(types) == 1 else [[band] for band in bands]
        kind = "uint8" if self._channels is None else "float32"
        window = _window(self._scene, rows)
        found = [self._scene.read(group, window=window, out_dtype=kind) for group in groups]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _mask(self, rows: slice) -> NDArray[np.uint8]:
        """255 where rows of the scene have data, else 0."""
        mask: NDArray[np.uint8] = self._scene.dataset_mask(window=_window(self._scene, rows))
        return mask


def _window(scene: Any, rows: slice) -> tuple[tuple[int, int], tuple[int, int]]:
    """Whole rows of a scene, as rasterio names a part."""
    return (rows.start, rows.stop), (0, scene.width)


def _check(scene: Any, source: str | Path, bands: Sequence[int], predictor: Predictor) -> None:
    """Refuse a scene, bands or a network that labels of 8 bits cannot be made of."""
    names, channels = _channel_names(predictor), predictor.test.image_channels
    if len(bands) != len(names) or not all(1 <= band <= scene.count for band in bands):
        raise DataError(
            source,
            found=f"{scene.count} bands, where {list(bands)} are asked for",
            expected=f"the numbers of {len(names)} bands, from 1: {', '.join(names)}",
            remedy=f"name them with {option('--bands')}; gdalinfo shows which they are",
        )
    stored = [scene.dtypes[band - 1] for band in bands]
    types = [known_type(name) for name in stored]
    if channels is None and set(stored) != {"uint8"}:
        raise DataError(
            source,
            found=f"values of type {listed_types(stored)} in bands {list(bands)}",
            expected="8 bits (uint8), as the images of the training",
            remedy="convert it with the range of values that shows the scene well: "
            "gdal_translate -ot Byte -scale LEAST MOST 0 255 SOURCE TARGET",
        )
    if channels is not None and channels.types not in (None, types):
        raise mixed_types(
            f"{source}, bands {bands}", types, channels.types, "the training (data.channels.types)"
        )
    if any(scene.colorinterp[band - 1].name == "palette" for band in bands):
        raise DataError(
            source,
            found="a palette, whose numbers are no brightness",
            expected="bands with measured values",
            remedy="convert it: gdal_translate -expand rgb SOURCE TARGET",
        )
    if scene.width > _WIDEST:
        raise DataError(
            source,
            found=f"{scene.width} pixels a row",
            expected=f"at most {_WIDEST}",
            remedy="cut it into parts: gdal_translate -srcwin",
        )
    if predictor.backend.num_classes > NODATA:
        raise ConfigError(
            "number of classes",
            found=str(predictor.backend.num_classes),
            expected=f"at most {NODATA}: rasters hold 8-bit labels",
            remedy="predict tiles as images",
        )
    if predictor.backend.output == "labels":
        raise ConfigError(
            "exported model",
            found="a file that gives label maps",
            expected="logits, which overlapping windows are blended from",
            remedy="export it again: cgrseg export CHECKPOINT --output logits",
        )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name the target when GDAL cannot write it; its errors have no common class."""
    try:
        yield
    except CGRSegError:
        raise
    except Exception as error:
        raise EnvironmentProblem(
            path,
            found=f"it cannot be written: {error}",
            expected="room on the disk, and a folder that may be written to",
            remedy="make room; finished strips are kept, and the same command goes on with them",
        ) from error


def _assemble(scene: Any, strips: _Strips, predictor: Predictor, path: Path) -> None:
    """Write all strips as one tiled and compressed GeoTIFF with overviews."""
    rasterio = require("rasterio", path)
    profile = {
        "driver": "GTiff",
        "height": scene.height,
        "width": scene.width,
        "count": 1,
        "dtype": "uint8",
        "crs": scene.crs,
        "transform": scene.transform,
        "nodata": NODATA,
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
    with rasterio.open(path, "w", **profile) as target:
        if scene.gcps[0]:
            target.gcps = scene.gcps
        if scene.rpcs is not None:
            target.rpcs = scene.rpcs
        colors = {number: (*color, 255) for number, color in enumerate(predictor.palette)}
        target.write_colormap(1, {**colors, NODATA: (0, 0, 0, 0)})
        names = json.dumps(list(predictor.classes), ensure_ascii=False)
        target.update_tags(classes=names)
        placing = scene.tags().get("AREA_OR_POINT")
        if placing is not None and not scene.gcps[0]:  # GDAL would move the points for it
            target.update_tags(AREA_OR_POINT=placing)
        for rows, labels in strips:
            target.write(labels, 1, window=_window(scene, rows))
    factors = [2**n for n in range(1, 16) if max(scene.shape) > _BLOCK * 2 ** (n - 1)]
    with rasterio.open(path, "r+") as target:
        target.build_overviews(factors, rasterio.enums.Resampling.nearest)
    # GDAL reports a full disk when it closes a file, or not at all.
    with rasterio.open(path) as target:
        for rows, labels in strips:
            if not np.array_equal(target.read(1, window=_window(scene, rows)), labels):
                raise OSError("the disk is full, or does not keep what is written")
        if target.overviews(1) != factors:
            raise OSError("there was no room for the overviews")
        for factor in factors:
            shape = (-(-scene.height // factor), -(-scene.width // factor))
            target.read(1, out_shape=shape)


def _write_polygons(labels: Path, path: Path, predictor: Predictor) -> int:
    """Write the regions of a label raster as GeoJSON in its coordinates; returns their number."""
    rasterio = require("rasterio", path)
    features = require("rasterio.features", path)
    count = 0
    with rasterio.open(labels) as scene, path.open("wb") as stream:

        def say(text: str) -> None:
            stream.write(text.encode())

        say('{"type": "FeatureCollection",\n')
        if scene.crs is not None:
            name = scene.crs.to_string()
            system = {"type": "name", "properties": {"name": name}}
            say(f'"crs": {json.dumps(system)},\n')
        say('"features": [')
        for shape, value in features.shapes(rasterio.band(scene, 1), transform=scene.transform):
            if value == NODATA:
                continue
            known = {"class": int(value), "name": predictor.classes[int(value)]}
            feature = {"type": "Feature", "properties": known, "geometry": shape}
            say(f"{',' if count else ''}\n{json.dumps(feature, ensure_ascii=False)}")
            count += 1
        say("\n]}\n")
    return count
