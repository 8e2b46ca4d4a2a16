"""Evaluating a set: counting, order, limits, sinks, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cgrseg.config.schema import TestConfig
from cgrseg.errors import ConfigError, DataError
from cgrseg.evaluation.loop import Tally, count_images, evaluate_model
from cgrseg.evaluation.metrics import SegmentationScores
from cgrseg.inference.decode import Segmentation
from cgrseg.inference.segmenting import segment
from tests.inference.fixtures import BlockBackend, photo

NATIVE = TestConfig(resize="none")


class Items:
    """Pictures with labels that agree with a backend except where they are disturbed."""

    def __init__(self, count: int = 5, classes: int = 7) -> None:
        generator = np.random.default_rng(0)
        self.rows: list[dict[str, Any]] = []
        for number in range(count):
            image = photo(64 + 8 * number, 96, number)
            label = segment(BlockBackend(classes), image, NATIVE).labels.copy()
            disturbed = generator.random(label.shape) < 0.1 * number
            label[disturbed] = generator.integers(0, classes, int(disturbed.sum()))
            label[:4] = 255
            self.rows.append({"image": image, "label": label, "stem": f"{number}"})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.rows[index]


def test_scores_are_those_of_counting_by_hand() -> None:
    items = Items()
    result = evaluate_model(BlockBackend(), items, NATIVE, metrics=("mIoU", "mBoundaryIoU", "ECE"))
    hit = predicted = labelled = np.zeros(7, dtype=np.int64)
    for item in items.rows:
        found = segment(BlockBackend(), item["image"], NATIVE).labels
        kept = item["label"] != 255
        right = kept & (found == item["label"])
        hit = hit + np.bincount(found[right], minlength=7)
        predicted = predicted + np.bincount(found[kept], minlength=7)
        labelled = labelled + np.bincount(item["label"][kept], minlength=7)
    expected = SegmentationScores.from_counts(hit, predicted, labelled)
    assert result.scores.summary() == expected.summary()
    assert 0.5 < result.scores.mean_iou < 0.95
    assert result.stems == ("0", "1", "2", "3", "4")
    assert np.array_equal(result.counts.sum(axis=0), [hit, predicted, labelled])
    assert result.per_image()[0] == {
        "image": "0",
        "aAcc": 1.0,
        "mIoU": 1.0,
        "pixels": 60 * 96,
    }
    assert result.interval is not None
    assert result.interval.low < result.interval.value < result.interval.high
    assert set(result.metrics) >= {"mIoU", "mBoundaryIoU", "ECE"}


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 3), (2, 1)])
def test_workers_and_batches_change_nothing(workers: int, batch_size: int) -> None:
    items = Items()
    plain = evaluate_model(BlockBackend(), items, NATIVE)
    other = evaluate_model(BlockBackend(), items, NATIVE, workers=workers, batch_size=batch_size)
    assert plain.as_json() == other.as_json()
    assert np.array_equal(plain.counts, other.counts)


def test_limit_progress_and_sinks() -> None:
    seen: list[str] = []
    steps: list[tuple[int, int]] = []

    def sink(item: Mapping[str, Any], found: Segmentation) -> None:
        assert found.labels.shape == item["label"].shape
        seen.append(item["stem"])

    result = evaluate_model(
        BlockBackend(),
        Items(),
        NATIVE,
        limit=3,
        sinks=[sink],
        progress=lambda done, total: steps.append((done, total)),
    )
    assert result.stems == ("0", "1", "2") and seen == ["0", "1", "2"]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_shares_of_several_processes_add_up_to_the_whole() -> None:
    items = Items()
    whole = evaluate_model(BlockBackend(), items, NATIVE)
    stems: list[str] = []
    total: NDArray[np.int64] = np.zeros((7, 7), dtype=np.int64)
    for rank in range(3):
        tally = Tally(7, 255, ())
        for number in range(rank, len(items), 3):
            tally.add(
                number, items[number], segment(BlockBackend(), items[number]["image"], NATIVE)
            )
        part = tally.combined([str(k) for k in range(7)], 1, torch.device("cpu"))
        stems += part.stems
        total += part.confusion
    assert sorted(stems) == list(whole.stems)
    assert np.array_equal(total, whole.confusion)


def test_images_without_labels_are_predicted_and_not_counted() -> None:
    items = Items(3)
    items.rows[1]["label"] = None
    result = evaluate_model(BlockBackend(), items, NATIVE)
    assert result.stems == ("0", "1", "2")
    assert result.per_image()[1] == {"image": "1", "aAcc": None, "mIoU": None, "pixels": 0}
    assert int(result.confusion.sum()) == sum(
        int((row["label"] != 255).sum()) for row in items.rows if row["label"] is not None
    )


class Network(nn.Module):
    """A module around the block backend, with a parameter and a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 7
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return BlockBackend().logits(x)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_keeps_its_mode(training: bool) -> None:
    network = Network().train(training)
    evaluate_model(network, Items(2), NATIVE)
    assert network.training is training
    broken = Items(2)
    broken.rows[1]["label"] = np.full((64, 96), 9, np.uint8)
    with pytest.raises(DataError):
        evaluate_model(network, broken, NATIVE)
    assert network.training is training


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="mIuO"):
        evaluate_model(BlockBackend(), Items(1), NATIVE, metrics=["mIuO"])
    with pytest.raises(ConfigError, match="a network with 7 classes"):
        evaluate_model(BlockBackend(), Items(1), NATIVE, classes=["a", "b"])
    wrong = Items(2)
    wrong.rows[1]["label"] = np.full(wrong.rows[1]["label"].shape, 40, np.uint8)
    with pytest.raises(DataError, match=r"1: metrics: label.*\n.*ids 0 to 6"):
        evaluate_model(BlockBackend(), wrong, NATIVE)
    wrong.rows[1]["label"] = np.zeros((3, 3), np.uint8)
    with pytest.raises(DataError, match="1: a label of 3x3 for an image of 72x96"):
        evaluate_model(BlockBackend(), wrong, NATIVE)


def test_files_hold_what_was_found(tmp_path: Path) -> None:
    import json

    from cgrseg.evaluation.result import read_counts

    result = evaluate_model(BlockBackend(), Items(3), NATIVE, metrics=["ECE"])
    written = result.write(tmp_path / "run").json
    assert written == tmp_path / "run" / "evaluation.json"
    content = json.loads(written.read_text())
    assert content["scores"]["mIoU"] == result.scores.mean_iou
    assert content["confusion"] == result.confusion.tolist()
    assert [row["class"] for row in content["per_class"]] == [str(k) for k in range(7)]
    assert sum(b["pixels"] for b in content["calibration"]["bins"]) == result.confusion.sum()
    stems, classes, counts = read_counts(written.with_suffix(".npz"))
    assert stems == result.stems and classes == result.classes
    assert np.array_equal(counts, result.counts)
    whole = written.with_suffix(".npz").read_bytes()
    for damaged in (b"nothing", b"", whole[: len(whole) // 2]):  # the last one is no archive
        (tmp_path / "bad.npz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"bad\.npz"):
            read_counts(tmp_path / "bad.npz")


def test_an_earlier_result_is_never_lost(tmp_path: Path) -> None:
    first = evaluate_model(BlockBackend(), Items(3), NATIVE)
    other = evaluate_model(BlockBackend(), Items(2), NATIVE)
    names = ["evaluation.json", "evaluation.npz"]

    def held() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}

    assert first.write(tmp_path).earlier == []
    before = held()
    assert first.write(tmp_path).earlier == [] and held() == before  # the same again
    kept = other.write(tmp_path).earlier
    assert sorted(path.name for path in kept) == [
        "evaluation_earlier1.json",
        "evaluation_earlier1.npz",
    ]
    after = held()
    assert [after[path.name] for path in sorted(kept)] == [before[name] for name in names]
    assert after["evaluation.json"] != before["evaluation.json"]
    (tmp_path / "evaluation.npz").unlink()
    assert [path.name for path in first.write(tmp_path).earlier] == ["evaluation_earlier2.json"]
    assert held()["evaluation_earlier1.json"] == before["evaluation.json"]
    assert first.write_copy(tmp_path / "mine.npz") == []
    assert [path.name for path in other.write_copy(tmp_path / "mine.npz")] == ["mine_earlier1.npz"]


def test_undefined_scores_are_null_and_no_nan(tmp_path: Path) -> None:
    items = Items(1)
    items.rows[0]["label"][:] = 255
    result = evaluate_model(BlockBackend(), items, NATIVE, metrics=["mBoundaryIoU", "ECE"])
    text = result.write(tmp_path).json.read_text()
    assert "NaN" not in text and '"mIoU": null' in text and '"interval": null' in text


def test_tallies_of_parts_merge_to_that_of_the_whole() -> None:
    items, metrics = Items(), ("mIoU", "mBoundaryIoU", "ECE")
    whole = evaluate_model(BlockBackend(), items, NATIVE, metrics=metrics)
    merged = Tally(7, 255, metrics)
    for numbers in ((4, 1), (), (0, 2, 3)):
        part = Tally(7, 255, metrics)
        read = ((number, items[number]) for number in numbers)
        assert sum(count_images(BlockBackend(), read, NATIVE, part, 1, ())) == len(numbers)
        merged.merge(pickle.loads(pickle.dumps(part)))
    found = merged.combined(whole.classes, 1, torch.device("cpu"))
    assert found.stems == whole.stems and np.array_equal(found.confusion, whole.confusion)
    assert np.array_equal(found.counts, whole.counts)
    assert found.as_json() == whole.as_json()
