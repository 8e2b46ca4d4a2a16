"""Open rasters by GDAL (extra `geo`), and name them where GDAL cannot read them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

from cgrseg.errors import DataError
from cgrseg.extras import require
from cgrseg.input_files import refuse_special

RASTER_SUFFIXES = (".tif", ".tiff")
"""Suffixes of GeoTIFFs."""

_CACHE = 128 << 20  # bytes of decoded blocks that GDAL may keep


@contextlib.contextmanager
def opened_scene(source: str | Path) -> Iterator[Any]:
    """A raster, opened by rasterio; a .tif file is read as nothing but a GeoTIFF.

    Raises:
        DataError: GDAL cannot open it.
        EnvironmentProblem: rasterio is missing.
    """
    rasterio = require("rasterio", source)
    warnings = require("rasterio.errors", source)
    local = os.path.lexists(source)
    if local:
        try:
            refuse_special(source)
        except OSError as error:
            raise DataError(
                source,
                found=f"it cannot be opened: {error.strerror or error}",
                expected="a file with a raster",
                remedy="check the path",
            ) from error
    plain = local and Path(source).suffix.lower() in RASTER_SUFFIXES
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE))
        stack.enter_context(catch_warnings())
        simplefilter("ignore", warnings.NotGeoreferencedWarning)
        with reading_scene(source):
            scene = stack.enter_context(rasterio.open(source, driver="GTiff" if plain else None))
        yield scene


def place_of(path: Path) -> tuple[str, tuple[float, float, float, float]]:
    """Coordinate system of an image, and its left, bottom, right and top.

    The system is empty where the image names none, is no TIFF file, or rasterio is missing.
    """
    nowhere = "", (0.0, 0.0, 0.0, 0.0)
    if path.suffix.lower() not in RASTER_SUFFIXES or find_spec("rasterio") is None:
        return nowhere
    try:
        with opened_scene(path) as scene:
            if not scene.crs or scene.transform.is_identity:
                return nowhere
            return scene.crs.to_string(), tuple(scene.bounds)
    except DataError:
        return nowhere


@contextlib.contextmanager
def reading_scene(source: str | Path, more: str = "") -> Iterator[None]:
    """Name the raster when GDAL cannot read it.

    Args:
        source: the raster.
        more: end of the remedy.

    Raises:
        DataError: GDAL cannot read it.
    """
    errors = require("rasterio.errors", source)
    try:
        yield
    except errors.RasterioError as error:
        raise DataError(
            source,
            found=f"GDAL cannot read it: {error}",
            expected="a raster that GDAL reads to its end",
            remedy="check path or address with gdalinfo" + (f"; {more}" if more else ""),
        ) from error
