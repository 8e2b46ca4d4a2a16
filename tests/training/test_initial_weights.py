"""ImageNet weights of a run: found, downloaded, verified, mended, or refused with three ways on."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgrseg import downloading
from cgrseg.cli.main import main as cgrseg_main
from cgrseg.config.presets import list_presets, named_preset
from cgrseg.config.schema import Config
from cgrseg.errors import WeightsError
from cgrseg.evaluation import evaluate
from cgrseg.hub import NotAvailable, locate_file
from cgrseg.reporting import report_on
from cgrseg.training import single_gpu, train_script
from cgrseg.training.initial_weights import NoImageNetWeights
from cgrseg.training.runner import train
from cgrseg.variants import VARIANTS, Variant, imagenet_weights
from run_cgrseg import DEFAULT_HPARAMS, run_single_gpu
from tests.conftest import timm_file
from tests.loopback_hub import TOKEN, Hub, loopback_hub
from tests.training.small_run import small_config, weights_of, write_dataset

REPOSITORY = imagenet_weights("cgrseg_t")
NAME = "model.safetensors"
CONTENT = timm_file()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    with loopback_hub(cache) as running:
        running.files[REPOSITORY] = {NAME: CONTENT}
        yield running


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def locate() -> tuple[Path, list[str]]:
    """The located file, and what was told."""
    lines: list[str] = []
    found = locate_file(REPOSITORY, NAME, lines.append)
    assert found.digest == DIGEST and found.path.read_bytes() == CONTENT
    return found.path, lines


def test_it_downloads_verifies_and_trains(
    hub: Hub, cache: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(
        dataset, tmp_path / "run", model__pretrained="imagenet", schedule__max_iters=1
    )
    result = train(config, device="cpu")
    told, progress = capsys.readouterr()
    order = ["downloading http", "ImageNet weights of the backbone", "tensors loaded", "iteration"]
    places = [told.find(word) for word in order]
    assert -1 not in places and places == sorted(places), told
    for part in (hub.address, f"{len(CONTENT) / 1e6:.1f} MB", "Apache-2.0", DIGEST, str(cache)):
        assert part in told
    assert f"downloading: {len(CONTENT) // 10**6}/{len(CONTENT) // 10**6} MB" in progress
    assert (tmp_path / "run" / "train.log").read_text().count(DIGEST) == 1
    scores = evaluate(config, result.latest, device="cpu", progress=False)
    assert scores.settings["initial weights"] == (
        f"ImageNet: {REPOSITORY}, SHA-256 {DIGEST}; head: random"
    )
    page = report_on(tmp_path / "run", pictures=False).html.read_text(encoding="utf-8")
    assert f"initial weights</th><td>ImageNet: {REPOSITORY}, SHA-256 {DIGEST}" in page
    stem = "backbone.patch_embed.0.bias"
    assert weights_of(result.latest)[stem].abs().max() < 0.01  # one iteration from the file's zero

    # A resumed run keeps the record and needs no file; nor does fine-tuning.
    hub.files.clear()
    (path,) = cache.rglob(NAME)
    path.unlink()
    more = {"model__pretrained": "imagenet", "schedule__max_iters": 2}
    longer = small_config(dataset, tmp_path / "run", **more)
    resumed = train(longer, device="cpu", auto_resume=True)
    kept = evaluate(longer, resumed.latest, device="cpu", progress=False).settings
    assert kept["initial weights"] == scores.settings["initial weights"]
    tuned = small_config(
        dataset,
        tmp_path / "tuned",
        model__pretrained="imagenet",
        schedule__max_iters=1,
        train__load_from=str(result.latest),
    )
    assert train(tuned, device="cpu").iterations == 1


def test_an_interrupted_download_is_resumed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "TRIES", 1)
    hub.cuts = [10_000_000]
    with pytest.raises(NotAvailable, match="the same command resumes it"):
        locate()
    _, told = locate()
    assert hub.ranges == ["", "bytes=10000000-"]
    assert told[1] == "an interrupted download is resumed after 10.0 MB"
    assert locate()[1] == []  # from the cache
    assert len(hub.ranges) == 2


def test_a_damaged_download_is_repeated_once(hub: Hub, cache: Path) -> None:
    hub.damaged = 1
    _, told = locate()
    assert "damaged" in told[1] and DIGEST in told[1] and len(hub.ranges) == 2

    path = next(cache.rglob(NAME))
    blob = path.resolve()
    blob.write_bytes(CONTENT[:-1] + b"\xff")  # in the cache, right size
    with pytest.MonkeyPatch.context() as offline:
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(NotAvailable, match=f"{path} is damaged, and .* offline"):
            locate()
    assert blob.exists()
    hub.damaged = 2
    with pytest.raises(NotAvailable, match="twice"):
        locate()
    assert not path.exists() and not blob.exists()
    locate()


def test_a_hub_without_the_file_is_refused(hub: Hub) -> None:
    hub.files.clear()
    with pytest.raises(NotAvailable, match="does not give it"):
        locate()


def test_a_mirror_may_need_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage server, to which the hub redirects, refuses it."""
    hub.private = True
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(NotAvailable, match=r"not in the cache, and .* does not give it .*401"):
        locate()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    locate()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("model__pretrained", "absent.pth"), ("train__load_from", "cgrseg-t_unknown")],
)
def test_weights_that_are_not_there_stop_before_the_data(
    setting: str, value: str, tmp_path: Path
) -> None:
    config = small_config(tmp_path / "no dataset", tmp_path / "run", **{setting: value})
    with pytest.raises(WeightsError, match=f"{value}: there is no such file"):
        train(config, device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_stated_size_is_that_of_the_parameters(variant: Variant, golden_dir: Path) -> None:
    listing = json.loads((golden_dir / "timm_keys.json").read_text(encoding="utf-8"))
    sizes = [math.prod(s) * np.dtype(d).itemsize for s, d in listing[variant.backbone].values()]
    assert variant.imagenet_megabytes == round(sum(sizes) / 1e6)


ADDED = ("add model.pretrained=FILE", "add model.pretrained=null")
CONFIG = "local_configs/cgrseg/cgrseg-t_ade20k_160k.py"
FORMS: dict[str, tuple[Callable[[], Any], tuple[str, str]]] = {
    "cgrseg": (cgrseg_main, ADDED),
    "run_cgrseg": (lambda: single_gpu.main(DEFAULT_HPARAMS, ["--mode", "train"]), ADDED),
    "tools": (lambda: train_script.main([CONFIG]), ADDED),
    "python": (
        lambda: run_single_gpu("train"),
        ('set {"model.pretrained": "FILE"}', 'set {"model.pretrained": None}'),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_offline_it_stops_first_and_says_three_ways(
    form: str,
    hub: Hub,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local_configs").symlink_to(repository / "local_configs")
    monkeypatch.setattr("sys.argv", ["cgrseg", "train", "cgrseg-t_ade20k_160k"])
    run, (file, none) = FORMS[form]
    try:
        status = run()
    except NoImageNetWeights as error:
        message, status = str(error), 2
    except SystemExit as error:
        status, message = error.code, capsys.readouterr().err
    else:
        message = capsys.readouterr().err
    assert status == 2
    assert message.count("model.pretrained=imagenet") == 1
    for part in (f"{hub.address}/{REPOSITORY}/resolve/main/{NAME}", file, "HF_ENDPOINT=http", none):
        assert part in message
    assert sorted(os.listdir(tmp_path)) == ["local_configs"]  # no run folder, no cache


def test_presets_start_from_imagenet_but_those_made_for_training_from_scratch() -> None:
    found = {name: named_preset(name).model.pretrained for name in list_presets()}  # type: ignore[union-attr]
    scratch = {name for name, value in found.items() if value is None}
    assert scratch == {n for n in found if "camvid" in n or "synthetic" in n}
    assert set(found.values()) == {None, "imagenet"}
    assert Config().model.pretrained == "imagenet"


def test_a_cache_that_cannot_be_written_is_told(hub: Hub, cache: Path) -> None:
    cache.write_text("in the way")
    with pytest.raises(NotAvailable, match=f"it cannot be kept in the cache {cache}"):
        locate()


def test_a_damaged_cache_without_digest_names_is_found(hub: Hub, cache: Path) -> None:
    path, _ = locate()
    blob = path.resolve()
    path.unlink()
    path.write_bytes(CONTENT)  # as on a file system without symlinks
    blob.unlink()
    assert locate_file(REPOSITORY, NAME, print).digest is None
    path.write_bytes(CONTENT[:1000])
    locate()
