"""Images whose header says one size to a check and another to the decoder."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgrseg.config.schema import TestConfig as Settings
from cgrseg.deploy.web import Limits, Service
from cgrseg.deploy.web.image_header import decoded_size
from cgrseg.deploy.web.service import Refused
from cgrseg.errors import DataError
from cgrseg.inference import Predictor
from tests.inference.fixtures import BlockBackend, photo

LARGE, SMALL = 10_000, 10


@pytest.fixture
def service() -> Service:
    classes = [f"class{number}" for number in range(7)]
    blocks = Predictor(BlockBackend(num_classes=7), Settings(resize="none"), classes)
    return Service({"blocks": blocks}, Limits(pixels=1_000_000))


def tiff(*sizes: int, order: str = "<", tile: tuple[int, int] | None = None) -> bytes:
    """Grey zeros in strips of the first size, whose header gives all sizes one after another."""
    rows = 100
    strip = zlib.compress(bytes(sizes[0] * rows), 9)
    count = -(-sizes[0] // rows)
    entries = [(256, 4, 1, size) for size in sizes] + [(257, 4, 1, size) for size in sizes]
    entries += [(258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1), (278, 3, 1, rows)]
    if tile is not None:
        entries += [(322, 4, 1, tile[0]), (323, 4, 1, tile[1])]
    place = 8 + 2 + 12 * (len(entries) + 2) + 4
    strips = place + 8 * count
    many = count > 1
    entries += [
        (273, 4, count, place if many else strips),
        (279, 4, count, place + 4 * count if many else len(strip)),
    ]
    entries.sort(key=lambda entry: entry[0])
    content = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    content += struct.pack(f"{order}H", len(entries))
    for tag, kind, values, value in entries:
        packed = struct.pack(f"{order}{'H' if kind == 3 else 'I'}", value).ljust(4, b"\0")
        content += struct.pack(f"{order}HHI", tag, kind, values) + packed
    content += struct.pack(f"{order}I", 0)
    content += struct.pack(f"{order}{count}I", *[strips] * count)
    content += struct.pack(f"{order}{count}I", *[len(strip)] * count)
    return content + strip


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(*sizes: int) -> bytes:
    """Grey zeros of the first size, with a header for each."""
    headers = b"".join(
        chunk(b"IHDR", struct.pack(">II5B", size, size, 8, 0, 0, 0, 0)) for size in sizes
    )
    pixels = zlib.compress(bytes(sizes[0] * (sizes[0] + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + headers + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("make", [tiff, png])
def test_a_second_size_is_refused_undecoded(make, service: Service) -> None:
    """A hundred megapixels for the decoder, a hundred pixels for who reads the last size."""
    content = make(LARGE, SMALL)
    assert len(content) < service.limits.upload_bytes
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (SMALL, SMALL)  # so the ordinary check lets it through
    with pytest.raises(DataError, match="not an image"):
        service.check(content)
    with pytest.raises(Refused, match="10000x10000 pixels"):
        service.check(make(LARGE))
    assert service.check(make(200)) == (200, 200)
    assert service.segment(make(200)).labels.shape == (200, 200)


def test_a_tile_counts_whole(service: Service) -> None:
    content = tiff(200, order=">", tile=(30_000, 30_000))
    assert decoded_size(content) == (200, 200, 900_000_000)
    with pytest.raises(Refused, match="at most 1 megapixels"):
        service.check(content)
    assert service.check(tiff(200, order=">", tile=(256, 256))) == (200, 200)


def test_a_chunk_without_end_is_damage(service: Service) -> None:
    """The decoder makes room for two gigabytes before it sees that they are not there."""
    whole = png(200)
    # Behind the pixels, where Pillow does not look yet.
    content = whole[:-12] + struct.pack(">I", 0x7FFF_FF00) + b"tEXt" + whole[-12:]
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (200, 200)
    with pytest.raises(DataError, match="not an image"):
        service.check(content)


@pytest.mark.parametrize("several", [False, True])
def test_a_jpeg_of_many_scans_is_refused(several: bool, service: Service) -> None:
    """The decoder needs milliseconds for each scan of twelve bytes, whatever is in it."""
    content, image = io.BytesIO(), Image.fromarray(photo(90, 140))
    if several:  # Pillow calls it MPO
        image.save(content, "MPO", save_all=True, append_images=[image], progressive=True)
    else:
        image.save(content, "JPEG", progressive=True)
    whole = content.getvalue()
    assert service.check(whole) == (140, 90)
    start = whole.rindex(b"\xff\xda")
    with pytest.raises(DataError, match="not an image"):
        service.check(whole[:start] + 100 * whole[start:-2] + whole[-2:])


def test_what_was_decoded_has_the_size_that_was_checked(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "check", lambda _data, **_: (10, 10))
    with pytest.raises(DataError, match="not an image"):
        service.segment(png(200))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + bytes(60_000)}),
        ("JPEG", {"orientation": 6}),
        ("PNG", {}),
        ("PNG", {"save_all": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"save_all": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw", "orientation": 6}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_ordinary_images_pass(kind: str, options: dict, service: Service) -> None:
    picture = Image.fromarray(photo(90, 140))
    options = dict(options)
    orientation = options.pop("orientation", None)
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    if options.get("save_all"):
        options["append_images"] = [picture.rotate(180)]
    content = io.BytesIO()
    picture.save(content, kind, **options)
    shape = (90, 140) if orientation is None else (140, 90)
    assert service.segment(content.getvalue()).labels.shape == shape


def test_size_of_a_file_with_more_bands_than_pillow_knows(tmp_path: Path) -> None:
    """Read from the tags alone, whatever the bands are."""
    rasterio = pytest.importorskip("rasterio", reason="needs the extra [geo]")
    shape = {"height": 30, "width": 50, "count": 5, "dtype": "uint16"}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **shape) as target:
        target.write(np.zeros((5, 30, 50), np.uint16))
    content = (tmp_path / "a.tif").read_bytes()
    assert decoded_size(content, any_bands=True) == (50, 30, 1500)
    with pytest.raises(Exception, match="cannot identify"):
        decoded_size(content)
