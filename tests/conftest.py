"""Fixtures that every test module shares."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from safetensors.numpy import save

# A busy machine is slow, and no test measures time.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


IMAGENET_REPOSITORY = "timm/efficientformerv2_s1.snap_dist_in1k"
if "PYTEST_XDIST_WORKER" not in os.environ:  # its workers inherit the environment
    # `huggingface_hub` reads these once, when other files of fixtures import it.
    os.environ.update(HF_HUB_CACHE=tempfile.mkdtemp(prefix="hub_cache_"), HF_HUB_OFFLINE="1")


def timm_file(variant: str = "efficientformerv2_s1") -> bytes:
    """A safetensors file with the names and shapes of timm's ImageNet weights, drawn at random."""
    listing = json.loads((REPOSITORY / "tests/golden/timm_keys.json").read_text(encoding="utf-8"))
    rng = np.random.default_rng(0)
    tensors = {}
    for name, (shape, dtype) in listing[variant].items():
        leaf = name.rpartition(".")[2]
        value = np.zeros(shape, dtype)
        if leaf == "weight" and len(shape) > 1:
            value = rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))
        elif leaf in ("weight", "running_var"):
            value = np.ones(shape, dtype)
        elif leaf == "gamma":
            value = np.full(shape, 1e-5, dtype)
        tensors[name] = value.astype(dtype)
    return save(tensors, metadata={"format": "pt"})


def write_hub_cache(cache: Path) -> None:
    """A cache of `huggingface_hub` with the ImageNet weights of CGRSeg-T."""
    content, commit = timm_file(), "0" * 40
    folder = cache / f"models--{IMAGENET_REPOSITORY.replace('/', '--')}"
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    pointer = folder / "snapshots" / commit / "model.safetensors"
    for place in (blob, pointer, folder / "refs" / "main"):
        place.parent.mkdir(parents=True)
    blob.write_bytes(content)
    pointer.symlink_to(Path("../../blobs") / blob.name)
    (folder / "refs" / "main").write_text(commit)


def pytest_configure() -> None:
    """Let the default runs of the documents find ImageNet weights, without a network."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        write_hub_cache(Path(os.environ["HF_HUB_CACHE"]))


def pytest_unconfigure() -> None:
    """Remove the cache."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["HF_HUB_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Outputs of the published code (see tests/golden/README.md)."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and labels kept beside the checkout; skips where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real sample images are not beside this checkout ({SHARED_DATA})")
    return SHARED_DATA


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU")
