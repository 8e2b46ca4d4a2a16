"""Files of every kind: right pixels, or an error that names them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cgrseg.data.image_files import read_image, write_image
from cgrseg.data.label_files import read_label, write_label_png
from cgrseg.errors import DataError, EnvironmentProblem

RAMP = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3) % 251


def rgb() -> np.ndarray:
    return RAMP.astype(np.uint8)


def smooth() -> np.ndarray:
    """A picture that survives JPEG nearly unchanged: one channel per direction."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 3, y * 4, 255 - x * 3], axis=-1).astype(np.uint8)


def png(rows: list[bytes], bits: int, colour_type: int, width: int, palette: bytes = b"") -> bytes:
    """A PNG made by hand, chunk by chunk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"PLTE", palette) if palette else b"",
            chunk(b"IDAT", pixels),
            chunk(b"IEND", b""),
        ]
    )


class TestReadImage:
    def test_png_is_exact_rgb(self, tmp_path: Path) -> None:
        Image.fromarray(rgb()).save(tmp_path / "a.png")
        assert np.array_equal(read_image(tmp_path / "a.png"), rgb())

    def test_name_with_spaces_and_accents(self, tmp_path: Path) -> None:
        path = tmp_path / "vue aérienne 木.png"
        Image.fromarray(rgb()).save(path)
        assert np.array_equal(read_image(path), rgb())

    def test_grey_gives_three_equal_channels(self, tmp_path: Path) -> None:
        Image.fromarray(rgb()[..., 0]).save(tmp_path / "a.png")
        image = read_image(tmp_path / "a.png")
        assert np.array_equal(image, np.repeat(rgb()[..., :1], 3, axis=2))

    def test_alpha_is_left_out(self, tmp_path: Path) -> None:
        alpha = np.dstack([rgb(), np.zeros((20, 30), np.uint8)])
        Image.fromarray(alpha).save(tmp_path / "a.png")
        assert np.array_equal(read_image(tmp_path / "a.png"), rgb())

    def test_palette_pictures_give_colours(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(png([b"\x00\x01"], 8, 3, 2, bytes([9, 8, 7, 1, 2, 3])))
        assert read_image(tmp_path / "a.png").tolist() == [[[9, 8, 7], [1, 2, 3]]]

    def test_16_bit_keeps_the_upper_8(self, tmp_path: Path) -> None:
        wide = (rgb()[..., 0].astype(np.uint16) << 8) | 0x7F
        Image.fromarray(wide).save(tmp_path / "a.png")
        assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], rgb()[..., 0])

    def test_16_bit_colour(self, tmp_path: Path) -> None:
        cv2.imwrite(str(tmp_path / "a.png"), rgb()[..., ::-1].astype(np.uint16) * 256)
        assert np.array_equal(read_image(tmp_path / "a.png"), rgb())

    @pytest.mark.parametrize(
        ("orientation", "turn"),
        [
            (1, lambda a: a),
            (2, lambda a: a[:, ::-1]),
            (3, lambda a: a[::-1, ::-1]),
            (4, lambda a: a[::-1]),
            (5, lambda a: a.transpose(1, 0, 2)),
            (6, lambda a: np.rot90(a, -1)),
            (7, lambda a: np.rot90(a.transpose(1, 0, 2), 2)),
            (8, lambda a: np.rot90(a)),
        ],
    )
    def test_exif_orientation_is_applied(self, tmp_path: Path, orientation: int, turn) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(smooth()).save(tmp_path / "a.jpg", quality=95, exif=exif)
        image = read_image(tmp_path / "a.jpg")
        expected = turn(smooth())
        assert image.shape == expected.shape
        assert np.abs(image.astype(int) - expected).mean() < 4

    def test_cmyk_jpeg_keeps_its_colours(self, tmp_path: Path) -> None:
        cmyk = Image.fromarray(smooth()).convert("CMYK")
        cmyk.save(tmp_path / "a.jpg", quality=95)
        image = read_image(tmp_path / "a.jpg")
        assert image.shape == smooth().shape
        assert np.abs(image.astype(int) - smooth()).mean() < 4

    def test_reduced_decoding_rounds_sides_up(self, tmp_path: Path) -> None:
        Image.fromarray(smooth()[:47, :61]).save(tmp_path / "a.jpg")
        assert read_image(tmp_path / "a.jpg", reduce=2).shape == (24, 31, 3)
        assert read_image(tmp_path / "a.jpg", reduce=8).shape == (6, 8, 3)

    @pytest.mark.parametrize("suffix", [".jpg", ".png"])
    @pytest.mark.parametrize("part", [0.0, 0.5, 0.95])
    def test_truncated_files_are_refused(self, tmp_path: Path, suffix: str, part: float) -> None:
        path = tmp_path / f"street{suffix}"
        Image.fromarray(smooth()).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(DataError, match=f"street\\{suffix}: .*(ends early|is empty)"):
            read_image(path)

    def test_a_thumbnail_does_not_hide_truncation(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        Image.fromarray(smooth()).save(path, comment=b"\xff\xd8 thumbnail \xff\xd9")
        assert read_image(path).shape == (48, 64, 3)
        path.write_bytes(path.read_bytes()[:-60])
        with pytest.raises(DataError, match="ends early"):
            read_image(path)

    def test_no_image_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_text("<html>not found</html>")
        with pytest.raises(DataError, match=r"a\.jpg: the image cannot be decoded"):
            read_image(tmp_path / "a.jpg")
        with pytest.raises(DataError, match="cannot be read"):
            read_image(tmp_path / "missing.jpg")

    @pytest.mark.parametrize("size", [(501, 37), (1, 1), (3000, 4000)])
    def test_any_size(self, tmp_path: Path, size: tuple[int, int]) -> None:
        write_image(tmp_path / "a.png", np.full((*size, 3), 7, np.uint8))
        assert read_image(tmp_path / "a.png").shape == (*size, 3)


class TestReadLabel:
    def test_palette_gives_indices(self, tmp_path: Path) -> None:
        # Index 2 is black: reading colours would confuse it with index 0.
        palette = bytes([0, 0, 0, 128, 0, 0, 0, 0, 0])
        (tmp_path / "a.png").write_bytes(png([b"\x00\x01\x02"], 8, 3, 3, palette))
        assert read_label(tmp_path / "a.png").tolist() == [[0, 1, 2]]

    @pytest.mark.parametrize(("bits", "row"), [(1, b"\xa0"), (2, b"\x88"), (4, b"\x20\x20")])
    @pytest.mark.parametrize("colour_type", [0, 3])
    def test_fewer_bits(self, tmp_path: Path, bits: int, row: bytes, colour_type: int) -> None:
        palette = bytes(range(3 * 2**bits)) if colour_type == 3 else b""
        (tmp_path / "a.png").write_bytes(png([row], bits, colour_type, 4, palette))
        value = {1: 1, 2: 2, 4: 2}[bits]
        assert read_label(tmp_path / "a.png").tolist() == [[value, 0, value, 0]]

    def test_16_bit_of_small_ids(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(png([struct.pack(">3H", 0, 7, 255)], 16, 0, 3))
        assert read_label(tmp_path / "a.png").tolist() == [[0, 7, 255]]

    def test_16_bit_of_large_ids(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(png([struct.pack(">3H", 0, 7, 26001)], 16, 0, 3))
        with pytest.raises(DataError, match="ids from 0 to 26001"):
            read_label(tmp_path / "a.png")

    def test_gray_with_transparency_is_read(self, tmp_path: Path) -> None:
        gray = np.array([[0, 1], [2, 255]], np.uint8)
        opaque = np.array([[255, 255], [255, 0]], np.uint8)
        Image.fromarray(np.dstack([gray, opaque])).save(tmp_path / "a.png")
        assert read_label(tmp_path / "a.png").tolist() == [[0, 1], [2, 0]]

    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_colour_masks_say_what_to_do(self, tmp_path: Path, mode: str) -> None:
        Image.fromarray(rgb()).convert(mode).save(tmp_path / "a.png")
        with pytest.raises(DataError, match=r"a\.png: a color image(.|\n)*convert rgb"):
            read_label(tmp_path / "a.png")

    def test_truncated_and_foreign_files(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        write_label_png(path, rgb()[..., 0], [(0, 0, 0)])
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match=r"a\.png: the file ends early"):
            read_label(path)
        path.write_bytes(b"nonsense")
        with pytest.raises(DataError, match=r"a\.png: the label cannot be decoded"):
            read_label(path)
        with pytest.raises(DataError, match="cannot be read"):
            read_label(tmp_path / "b.png")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_byte_never_gives_other_ids(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.png"
    labels = np.random.default_rng(0).integers(0, 9, (24, 24)).astype(np.uint8)
    write_label_png(path, labels, [(k, k, k) for k in range(9)])
    damaged = bytearray(path.read_bytes())
    place = data.draw(st.integers(len(damaged) - 160, len(damaged) - 20))  # among the pixels
    damaged[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        read_label(path)


def test_a_transparent_grey_value_is_still_an_id(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 7, 9]], np.uint8))
    picture.save(tmp_path / "a.png", transparency=7)
    assert read_label(tmp_path / "a.png").tolist() == [[0, 7, 9]]


@settings(max_examples=40, deadline=None)
@given(
    labels=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    colours=st.integers(1, 256),
)
def test_written_labels_come_back_whatever_the_palette(
    tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray, colours: int
) -> None:
    path = tmp_path_factory.mktemp("labels") / "a.png"
    palette = np.random.default_rng(0).integers(0, 256, (colours, 3), dtype=np.uint8)
    write_label_png(path, labels, palette)
    assert np.array_equal(read_label(path), labels)
    with Image.open(path) as picture:
        shown = np.array(picture.convert("RGB"))
    expected = np.zeros((256, 3), np.uint8)
    expected[:colours] = palette
    assert np.array_equal(shown, expected[labels])


def test_labels_must_be_8_bit_maps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int64"):
        write_label_png(tmp_path / "a.png", np.zeros((2, 2), np.int64), [(0, 0, 0)])  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_images_are_written_in_the_format_of_their_name(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", rgb())
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb())
    write_image(tmp_path / "a.jpg", smooth())
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth()).mean() < 4
    with pytest.raises(DataError, match=r"written as \.xyz"):
        write_image(tmp_path / "a.xyz", rgb())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentProblem, match="file"):
        write_image(tmp_path / "file" / "a.png", rgb())


@pytest.mark.parametrize(("place", "value"), [(24, 0), (24, 3), (11, 3), (11, 200), (12, 0)])
def test_a_label_png_with_another_header_is_damaged(place: int, value: int, tmp_path: Path) -> None:
    write_label_png(tmp_path / "a.png", np.zeros((4, 5), np.uint8), [(0, 0, 0)])
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[place] = value
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png"):
        read_label(tmp_path / "a.png")
