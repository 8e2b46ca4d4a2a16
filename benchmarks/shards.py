"""Reading a training set from a local disk: image files, WebDataset's tars, LitData's chunks.

Pairs of image and label are copied until there are enough, and written in the three forms.  Each is
read whole in shuffled order by one process (or `--workers`), in turns; the median of the rounds
counts.  `bytes` reads only; `decoded` decodes both files too, as a training has to.

Needs `pip install webdataset litdata`.

    python benchmarks/shards.py data/camvid --pairs 2000
"""

from __future__ import annotations

import argparse
import functools
import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import litdata
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset

from cgrseg.bench.machine import describe_machine
from cgrseg.data.image_files import decode_image
from cgrseg.data.label_files import decode_label_values

SHARD = 250  # pairs per tar
CHUNK = "16MB"


class Files(Dataset[Any]):
    """Pairs as files."""

    def __init__(self, pairs: list[tuple[Path, Path]], use: Callable[[bytes, bytes], int]) -> None:
        self.pairs, self.use = pairs, use

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> int:
        image, label = self.pairs[index]
        return self.use(image.read_bytes(), label.read_bytes())


class Chunks(litdata.StreamingDataset):  # type: ignore[misc]
    """Pairs in LitData's chunks."""

    use: Callable[[bytes, bytes], int]

    def __getitem__(self, index: Any) -> int:
        found = super().__getitem__(index)
        return self.use(found["image"], found["label"])


def size(image: bytes, label: bytes) -> int:
    """Number of bytes."""
    return len(image) + len(label)


def decoded(image: bytes, label: bytes) -> int:
    """Number of values of both arrays."""
    return decode_image(image, "image").size + decode_label_values(label, "label").size


def from_tar(sample: dict[str, Any], use: Callable[[bytes, bytes], int]) -> int:
    """A pair of a tar."""
    return use(sample["jpg"], sample["png"])


def write_tars(pairs: list[tuple[Path, Path]], folder: Path) -> list[str]:
    """Tars of :data:`SHARD` pairs."""
    written = []
    for start in range(0, len(pairs), SHARD):
        path = folder / f"{start:06d}.tar"
        with tarfile.open(path, "w") as archive:
            for number, (image, label) in enumerate(pairs[start : start + SHARD], start):
                for file, ending in ((image, "jpg"), (label, "png")):
                    entry = tarfile.TarInfo(f"{number:06d}.{ending}")
                    entry.size = file.stat().st_size
                    archive.addfile(entry, io.BytesIO(file.read_bytes()))
        written.append(str(path))
    return written


def as_sample(pair: tuple[Path, Path]) -> dict[str, bytes]:
    """A pair for LitData."""
    return {"image": pair[0].read_bytes(), "label": pair[1].read_bytes()}


def main() -> None:
    """Write the three forms, read them, and print pairs per second."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    images = sorted((given.root / "images" / "train").iterdir())
    labels = given.root / "annotations" / "train"
    print(describe_machine(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = []
        (folder / "files").mkdir()
        for number in range(given.pairs):
            image = images[number % len(images)]
            pair = (folder / f"files/{number}.jpg", folder / f"files/{number}.png")
            pair[0].write_bytes(image.read_bytes())
            pair[1].write_bytes((labels / f"{image.stem}.png").read_bytes())
            pairs.append(pair)
        (folder / "tars").mkdir()
        tars = write_tars(pairs, folder / "tars")
        litdata.optimize(
            fn=as_sample,
            inputs=pairs,
            output_dir=str(folder / "chunks"),
            chunk_bytes=CHUNK,
            num_workers=1,
        )
        for use in (size, decoded):

            def files(use: Any = use) -> Iterable[Any]:
                return DataLoader(
                    Files(pairs, use), batch_size=8, shuffle=True, num_workers=given.workers
                )

            def from_tars(use: Any = use) -> Iterable[Any]:
                read = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(500)
                return webdataset.WebLoader(
                    read.map(functools.partial(from_tar, use=use)),
                    batch_size=8,
                    num_workers=given.workers,
                )

            def chunks(use: Any = use) -> Iterable[Any]:
                read = Chunks(str(folder / "chunks"), shuffle=True)
                read.use = use
                return litdata.StreamingDataLoader(read, batch_size=8, num_workers=given.workers)

            rates: dict[str, list[float]] = {}
            for _ in range(given.rounds):
                for make in (files, from_tars, chunks):
                    began = time.perf_counter()
                    count = sum(int(torch.as_tensor(batch).numel()) for batch in make())
                    assert count == len(pairs), (make.__name__, count)
                    rate = count / (time.perf_counter() - began)
                    rates.setdefault(make.__name__, []).append(rate)
            base = statistics.median(rates["files"])
            for name, found in rates.items():
                middle = statistics.median(found)
                print(
                    f"{use.__name__:8} {name:10} {middle:8.0f} pairs/s, "
                    f"{middle / base:.2f} of files (from {min(found):.0f} to {max(found):.0f})"
                )


if __name__ == "__main__":
    main()
