"""Samples from disk: all nine runs on real images, and the same whatever loads them."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cgrseg.augmentations import MIXES, OPERATIONS
from cgrseg.config import load_config
from cgrseg.config.schema import AugmentConfig, Config, DataConfig, ScheduleConfig
from cgrseg.data.dataset import (
    EvalDataset,
    GrowingCrops,
    TrainDataset,
    balanced_weights,
    initialize_worker,
)
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import read_label, write_label_png
from cgrseg.data.pair_files import load_image, load_label
from cgrseg.data.pairs import Pair, find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.data.sampling import ShardSampler, StreamSampler
from cgrseg.data.sources import Source
from cgrseg.datasets import get_spec
from cgrseg.errors import DataError

NINE = [
    f"cgrseg-{size}_{dataset}"
    for dataset in ("ade20k_160k", "coco-stuff10k_80k", "pascal-context59_80k")
    for size in "tbl"
]


def prepared_coco(shared_data: Path, root: Path) -> Path:
    """The COCO-Stuff-10k samples as people have them: prepared labels, by class name."""
    source = shared_data / "cocostuff10k_samples"
    lines = (source / "cocostuff-labels.txt").read_text().splitlines()
    name_of = {int(line.split(":")[0]): line.split(":")[1].strip() for line in lines}
    classes = get_spec("coco_stuff10k").classes
    table = np.zeros(256, np.uint8)
    for one_based, name in name_of.items():
        if name in classes:
            table[one_based - 1] = classes.index(name) + 1
    for folder, name in (("train2014", "train"), ("test2014", "test")):
        for stem in (source / f"imageLists/{name}.txt").read_text().split():
            target = root / "images" / folder / f"{stem}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source / "images" / f"{stem}.jpg")
            raw = read_label(source / "png164k" / f"{stem}.png")
            label = root / "annotations" / folder / f"{stem}_labelTrainIds.png"
            write_label_png(label, table[raw], [(0, 0, 0)])
    return root


@pytest.fixture(scope="module")
def sample_roots(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("roots")
    ade, voc = folder / "ADEChallengeData2016", folder / "VOC2010"
    ade.symlink_to(shared_data / "ade20k_samples")
    voc.symlink_to(shared_data / "pascal_context_samples")
    return {
        "ade20k": ade,
        "pascal_context59": voc,
        "coco_stuff10k": prepared_coco(shared_data, folder / "coco_stuff10k"),
    }


@pytest.mark.parametrize("name", NINE)
def test_loaders_of_the_nine_runs(name: str, sample_roots: dict[str, Path]) -> None:
    config = load_config(name)
    config = load_config(name, {"data": {"root": str(sample_roots[config.data.dataset])}})
    train = TrainDataset.from_config(config)
    count = {"ade20k": 2, "coco_stuff10k": 13, "pascal_context59": 46}
    assert len(train) == count[config.data.dataset]
    sampler = StreamSampler(len(train), seed=0, batch_size=3)
    batches = list(islice(DataLoader(train, batch_size=3, sampler=sampler), 2))
    height, width = config.augment.crop_size
    for number, batch in enumerate(batches):
        assert batch["image"].shape == (3, 3, height, width)
        assert batch["image"].dtype == torch.float32
        assert batch["label"].shape == (3, height, width)
        assert batch["label"].dtype == torch.int64
        assert batch["position"].tolist() == [3 * number, 3 * number + 1, 3 * number + 2]
        labelled = batch["label"][batch["label"] != 255]
        assert labelled.numel() > 0
        assert labelled.min() >= 0 and labelled.max() < train.spec.num_classes
        assert batch["image"].min() > -2.2 and batch["image"].max() < 2.7

    held_out = EvalDataset.from_config(config)
    loader = DataLoader(held_out, sampler=ShardSampler(len(held_out), 1, 3), collate_fn=list)
    seen = list(islice((sample for batch in loader for sample in batch), 3))
    assert [sample["index"] for sample in seen] == [1, 4, 7][: len(seen)]
    for sample in seen:
        assert sample["image"].shape == (*sample["label"].shape, 3)
        assert sample["label"].dtype == np.uint8
        assert Path(sample["image_path"]).stem == sample["stem"]


def test_ade20k_ids_by_hand(shared_data: Path) -> None:
    """What one sees at these pixels of the photos, by name (row, column)."""
    seen = {
        "ADE_train_00000001": {(10, 10): "ceiling", (502, 10): "floor"},
        "ADE_train_00000036": {
            (10, 10): "windowpane",
            (112, 326): "wall",
            (215, 168): "floor",
            (215, 10): "bathtub",
        },
        "ADE_val_00000001": {(10, 10): "sky", (256, 341): "building", (502, 341): "grass"},
        "ADE_val_00000002": {(10, 10): "sky", (354, 10): "plant"},
        "ADE_val_00000003": {
            (10, 10): "sky",
            (290, 200): "road",
            (150, 390): "van",
            (290, 10): "sidewalk",
        },
    }
    spec = get_spec("ade20k")
    root = shared_data / "ade20k_samples"
    pairs = find_pairs(spec, root, "train") + find_pairs(spec, root, "val")
    assert [pair.stem for pair in pairs] == list(seen)
    for pair in pairs:
        labels = load_label(spec, pair)
        named = {place: spec.classes[labels[place]] for place in seen[pair.stem]}
        assert named == seen[pair.stem]
    assert load_label(spec, pairs[3])[354, 250] == 255  # raw 0: "other"


def test_both_encodings_of_coco_stuff_agree(
    shared_data: Path, sample_roots: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    source = shared_data / "cocostuff10k_samples"
    (tmp_path / "images/val2017").symlink_to(source / "images")
    (tmp_path / "annotations/val2017").symlink_to(source / "png164k")
    spec164, spec10 = get_spec("coco_stuff164k"), get_spec("coco_stuff10k")
    raw = {pair.stem: pair for pair in find_pairs(spec164, tmp_path, "val")}
    assert len(raw) == 21
    root = sample_roots["coco_stuff10k"]
    pairs = find_pairs(spec10, root, "train") + find_pairs(spec10, root, "test")
    assert len(pairs) == 21
    for pair in pairs:
        assert np.array_equal(load_label(spec10, pair), load_label(spec164, raw[pair.stem]))


def test_camvid_and_pascal_context_60(shared_data: Path) -> None:
    camvid = resolve_spec(DataConfig(dataset="camvid", root=str(shared_data / "camvid")))
    sizes = [len(find_pairs(camvid, shared_data / "camvid", s)) for s in ("train", "val", "test")]
    assert sizes == [367, 101, 233]
    sample = EvalDataset(camvid, find_pairs(camvid, shared_data / "camvid", "test"))[0]
    assert camvid.classes[sample["label"][0, 240]] in ("sky", "building", "tree")
    assert camvid.classes[sample["label"][300, 240]] == "road"

    root = shared_data / "pascal_context_samples"
    with_background, without = get_spec("pascal_context60"), get_spec("pascal_context59")
    pair = find_pairs(with_background, root, "val")[0]
    ids60, ids59 = load_label(with_background, pair), load_label(without, pair)
    assert np.array_equal(ids59, np.where(ids60 == 0, 255, ids60.astype(int) - 1))


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """Twelve pictures of a person's own, with three classes."""
    rng = np.random.default_rng(0)
    for number in range(12):
        labels = rng.integers(0, 3, (6, 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        image = (labels[..., None] * 60 + rng.integers(0, 60, (48, 64, 3))).astype(np.uint8)
        write_image(tmp_path / f"images/{number:02}.jpg", image)
        write_label_png(tmp_path / f"annotations/{number:02}.png", labels, [(0, 0, 0)] * 3)
    (tmp_path / "classes.txt").write_text("cat\ndog\nsofa\n")
    return tmp_path


def own_config(root: Path, **augment: object) -> Config:
    return Config(
        data=DataConfig(dataset="custom", root=str(root)),
        augment=AugmentConfig(
            scale=(96, 64),
            crop_size=(32, 32),
            rotation=10,
            vertical_flip=0.5,
            rare_class_crops=0.5,
            **augment,  # type: ignore[arg-type]
        ),
    )


def stream(config: Config, workers: int, start: int, steps: int) -> list[dict[str, torch.Tensor]]:
    dataset = TrainDataset.from_config(config)
    loader = DataLoader(
        dataset,
        batch_size=4,
        sampler=StreamSampler(len(dataset), config.train.seed, 4, start_step=start),
        num_workers=workers,
        worker_init_fn=initialize_worker,
    )
    return list(islice(loader, steps))


def test_samples_depend_neither_on_workers_nor_on_resuming(own_folder: Path) -> None:
    added = dict.fromkeys([*OPERATIONS, *MIXES], 0.5)
    config = own_config(own_folder, **added)
    alone = stream(config, workers=0, start=0, steps=6)
    mixed = torch.cat([batch["further"] for batch in alone])
    assert mixed.shape == (24, 6) and 0.25 < (mixed >= 0).float().mean() < 0.75
    for other, expected in (
        (stream(config, workers=4, start=0, steps=6), alone),
        (stream(config, workers=2, start=4, steps=2), alone[4:]),
    ):
        for got, wanted in zip(other, expected, strict=True):
            for key in ("image", "label", "position", "index", "further"):
                assert torch.equal(got[key], wanted[key]), key


def test_another_seed_gives_other_samples(own_folder: Path) -> None:
    config = own_config(own_folder)
    first = stream(config, workers=0, start=0, steps=1)[0]
    config.train.seed = 1
    second = stream(config, workers=0, start=0, steps=1)[0]
    assert not torch.equal(first["index"], second["index"])
    assert not torch.equal(first["image"], second["image"])


def test_one_image_differs_between_its_positions(own_folder: Path) -> None:
    dataset = TrainDataset.from_config(own_config(own_folder))
    assert torch.equal(dataset[5, 3]["image"], dataset[5, 3]["image"])
    assert not torch.equal(dataset[5, 3]["image"], dataset[6, 3]["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_wrong_ids_stop_with_the_name_of_the_file(own_folder: Path, workers: int) -> None:
    labels = np.zeros((48, 64), np.uint8)
    labels[0, 0] = 3
    for pair in TrainDataset.from_config(own_config(own_folder)).pairs[:3]:
        assert pair.label is not None
        write_label_png(pair.label, labels, [(0, 0, 0)])
    with pytest.raises(DataError, match="ids outside the class list: 3 ") as caught:
        stream(own_config(own_folder), workers=workers, start=0, steps=3)
    # Also from a worker's process nothing but the message arrives.
    labels_folder = re.escape(str(own_folder / "annotations"))
    assert re.match(rf"{labels_folder}/\d\d\.png: ids", str(caught.value))
    assert "Traceback" not in str(caught.value)
    assert str(caught.value).splitlines()[-1].startswith("  what to do: ")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_ids_looked_up_on_the_crop_are_those_of_the_plain_order(
    tmp_path: Path, share: float
) -> None:
    """Through files, with an encoding that is not the training ids and classes merged."""
    rng = np.random.default_rng(3)
    for number in range(4):
        labels = rng.integers(0, 152, (9, 11)).astype(np.uint8)
        labels[labels == 151] = 255
        labels = labels.repeat(9, 0).repeat(7, 1)
        write_image(
            tmp_path / f"images/training/{number}.png",
            rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8),
        )
        write_label_png(tmp_path / f"annotations/training/{number}.png", labels, [(0, 0, 0)])
    samples = []
    for first in (True, False):
        config = Config(
            data=DataConfig(
                dataset="ade20k",
                root=str(tmp_path),
                merge={"surface": ["wall", "floor"]},
                drop=["sky"],
            ),
            augment=AugmentConfig(
                scale=(160, 120), crop_size=(64, 64), crop_first=first, rare_class_crops=share
            ),
        )
        dataset = TrainDataset.from_config(config)
        samples.append([dataset[position, position % 4] for position in range(40)])
    for one, other in zip(*samples, strict=True):
        assert torch.equal(one["label"], other["label"])


def test_crops_grow_with_the_iteration(sample_roots: dict[str, Path]) -> None:
    config = Config(
        data=DataConfig(root=str(sample_roots["ade20k"])),
        augment=AugmentConfig(scale=(300, 100), crop_size=(160, 64), progressive=[0.5, 0.75, 1]),
        schedule=ScheduleConfig(max_iters=4),
    )
    stages = config.augment.stages
    # 80 is rounded up to 96, 48 to 64
    assert [stage.crop_size for stage in stages] == [(96, 32), (128, 64), (160, 64)]
    assert [stage.scale for stage in stages] == [(150, 50), (225, 75), (300, 100)]
    plain = TrainDataset.from_config(config)
    growing = GrowingCrops(plain, config, images_per_iteration=2)
    # iterations 0 and 1, 2, 3 and those after the last
    for position, size in enumerate([96, 96, 96, 96, 128, 128, 160, 160, 160, 160]):
        sample = growing[position, position % 2]
        assert sample["label"].shape[0] == size and sample["position"] == position
    assert torch.equal(sample["image"], plain[9, 1]["image"])


def test_sizes_must_agree(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "plain.jpg")
    labels = np.zeros((40, 60), np.uint8)
    assert load_image(Pair("plain", tmp_path / "plain.jpg", None), labels).shape == (40, 60, 3)
    with pytest.raises(DataError, match=r"40x60 pixels(.|\n)*EXIF orientation"):
        load_image(Pair("turned", tmp_path / "turned.jpg", None), labels)
    with pytest.raises(DataError, match=r"60x40 pixels(.|\n)*61x40(.|\n)*belong together"):
        load_image(Pair("plain", tmp_path / "plain.jpg", None), np.zeros((40, 61), np.uint8))


def test_a_split_without_labels_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "leftImg8bit/test/bonn/a_leftImg8bit.png", np.zeros((4, 4, 3), np.uint8))
    spec = get_spec("cityscapes")
    pairs = find_pairs(spec, tmp_path, "test")
    with pytest.raises(DataError, match="this split has no labels"):
        EvalDataset(spec, pairs)


class TestReducedDecoding:
    def folder(self, root: Path, suffix: str) -> TrainDataset:
        y, x = np.mgrid[0:384, 0:512]
        image = np.stack([x / 2, y / 2, 255 - x / 2], axis=-1).astype(np.uint8)
        for stem in ("a", "b", "c"):
            write_image(root / f"images/{stem}{suffix}", image, quality=98)
            labels = (x // 64 % 3).astype(np.uint8)
            write_label_png(root / f"annotations/{stem}.png", labels, [(0, 0, 0)])
        (root / "classes.txt").write_text("a\nb\nc\n")
        config = own_config(root, reduced_decode=True)
        config.augment = config.augment.model_copy(update={"rotation": 0.0})
        return TrainDataset.from_config(config)

    def test_the_largest_reduction_that_still_shrinks(self, tmp_path: Path) -> None:
        dataset = self.folder(tmp_path, ".jpg")
        labels = np.zeros((384, 512), np.uint8)
        for size, expected in (
            ((48, 64), 8),
            ((49, 65), 4),
            ((96, 128), 4),
            ((192, 256), 2),
            ((193, 257), 1),
            ((500, 600), 1),
        ):
            plan = dataset.transform.plan(labels, np.random.default_rng(0))
            plan = type(plan)(size, plan.window, plan.labels)
            assert dataset.reduction(dataset.pairs[0], labels, plan) == expected

    def test_same_labels_and_nearly_the_same_picture(self, tmp_path: Path) -> None:
        fast = self.folder(tmp_path, ".jpg")
        config = fast.augment.model_copy(update={"reduced_decode": False})
        plain = TrainDataset(fast.spec, fast.pairs, config)
        for position in range(30):
            one, other = fast[position, 0], plain[position, 0]
            assert torch.equal(one["label"], other["label"])
            assert (one["image"] - other["image"]).abs().mean() < 0.1
            # The short side becomes 128 pixels of 384 at most, so every sample is reduced.
            assert not torch.equal(one["image"], other["image"])

    @pytest.mark.parametrize("size", [(383, 509), (377, 505)])
    def test_odd_sizes(self, tmp_path: Path, size: tuple[int, int]) -> None:
        fast = self.folder(tmp_path, ".jpg")
        pair = fast.pairs[0]
        assert pair.label is not None
        write_image(pair.image, np.zeros((*size, 3), np.uint8))
        write_label_png(pair.label, np.zeros(size, np.uint8), [(0, 0, 0)])
        for position in range(5):
            assert fast[position, 0]["image"].shape == (3, 32, 32)

    @pytest.mark.parametrize("size", [(384, 512), (383, 509)])
    def test_a_png_called_jpg_is_read_whole(self, tmp_path: Path, size: tuple[int, int]) -> None:
        fast = self.folder(tmp_path, ".jpg")
        pair = fast.pairs[0]
        assert pair.label is not None
        photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(photo).save(pair.image, format="PNG")
        write_label_png(pair.label, np.zeros(size, np.uint8), [(0, 0, 0)])
        plain = TrainDataset(
            fast.spec, fast.pairs, fast.augment.model_copy(update={"reduced_decode": False})
        )
        for position in range(5):
            assert torch.equal(fast[position, 0]["image"], plain[position, 0]["image"])

    def test_other_formats_are_read_whole(self, tmp_path: Path) -> None:
        fast = self.folder(tmp_path, ".png")
        plain = TrainDataset(
            fast.spec, fast.pairs, fast.augment.model_copy(update={"reduced_decode": False})
        )
        for position in range(10):
            assert torch.equal(fast[position, 0]["image"], plain[position, 0]["image"])


def test_class_weights_by_hand(tmp_path: Path) -> None:
    """Two labels: class 0 in both, class 1 in one, class 2 in none, some pixels ignored."""
    for part in ("images", "annotations"):
        (tmp_path / part).mkdir()
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    labels = [np.array([[0, 0, 0, 0, 0, 0, 1, 1]]), np.array([[0, 0, 0, 0, 255, 255, 255, 255]])]
    for number, label in enumerate(labels):
        write_image(tmp_path / "images" / f"{number}.png", np.zeros((1, 8, 3), np.uint8))
        cv2.imwrite(str(tmp_path / "annotations" / f"{number}.png"), label.astype(np.uint8))
    data = DataConfig(
        dataset="custom", root=str(tmp_path), images="images", labels="annotations",
        train_split="train", val_fraction=0.0,
    )  # fmt: skip
    spec = resolve_spec(data)
    pairs = [
        Pair(str(k), tmp_path / "images" / f"{k}.png", tmp_path / "annotations" / f"{k}.png")
        for k in range(2)
    ]
    source = Source(spec, pairs, 1.0)
    plain = 1 / np.log(1.02 + np.array([10 / 12, 2 / 12, 0]))
    scale = (plain[:2] * [10 / 12, 2 / 12]).sum()
    assert balanced_weights(source, "auto") == pytest.approx(plain / scale)
    frequency = np.array([10 / 12, 2 / 8])  # of the pixels of the labels with the class
    plain = np.median(frequency) / frequency
    scale = (plain * [10 / 12, 2 / 12]).sum()
    assert balanced_weights(source, "median") == pytest.approx([*plain / scale, plain[1] / scale])
