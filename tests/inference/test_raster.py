"""Label rasters of georeferenced scenes: their labels, their georeference, interrupted calls."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from typer.testing import CliRunner

from cgrseg.cli.main import app
from cgrseg.config.schema import ChannelsConfig, ChannelTestConfig, TestConfig
from cgrseg.data.color import MEAN, STD, normalize
from cgrseg.errors import CGRSegError, ConfigError, DataError, EnvironmentProblem
from cgrseg.inference import Predictor, predict_raster, raster
from cgrseg.inference.raster import CELL, NODATA, Layout
from tests.inference.fixtures import BlockBackend, photo

rasterio = pytest.importorskip("rasterio", reason="needs the extra [geo]")

SIZE = (157, 211)
RPC = rasterio.rpc.RPC(
    *(100.0, 10.0, 50.0, 5.0, [1.0] * 20, [2.0] * 20, 80.0, 70.0, 20.0, 2.0),
    *([3.0] * 20, [4.0] * 20, 60.0, 60.0, 0.5, 0.5),
)
PLACE = rasterio.transform.from_origin(500_000, 5_000_000, 0.5, 0.25)


def slide(window: int = 64, stride: int = 40) -> TestConfig:
    return TestConfig(mode="slide", crop_size=(window, window), stride=(stride, stride))


def write_scene(path: Path, image: NDArray[Any], **profile: Any) -> Path:
    """A GeoTIFF of an image (H, W, bands)."""
    height, width, count = image.shape
    options: dict[str, Any] = {"crs": "EPSG:32633", "transform": PLACE, "photometric": "minisblack"}
    options |= {"dtype": image.dtype, "count": count, "height": height, "width": width} | profile
    with rasterio.open(path, "w", driver="GTiff", **options) as scene:
        scene.write(image.transpose(2, 0, 1))
    return path


def read(path: Path) -> NDArray[np.uint8]:
    with rasterio.open(path) as scene:
        found: NDArray[np.uint8] = scene.read(1)
    return found


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return photo(*SIZE)


def blended_labels(image: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """Labels from full-size logits in float64, all windows kept."""
    backend = BlockBackend()
    starts = [layout.starts(axis) for axis in (0, 1)]
    cells = [side // CELL for side in layout.window]
    shape = [places[-1] + n for places, n in zip(starts, cells, strict=True)]
    padded = np.zeros((3, shape[0] * CELL, shape[1] * CELL), np.float32)
    padded[:, : image.shape[0], : image.shape[1]] = normalize(image)
    bells = [np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in cells]
    bell = torch.from_numpy(np.outer(*bells))
    total = torch.zeros(backend.num_classes, *shape, dtype=torch.float64)
    weights = torch.zeros(*shape, dtype=torch.float64)
    for top in starts[0]:
        for left in starts[1]:
            place = (slice(top, top + cells[0]), slice(left, left + cells[1]))
            pixels = [slice(one.start * CELL, one.stop * CELL) for one in place]
            window = torch.from_numpy(np.ascontiguousarray(padded[(slice(None), *pixels)]))
            total[(slice(None), *place)] += bell * backend.logits(window[None])[0].double()
            weights[place] += bell
    logits = F.interpolate((total / weights)[None], scale_factor=CELL, mode="bilinear")
    labels = logits[0].argmax(0).numpy().astype(np.uint8)
    return labels[: image.shape[0], : image.shape[1]]


@pytest.mark.parametrize("size", [SIZE, (64, 64), (30, 200), (160, 100)])
@pytest.mark.parametrize(("window", "stride"), [(64, 40), (64, 64), (96, 8)])
def test_labels_are_those_of_full_size_blended_logits(
    size: tuple[int, int], window: int, stride: int, tmp_path: Path
) -> None:
    image = photo(*size)
    predictor = Predictor(BlockBackend(), slide(window, stride))
    out = tmp_path / "labels.tif"
    report = predict_raster(predictor, write_scene(tmp_path / "scene.tif", image), out)
    layout = Layout(size, (window, window), (stride, stride))
    wanted = blended_labels(image, layout)
    assert len(np.unique(wanted)) > 2
    assert (read(out) == wanted).mean() > 0.9999  # float32 and float64 may differ at ties
    assert report.windows == len(layout.starts(0)) * len(layout.starts(1))
    assert sorted(tmp_path.iterdir()) == [out, tmp_path / "scene.tif"]


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 2_000), st.integers(1, 2_000)),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.data(),
)
def test_windows_cover_every_pixel_once_in_weight(
    size: tuple[int, int], window: tuple[int, int], data: st.DataObject
) -> None:
    sides = (32 * window[0], 32 * window[1])
    strides = [data.draw(st.integers(1, side // CELL)) * CELL for side in sides]
    layout = Layout(size, sides, (strides[0], strides[1]))
    for axis in (0, 1):
        starts, weights = layout.starts(axis), layout.weights(axis)
        assert np.all(np.diff([0, *starts]) <= strides[axis] // CELL)
        end = starts[-1] + sides[axis] // CELL
        assert size[axis] <= end * CELL < size[axis] + max(sides[axis], CELL)
        total = np.zeros(end)
        for start, share in zip(starts, weights, strict=True):
            total[start : start + len(share)] += share
        np.testing.assert_allclose(total, 1, rtol=1e-6)
    rows = layout.strips()
    assert rows[0].start == 0 and rows[-1].stop == size[0]
    assert all(a.stop == b.start and a.start < a.stop for a, b in itertools.pairwise(rows))


def test_georeference_colors_and_overviews(image: NDArray[np.uint8], tmp_path: Path) -> None:
    large = np.tile(image, (4, 6, 1))
    predictor = Predictor(BlockBackend(), classes=list("abcdefg"))
    scene = write_scene(tmp_path / "scene.tif", large)
    out = tmp_path / "labels.tif"
    predict_raster(predictor, scene, out)
    with rasterio.open(out) as labels, rasterio.open(scene) as source:
        assert (labels.crs, labels.transform, labels.shape) == (
            source.crs,
            source.transform,
            source.shape,
        )
        assert labels.nodata == NODATA and labels.count == 1 and labels.dtypes == ("uint8",)
        assert labels.profile["tiled"] and labels.profile["compress"] == "deflate"
        assert labels.overviews(1) == [2, 4]
        assert labels.colormap(1)[3][:3] == predictor.palette[3]
        assert json.loads(labels.tags()["classes"]) == list("abcdefg")


def test_pixels_without_data_have_no_label(image: NDArray[np.uint8], tmp_path: Path) -> None:
    image = np.maximum(image, 1)
    image[:, 100:] = 0
    backend = BlockBackend()
    scene = write_scene(tmp_path / "scene.tif", image, nodata=0)
    report = predict_raster(Predictor(backend, slide(64, 64)), scene, tmp_path / "out.tif")
    labels = read(tmp_path / "out.tif")
    assert (labels[:, 100:] == NODATA).all() and (labels[:, :100] < 7).all()
    assert report.windows == 3 * 2 == len(backend.seen)  # of 3 rows of 4 windows


def test_bands_are_chosen(image: NDArray[np.uint8], tmp_path: Path) -> None:
    predictor = Predictor(BlockBackend(), slide())
    mixed = np.concatenate([np.zeros_like(image[..., :1]), image[..., ::-1]], axis=2)
    for name, pixels in (("plain", image), ("mixed", mixed)):
        write_scene(tmp_path / f"{name}.tif", pixels)
    predict_raster(predictor, tmp_path / "plain.tif", tmp_path / "a.tif")
    predict_raster(predictor, tmp_path / "mixed.tif", tmp_path / "b.tif", bands=(4, 3, 2))
    assert (read(tmp_path / "a.tif") == read(tmp_path / "b.tif")).all()


class LastThree(BlockBackend):
    """Looks at the last three of five channels."""

    in_channels = 5

    def logits(self, batch: Tensor) -> Tensor:
        return super().logits(batch[:, 2:])


def five_channels(**changes: Any) -> TestConfig:
    """Red, green and blue as channels of 16 bits, behind two of other types."""
    values: dict[str, Any] = {
        "names": ["nir", "heat", "red", "green", "blue"],
        "mean": [0, 0, *(257 * value for value in MEAN)],
        "std": [1, 1, *(257 * value for value in STD)],
        "types": ["uint16", "float32", "uint16", "uint16", "uint16"],
    }
    channels = ChannelsConfig(**{**values, **changes})
    return ChannelTestConfig(**slide().model_dump(), channels=channels)


def write_bands(path: Path, bands: list[NDArray[Any]]) -> Path:
    """A VRT of one GeoTIFF per band, since a GeoTIFF has one type."""
    lines = []
    for number, band in enumerate(bands, start=1):
        file = write_scene(path.with_name(f"{path.stem}{number}.tif"), band[..., None])
        kind = {"uint8": "Byte", "uint16": "UInt16", "float32": "Float32"}[str(band.dtype)]
        lines.append(
            f'<VRTRasterBand dataType="{kind}" band="{number}"><SimpleSource><SourceFilename '
            f'relativeToVRT="1">{file.name}</SourceFilename><SourceBand>1</SourceBand>'
            "</SimpleSource></VRTRasterBand>"
        )
    height, width = bands[0].shape
    size = f'rasterXSize="{width}" rasterYSize="{height}"'
    path.write_text(f"<VRTDataset {size}>{''.join(lines)}</VRTDataset>")
    return path


# In a process of its own: GDAL waits for an answer without letting other threads run.
RANGES = """
import re, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

class Ranges(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()
    def do_GET(self):
        path = Path(sys.argv[1] + self.path)
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        first, last = re.findall(r"[0-9]+", self.headers.get("Range", "bytes=0-999999999"))
        body = content[int(first) : int(last) + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        end = int(first) + len(body) - 1
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Withdrawing(BlockBackend):
    """Removes the file after some windows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def logits(self, batch: Tensor) -> Tensor:
        if len(self.seen) == 13:
            self.path.unlink()
        return super().logits(batch)


def test_a_remote_raster_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    scene = write_scene(tmp_path / "scene.tif", noise, blockysize=8)
    content = scene.read_bytes()
    # Small caches, so that the file is read as it is needed.
    monkeypatch.setenv("CPL_VSIL_CURL_CACHE_SIZE", "16384")
    monkeypatch.setattr("cgrseg.data.scenes._CACHE", 16_384)
    command = [sys.executable, "-c", RANGES, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = f"http://127.0.0.1:{int(server.stdout.readline())}/scene.tif"
            backend: BlockBackend = Withdrawing(scene)
            monkeypatch.setattr(
                Predictor, "from_pretrained", lambda *_, **__: Predictor(backend, slide())
            )
            monkeypatch.chdir(tmp_path)
            words = ["predict", "best.pth", address, "--out", "labels.tif"]
            result = CliRunner().invoke(app, words)
            told = " ".join(result.output.split())
            assert result.exit_code == 2, told
            assert f"{address}: GDAL cannot read it" in told and "finished strips are kept" in told
            assert not (tmp_path / "labels.tif").exists()
            strips = len(list((tmp_path / "labels.tif.parts").iterdir()))
            assert 1 <= strips < 4
            scene.write_bytes(content)
            backend = BlockBackend()
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, result.output
            assert len(backend.seen) < 20
        finally:
            server.kill()
    predict_raster(Predictor(BlockBackend(), slide()), scene, tmp_path / "local.tif")
    assert (read(tmp_path / "labels.tif") == read(tmp_path / "local.tif")).all()


def test_bands_are_the_channels_of_the_network(
    image: NDArray[np.uint8], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, heat = tmp_path / "labels.tif", np.full(SIZE, 20, np.float32)
    heat[3, 5] = np.nan
    deep = [np.ascontiguousarray(band) for band in image.transpose(2, 0, 1).astype(np.uint16) * 257]
    scene = write_bands(tmp_path / "scene.vrt", [deep[0], heat, *deep])
    predictor = Predictor(LastThree(), five_channels())
    predict_raster(predictor, scene, out)
    wanted = blended_labels(image, Layout(SIZE, (64, 64), (40, 40)))
    assert (read(out) == wanted).mean() > 0.999
    assert f"{scene}: it names no coordinate system, and its labels will not" in caplog.text
    with rasterio.open(out) as labels:
        assert labels.crs is None

    def failing(match: str, error: type[CGRSegError] = DataError, **changes: Any) -> None:
        with pytest.raises(error, match=match):
            predict_raster(predictor, scene, out, overwrite=True, **changes)

    failing(
        r"5 bands, where .*\n  expected: the numbers of 5 bands.*nir, heat, red", bands=[1, 2, 3]
    )
    failing("values of uint16, uint16, float32, uint16, uint16", bands=[1, 3, 2, 4, 5])
    failing("a scene without a coordinate system", ConfigError, geojson=True)
    write_bands(scene, [band.astype(np.float32) for band in (deep[0], heat, *deep)])
    failing(r"values of float32\n  expected: uint16, float32.* as in the training")
    predictor = Predictor(LastThree(), five_channels(mean=None))
    write_bands(scene, [deep[0], heat, *deep])
    failing("no mean and deviation of the channels", ConfigError)


class Interrupted(BlockBackend):
    """Ends the process's work after some windows."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def logits(self, batch: Tensor) -> Tensor:
        if len(self.seen) == self.after:
            raise KeyboardInterrupt
        return super().logits(batch)


@pytest.mark.parametrize("after", [0, 1, 7, 13, 19])
def test_an_interrupted_call_is_resumed(
    after: int, image: NDArray[np.uint8], tmp_path: Path
) -> None:
    scene = write_scene(tmp_path / "scene.tif", image)
    whole = predict_raster(Predictor(BlockBackend(), slide()), scene, tmp_path / "whole.tif")
    out = tmp_path / "labels.tif"
    with pytest.raises(KeyboardInterrupt):
        predict_raster(Predictor(Interrupted(after), slide()), scene, out)
    assert not out.exists()
    told: list[tuple[int, int]] = []
    again = predict_raster(
        Predictor(BlockBackend(), slide()),
        scene,
        out,
        progress=lambda done, total: told.append((done, total)),
    )
    assert out.read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert told[-1] == (whole.windows, whole.windows)
    assert (again.windows < whole.windows) == (after >= 10)  # a row has five windows
    assert not (tmp_path / "labels.tif.parts").exists()


def test_strips_of_other_settings_are_made_again(image: NDArray[np.uint8], tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", image)
    out = tmp_path / "labels.tif"
    with pytest.raises(KeyboardInterrupt):
        predict_raster(Predictor(Interrupted(13), slide()), scene, out)
    write_scene(scene, image[::-1])
    report = predict_raster(Predictor(BlockBackend(), slide()), scene, out)
    assert report.windows == 20
    wanted = blended_labels(np.ascontiguousarray(image[::-1]), Layout(SIZE, (64, 64), (40, 40)))
    assert (read(out) == wanted).mean() > 0.9999


def test_polygons_give_the_labels_back(image: NDArray[np.uint8], tmp_path: Path) -> None:
    image[:40, :40] = 0
    scene = write_scene(tmp_path / "scene.tif", image, nodata=0)
    out = tmp_path / "labels.tif"
    predictor = Predictor(BlockBackend(), slide(), classes=list("abcdefg"))
    report = predict_raster(predictor, scene, out, geojson=True)
    found = json.loads((tmp_path / "labels.geojson").read_text())
    assert report.polygons == len(found["features"]) > 5
    assert found["crs"]["properties"]["name"] == "EPSG:32633"
    drawn = rasterio.features.rasterize(
        [(one["geometry"], one["properties"]["class"]) for one in found["features"]],
        out_shape=SIZE,
        fill=NODATA,
        transform=PLACE,
        dtype="uint8",
    )
    assert (drawn == read(out)).all()
    assert {one["properties"]["name"] for one in found["features"]} <= set("abcdefg")


def test_an_overwritten_raster_leaves_nothing_of_the_old_one(
    image: NDArray[np.uint8], tmp_path: Path
) -> None:
    scene = write_scene(tmp_path / "scene.tif", image)
    out = tmp_path / "labels.tif"
    sidecar = tmp_path / "labels.tif.aux.xml"
    sidecar.write_text("<PAMDataset></PAMDataset>")
    predictor = Predictor(BlockBackend(), slide())
    with pytest.raises(DataError, match=r"labels\.tif\.aux\.xml: a file of that name"):
        predict_raster(predictor, scene, out)
    predict_raster(predictor, scene, out, overwrite=True)
    assert sorted(tmp_path.iterdir()) == [out, scene]


@pytest.mark.parametrize("geojson", [False, True])
def test_the_scene_itself_is_never_overwritten(
    geojson: bool, image: NDArray[np.uint8], tmp_path: Path
) -> None:
    scene = write_scene(tmp_path / "scene.tif", image)
    link = tmp_path / "other.tif"
    link.symlink_to(scene)
    before = scene.read_bytes()
    for out in (scene, link):
        with pytest.raises(DataError, match="a file of the scene itself"):
            predict_raster(
                Predictor(BlockBackend(), slide()), scene, out, overwrite=True, geojson=geojson
            )
    assert scene.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes")
def test_a_full_disk_leaves_no_raster_and_keeps_the_strips(
    image: NDArray[np.uint8], tmp_path: Path
) -> None:
    import resource

    noise = np.random.default_rng(0).integers(0, 256, (1_200, 800, 3), np.uint8)
    scene = write_scene(tmp_path / "scene.tif", noise)
    out = tmp_path / "labels.tif"
    predictor = Predictor(BlockBackend(), slide())
    predict_raster(predictor, scene, tmp_path / "whole.tif")
    size = (tmp_path / "whole.tif").stat().st_size
    least = 8_192  # bytes of a strip, 64 rows at most
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (size // 2, size - 1_000, size - 1):
        assert limit > 2 * least
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        try:
            with pytest.raises(EnvironmentProblem, match=r"labels\.tif: it cannot be written"):
                predict_raster(predictor, scene, out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert not out.exists() and (tmp_path / "labels.tif.parts").is_dir()
    assert predict_raster(predictor, scene, out).windows == 0
    assert out.read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_interrupted_polygons_are_resumed(
    image: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_scene(tmp_path / "scene.tif", image)
    out = tmp_path / "labels.tif"
    predictor = Predictor(BlockBackend(), slide())

    def stop(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(raster, "_write_polygons", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_raster(predictor, scene, out, geojson=True)
    assert not out.exists()
    report = predict_raster(predictor, scene, out, geojson=True)
    assert report.windows == 0 and report.polygons


def test_strips_are_told_from_other_files(image: NDArray[np.uint8], tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", image)
    parts = tmp_path / "labels.tif.parts"
    parts.mkdir()
    mine = parts / "000000.png"
    assert cv2.imwrite(str(mine), image)
    predictor = Predictor(BlockBackend(), slide())
    with pytest.raises(DataError, match="no strip of a label raster"):
        predict_raster(predictor, scene, tmp_path / "labels.tif")
    assert list(parts.iterdir()) == [mine]
    mine.unlink()
    # A strip that was damaged, and those of a layout with more rows, are made again or removed.
    with pytest.raises(KeyboardInterrupt):
        predict_raster(Predictor(Interrupted(70), slide(32, 16)), scene, tmp_path / "labels.tif")
    with pytest.raises(KeyboardInterrupt):
        predict_raster(Predictor(Interrupted(19), slide()), scene, tmp_path / "labels.tif")
    content = mine.read_bytes()
    mine.write_bytes(content[:-40] + b"x" * 40)
    predict_raster(predictor, scene, tmp_path / "labels.tif")
    wanted = blended_labels(image, Layout(SIZE, (64, 64), (40, 40)))
    assert (read(tmp_path / "labels.tif") == wanted).mean() > 0.9999
    assert not parts.exists()


def test_strips_of_a_scene_whose_parts_changed_are_made_again(
    image: NDArray[np.uint8], tmp_path: Path
) -> None:
    scene = write_bands(tmp_path / "scene.vrt", [image[..., 0], image[..., 1], image[..., 2]])
    out = tmp_path / "labels.tif"
    with pytest.raises(KeyboardInterrupt):
        predict_raster(Predictor(Interrupted(13), slide()), scene, out)
    write_scene(tmp_path / "scene1.tif", image[..., 1:2])
    assert predict_raster(Predictor(BlockBackend(), slide()), scene, out).windows == 20
    # The same text behind the name of a GeoTIFF names no other files.
    disguised = scene.rename(tmp_path / "disguised.tif")
    out.unlink()
    failing(DataError, "GDAL cannot read it", tmp_path, disguised)


def test_other_ways_to_place_a_scene_are_kept(image: NDArray[np.uint8], tmp_path: Path) -> None:
    points = [
        rasterio.control.GroundControlPoint(row, col, 10.0 + col, 50.0 - row)
        for row, col in ((0, 0), (0, 200), (150, 0))
    ]
    predictor = Predictor(BlockBackend(), slide())
    scene = write_scene(tmp_path / "scene.tif", image)
    with rasterio.open(scene, "r+") as opened:
        opened.update_tags(AREA_OR_POINT="Point")
        opened.rpcs = RPC
    predict_raster(predictor, scene, tmp_path / "labels.tif")
    with rasterio.open(tmp_path / "labels.tif") as labels:
        assert labels.tags()["AREA_OR_POINT"] == "Point" and labels.transform == PLACE
        assert labels.rpcs.to_dict() == RPC.to_dict()
    (tmp_path / "labels.tif").unlink()
    write_scene(scene, image, transform=rasterio.Affine.identity(), crs=None)
    with rasterio.open(scene, "r+") as opened:
        opened.gcps = (points, rasterio.CRS.from_epsg(4326))
    with pytest.raises(ConfigError, match="ground control points"):
        predict_raster(predictor, scene, tmp_path / "labels.tif", geojson=True)
    predict_raster(predictor, scene, tmp_path / "labels.tif")
    with rasterio.open(tmp_path / "labels.tif") as labels, rasterio.open(scene) as given:
        found, system = labels.gcps
        assert [(one.row, one.col, one.x, one.y) for one in found] == [
            (one.row, one.col, one.x, one.y) for one in given.gcps[0]
        ]
        assert system.to_epsg() == 4326


def failing(
    error: type[CGRSegError], match: str, tmp_path: Path, scene: Path, **changes: Any
) -> None:
    config = changes.pop("test", slide())
    with pytest.raises(error, match=match):
        predict_raster(Predictor(BlockBackend(), config), scene, tmp_path / "labels.tif", **changes)
    assert not (tmp_path / "labels.tif").exists()


def test_scenes_that_cannot_be_used(image: NDArray[np.uint8], tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", image)
    failing(DataError, "GDAL cannot read it", tmp_path, tmp_path / "missing.tif")
    failing(DataError, r"3 bands, where \[4, 3, 2\]", tmp_path, scene, bands=(4, 3, 2))
    failing(DataError, r"3 bands, where \[1\]", tmp_path, scene, bands=(1,))
    failing(ConfigError, "several views", tmp_path, scene, test=TestConfig(flip=True))
    failing(ConfigError, "windows of 40x40", tmp_path, scene, test=slide(40, 40))
    failing(ConfigError, "36 and 36 apart", tmp_path, scene, test=slide(64, 36))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.tif")
        failing(DataError, "pipe", tmp_path, tmp_path / "pipe.tif")
    write_scene(scene, image[..., :1], photometric="palette")
    with rasterio.open(scene, "r+") as opened:
        opened.write_colormap(1, {0: (1, 2, 3)})
    failing(DataError, "a palette", tmp_path, scene, bands=(1, 1, 1))
    write_scene(scene, image)
    with pytest.raises(ConfigError, match="a name that ends with"):
        predict_raster(Predictor(BlockBackend(), slide()), scene, tmp_path / "labels.png")
    write_scene(scene, image.astype(np.uint16))
    failing(DataError, "values of type uint16", tmp_path, scene)
    write_scene(scene, image)
    scene.write_bytes(scene.read_bytes()[:-20_000])
    failing(DataError, "GDAL cannot read it", tmp_path, scene)


def test_existing_files_are_kept(image: NDArray[np.uint8], tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", image)
    predictor = Predictor(BlockBackend(), slide())
    kept = tmp_path / "labels.geojson"
    kept.write_text("mine")
    with pytest.raises(DataError, match="a file of that name"):
        predict_raster(predictor, scene, tmp_path / "labels.tif", geojson=True)
    with pytest.raises(DataError, match="a file of the scene itself"):
        predict_raster(predictor, scene, scene)
    assert kept.read_text() == "mine"
    predict_raster(predictor, scene, tmp_path / "labels.tif", geojson=True, overwrite=True)
    assert kept.read_text().startswith("{")


def test_the_command(
    image: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        Predictor, "from_pretrained", lambda *_, **__: Predictor(BlockBackend(), slide())
    )
    write_scene(tmp_path / "scene.tif", image)

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["predict", "best.pth", *words])

    result = run("scene.tif", "--out", "labels.tif", "--save", "geojson", "--bands", "3,2,1")
    assert result.exit_code == 0, result.output
    assert "211 x 157 pixels labeled in 20 windows: labels.tif" in result.output
    assert "polygons: labels.geojson" in result.output
    for words, message in (
        (["scene.tif", "scene.tif"], "a raster, with 2 inputs"),
        (["scene.tif", "--save", "coco"], "a raster, with options for images"),
        (["scene.tif", "--no-overlays"], "a raster, with options for images"),
        (["scene.tif", "--bands", "red"], "expected: numbers, such as 3,2,1"),
    ):
        result = run(*words, "--out", "new.tif")
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
    assert not (tmp_path / "new.tif").exists()
    result = run("scene.tif", "--bands", "3,2,1", "--out", "folder")
    assert result.exit_code == 2 and "given for images" in result.output
