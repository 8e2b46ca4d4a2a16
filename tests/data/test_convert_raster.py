"""Tiles of rasters with their labels: pixels, places, polygons, and the split by blocks."""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from cgrseg.cli.main import app
from cgrseg.config.schema import ChannelTestConfig
from cgrseg.data.check import check_dataset
from cgrseg.data.convert.format import ConversionReport
from cgrseg.data.convert.formats.raster import RasterTiles
from cgrseg.data.convert.runner import run_conversion
from cgrseg.data.label_files import read_label
from cgrseg.errors import CGRSegError, ConfigError, DataError

rasterio = pytest.importorskip("rasterio", reason="needs the extra [geo]")
for module in ("features", "warp"):
    importlib.import_module(f"rasterio.{module}")

HEIGHT, WIDTH = 300, 410
SYSTEM = rasterio.CRS.from_epsg(32633)
PLACE = rasterio.Affine(2.0, 0.0, 500_000.0, 0.0, -2.0, 5_000_000.0)
SMALL: dict[str, Any] = {"tile": 32, "block": 3, "gap": 8, "val_share": 0.3}
BANDS = ("green", "near infrared")


def write_raster(path: Path, bands: NDArray[Any], **changes: Any) -> Path:
    """A GeoTIFF of bands (C, H, W)."""
    profile = {"crs": SYSTEM, "transform": PLACE, "dtype": bands.dtype} | changes
    count, height, width = bands.shape
    profile |= {"count": count, "height": height, "width": width, "driver": "GTiff"}
    with rasterio.open(path, "w", **profile) as scene:
        scene.write(bands)
        if count == len(BANDS):
            scene.descriptions = BANDS
    return path


def ring(*corners: tuple[float, float]) -> list[list[float]]:
    """Corners (column, row) as a closed ring of coordinates."""
    return [list(PLACE @ corner) for corner in (*corners, corners[0])]


POLYGONS = [
    ("field", [ring((3.3, 5.1), (200.7, 20.2), (180.4, 260.9), (10.2, 230.3))]),
    (
        "water",
        [
            ring((90.1, 40.6), (330.8, 60.3), (300.4, 222.2), (120.9, 190.7)),
            ring((150.2, 80.1), (220.3, 90.6), (200.8, 140.4)),
        ],
    ),
    ("field", [ring((240.5, 150.2), (402.1, 170.9), (399.6, 290.3))]),
]


def write_polygons(path: Path, system: str = "OGC:CRS84", **member: Any) -> list[dict[str, Any]]:
    """Write the polygons in a coordinate system; returns their geometries in the raster's."""
    geometries = [{"type": "Polygon", "coordinates": rings} for _, rings in POLYGONS]
    features = [
        {
            "type": "Feature",
            "properties": {"class": number, "name": name},
            "geometry": rasterio.warp.transform_geom(SYSTEM, system, geometry),
        }
        for number, ((name, _), geometry) in enumerate(zip(POLYGONS, geometries, strict=True))
    ]
    point = {"type": "Point", "coordinates": [14.0, 45.0]}
    features.append({"type": "Feature", "properties": {"name": "field"}, "geometry": point})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **member}))
    return [
        rasterio.warp.transform_geom(system, SYSTEM, feature["geometry"])
        for feature in features[:-1]
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ConversionReport]:
    """A scene with a part without data, its polygons, and the dataset made of them."""
    folder = tmp_path_factory.mktemp("raster")
    values = np.random.default_rng(1).integers(1, 65_536, (2, HEIGHT, WIDTH), np.uint16)
    values[:, 100:120, :70] = 0
    scene = write_raster(folder / "scene.tif", values, nodata=0)
    write_polygons(folder / "labels.geojson")
    format = RasterTiles(str(scene), str(folder / "labels.geojson"), folder / "set", **SMALL)
    return folder, run_conversion(format)


def tiles_of(root: Path) -> dict[str, list[Path]]:
    return {split: sorted((root / "images" / split).iterdir()) for split in ("train", "val")}


def test_tiles_hold_the_raster_and_what_rasterio_draws(
    made: tuple[Path, ConversionReport],
) -> None:
    folder, report = made
    assert report.ok and report.classes == ("field", "water")
    geometries = write_polygons(folder / "again.geojson")
    wanted = rasterio.features.rasterize(
        [(one, name == "water") for one, (name, _) in zip(geometries, POLYGONS, strict=True)],
        out_shape=(HEIGHT, WIDTH),
        fill=255,
        transform=PLACE,
        dtype="uint8",
    )
    with rasterio.open(folder / "scene.tif") as scene:
        known = scene.dataset_mask() != 0
        wanted[~known] = 255
        pixels = scene.read()
    covered = np.zeros((HEIGHT, WIDTH), int)
    for path in itertools.chain(*tiles_of(folder / "set").values()):
        with rasterio.open(path) as tile:
            column, row = (round(v) for v in ~PLACE @ (tile.transform.c, tile.transform.f))
            inside = (slice(row, min(row + 32, HEIGHT)), slice(column, min(column + 32, WIDTH)))
            height, width = covered[inside].shape
            found = tile.read()
            assert (tile.crs, tile.descriptions) == (SYSTEM, BANDS)
            assert tile.dtypes == ("uint16", "uint16")
        values, data = found[:, :height, :width], known[inside]
        assert (values[:, data] == pixels[(slice(None), *inside)][:, data]).all()
        # No data: the mean of the band.
        beyond = [values[:, ~data], found[:, height:], found[:, :, width:]]
        rest = np.concatenate([part.reshape(2, -1) for part in beyond], axis=1)
        assert (np.abs(rest - values[:, data].mean(axis=1)[:, None]) <= 0.5).all()
        labels = read_label(Path(str(path).replace("images", "annotations")).with_suffix(".png"))
        assert (labels[:height, :width] == wanted[inside]).all()
        assert (labels[height:] == 255).all() and (labels[:, width:] == 255).all()
        covered[inside] += 1
    assert covered.max() == 1
    # Left out: gaps, and tiles without a label.
    gap = np.arange(max(HEIGHT, WIDTH)) % (3 * 32 + 8) >= 3 * 32
    seen = ~gap[:HEIGHT, None] & ~gap[:WIDTH]
    assert (covered[seen & (wanted != 255)] == 1).all() and not covered[~seen].any()
    assert any("tiles without a labeled pixel were left out" in note for note in report.notes)
    assert "left out: 1 x Point, which has no area" in report.notes
    advice = "2 bands of uint16: check and train with 'data.channels.names=[green,near_infrared]'"
    assert advice in report.notes


def boxes(paths: Sequence[Path]) -> NDArray[np.float64]:
    """Left, bottom, right, top of each tile."""
    found = []
    for path in paths:
        with rasterio.open(path) as tile:
            found.append(tuple(tile.bounds))
    return np.array(found)


def test_tiles_of_different_splits_neither_overlap_nor_touch(
    made: tuple[Path, ConversionReport], tmp_path: Path
) -> None:
    root = made[0] / "set"
    tiles = tiles_of(root)
    assert len(tiles["train"]) > len(tiles["val"]) > 5
    for one in boxes(tiles["train"]):
        for other in boxes(tiles["val"]):
            across = max(other[0] - one[2], one[0] - other[2])
            along = max(other[1] - one[3], one[1] - other[3])
            assert max(across, along) >= 8 * 2  # pixels of two meters
    test = ChannelTestConfig(channels={"names": ["green", "nir"]})
    report = check_dataset(root, test=test)
    assert report.ok and "leak-place" not in {one.code for one in report.findings}
    # One tile of a block moved to the other split, and one saved in both.
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    for kind, ending in (("images", ".tif"), ("annotations", ".png")):
        train, val = moved / kind / "train", moved / kind / "val"
        (val / (tiles["val"][0].stem + ending)).rename(train / f"moved{ending}")
        shutil.copy(val / (tiles["val"][1].stem + ending), train / f"copied{ending}")
    with rasterio.open(moved / "images" / "train" / "copied.tif", "r+") as tile:
        tile.write(tile.read() // 2)
    findings = [f for f in check_dataset(moved, test=test).findings if f.code == "leak-place"]
    told = {Path(one.file).stem: one for one in findings}
    same = told.pop(tiles["val"][1].stem)
    assert same.severity == "error" and "copied.tif in train" in same.message
    assert {one.severity for one in told.values()} == {"warning"}
    assert any("touches" in f.message and "moved.tif" in f.message for f in told.values())


def test_an_interrupted_conversion_goes_on(
    made: tuple[Path, ConversionReport], tmp_path: Path
) -> None:
    folder, report = made
    format = RasterTiles(
        str(folder / "scene.tif"), str(folder / "labels.geojson"), tmp_path / "set", **SMALL
    )

    def stop(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_conversion(format, stop)
    again = run_conversion(format)
    assert again.kept > 0 and again.written + again.kept == report.written
    for path in (folder / "set").rglob("*.[tp][in][fg]"):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes()
    # Labels of less ground: tiles that they leave without a label go.
    shutil.copytree(folder, tmp_path / "changed")
    labels = tmp_path / "changed" / "labels.geojson"
    data = json.loads(labels.read_text())
    data["features"] = data["features"][:2]
    labels.write_text(json.dumps(data))
    source = str(tmp_path / "changed" / "scene.tif")
    fewer = run_conversion(
        RasterTiles(source, str(labels), tmp_path / "changed" / "set", **SMALL, overwrite=True)
    )
    left = list((tmp_path / "changed" / "set" / "images").rglob("*.tif"))
    assert len(left) == fewer.written < report.written


@pytest.mark.parametrize("named", [False, True])
def test_the_coordinate_system_of_polygons_may_be_named(named: bool, tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", np.ones((1, HEIGHT, WIDTH), np.uint8))
    labels = tmp_path / "labels.geojson"
    member = {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}}
    if named:
        write_polygons(labels, "EPSG:32633", **member)
    else:
        write_polygons(labels)
    options = {**SMALL, "attribute": "class", "background": "else", "split": "all"}
    report = run_conversion(RasterTiles(str(scene), str(labels), tmp_path / "set", **options))
    assert report.classes == ("else", "0", "1", "2")
    assert sum(report.pixels[:4]) > 0 and sum(report.pixels[4:255]) == 0
    assert report.pixels[0] > report.pixels[2] > report.pixels[3] > 1_000


def test_label_rasters(tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", np.ones((3, HEIGHT, WIDTH), np.uint8))
    values = np.random.default_rng(2).integers(1, 4, (1, HEIGHT, WIDTH)).astype(np.int16)
    values[:, :50] = -5
    labels = write_raster(tmp_path / "labels.tif", values, nodata=-5)

    def convert(**options: Any) -> ConversionReport:
        out = tmp_path / "set"
        return run_conversion(RasterTiles(str(scene), str(labels), out, **SMALL, **options))

    names = ["forest", "cloud", "road"]
    with pytest.raises(DataError, match="a label raster whose tag 'classes'"):
        convert()
    report = convert(classes=names)
    assert not report.written and "values 3 in" in report.failures[0].message
    shutil.rmtree(tmp_path / "set")
    report = convert(classes=names, first_id=1, ignored=["cloud"])
    assert report.ok and report.classes == ("forest", "road")
    for path in (tmp_path / "set" / "annotations").rglob("*.png"):
        row, column = map(int, path.stem.split("_")[1:])
        part = values[0, row : row + 32, column : column + 32]
        wanted = np.select([part == 1, part == 3], [0, 1], 255)
        assert (read_label(path)[: part.shape[0], : part.shape[1]] == wanted).all()
    # The label rasters of a prediction name their classes.
    shutil.rmtree(tmp_path / "set")
    write_raster(labels, (values + 1).astype(np.uint8))
    with rasterio.open(labels, "r+") as opened:
        opened.update_tags(classes=json.dumps(["a", "b", "c", "d", "e"]))
    assert convert().classes == ("a", "b", "c", "d", "e")
    shutil.rmtree(tmp_path / "set")
    write_raster(labels, values.astype(np.uint8), transform=PLACE @ PLACE.translation(3, 0))
    with pytest.raises(DataError, match=r"while .*scene\.tif has 410x300 pixels, EPSG:32633"):
        convert(classes=names, overwrite=True)
    write_raster(labels, values.astype(np.float32))
    with pytest.raises(DataError, match="1 bands of float32"):
        convert(classes=names, overwrite=True)


def failing(error: type[CGRSegError], match: str, *places: object, **options: Any) -> None:
    scene, labels, out = places
    with pytest.raises(error, match=match):
        run_conversion(RasterTiles(str(scene), str(labels), Path(str(out)), **SMALL | options))
    assert not list(Path(str(out)).rglob("*.tif"))


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    pixels, out = np.ones((1, HEIGHT, WIDTH), np.uint8), tmp_path / "set"
    scene, labels = write_raster(tmp_path / "scene.tif", pixels), tmp_path / "labels.geojson"
    write_polygons(labels)
    failing(ConfigError, "at least 1 pixel, so that blocks", scene, labels, out, gap=0)
    failing(ConfigError, "1 blocks, all drawn for", scene, labels, out, block=20)
    failing(DataError, "ogr2ogr -f GeoJSON", scene, tmp_path / "labels.gpkg", out)
    failing(DataError, "GDAL cannot read it", tmp_path / "missing.tif", labels, out)
    failing(DataError, "properties: class, name", scene, labels, out, attribute="kind")
    failing(DataError, "polygons of water", scene, labels, out, classes=["field"])
    labels.write_text('{"features": [{"geometry": {"type": "Polygon"}}]}')
    failing(DataError, "it cannot be read|no polygon", scene, labels, out)
    write_polygons(labels)
    write_raster(scene, pixels, crs=None)
    failing(DataError, "without a coordinate system", scene, labels, out)
    folder = tmp_path / "scenes"
    folder.mkdir()
    write_raster(folder / "a.tif", pixels)
    write_raster(folder / "b.tif", pixels, transform=PLACE @ PLACE.translation(WIDTH, 0))
    failing(DataError, r"b\.tif: it overlaps or touches .*a\.tif", folder, labels, out)
    apart = rasterio.transform.from_bounds(*_west_of(folder / "a.tif"), WIDTH, HEIGHT)
    write_raster(folder / "b.tif", pixels, transform=apart, crs="EPSG:4326")
    report = run_conversion(RasterTiles(str(folder), str(labels), out, **SMALL))
    assert report.ok and {one.stem[0] for one in out.rglob("*.tif")} == {"a"}


def _west_of(path: Path) -> tuple[float, ...]:
    """Bounds in longitude and latitude, a kilometer west of a raster."""
    with rasterio.open(path) as scene:
        left, bottom, right, top = rasterio.warp.transform_bounds(
            scene.crs, "EPSG:4326", *scene.bounds
        )
    return 2 * left - right - 0.01, bottom, left - 0.01, top


def test_the_command(made: tuple[Path, ConversionReport], tmp_path: Path) -> None:
    folder, _ = made
    words = [str(folder / "scene.tif"), str(folder / "labels.geojson"), str(tmp_path / "set")]
    numbers = ["--tile", "64", "--block", "1", "--gap", "16", "--val-share", "0.4"]
    result = CliRunner().invoke(app, ["data", "convert", "raster", *words, *numbers])
    assert result.exit_code == 0, result.output
    assert "tiles in" in result.output and "data.channels.names=" in result.output
    words = ["data", "check", str(tmp_path / "set"), "data.channels.names=[green,nir]"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "green: uint16" in result.output
