"""ExecuTorch, LiteRT and ncnn, each written and run by its own packages; Core ML, written alone.

`make test-devices` installs these in an environment of their own; elsewhere the tests are skipped.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cgrseg.bench.random_weights import draw_weights
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import read_label
from cgrseg.deploy import export
from cgrseg.deploy.verify import HALF_PRECISION, verify
from cgrseg.errors import ConfigError, EnvironmentProblem, WeightsError
from cgrseg.formats import describe, load_format
from cgrseg.formats.description import read_appended
from cgrseg.formats.litert_format import FORMAT as LITERT
from cgrseg.inference import Predictor
from cgrseg.inference.exported_backend import open_exported
from cgrseg.models import CGRSeg, create_model
from tests.deploy.conftest import small_network
from tests.deploy.device_packages import need_packages
from tests.inference.fixtures import photo
from tests.small_variant import small_variant

SIZE = (64, 96)
KINDS = ("executorch", "litert", "ncnn")


@pytest.fixture(scope="module")
def files(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exported files by format, made when first asked for."""
    folder = tmp_path_factory.mktemp("devices")

    class Files(dict[str, Path]):
        def __missing__(self, kind: str) -> Path:
            need_packages(kind)
            out = folder / f"small{load_format(kind).suffix}"
            self[kind] = export(checkpoint, kind, out, sizes=[SIZE]).path
            return self[kind]

    return Files()


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_is_the_checkpoints(kind: str, files: dict[str, Path], checkpoint: Path) -> None:
    picture = photo(128, 192)
    found = Predictor.from_pretrained(files[kind])
    gc.collect()  # what the runtime reads must be kept by the backend
    first, second = found(picture), found(photo(128, 192, seed=1))
    wanted = Predictor.from_pretrained(checkpoint)
    assert first.classes == wanted(picture).classes
    assert (first.labels == wanted(picture).labels).mean() > 0.999
    assert (second.labels == wanted(photo(128, 192, seed=1)).labels).mean() > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_says_what_it_is(kind: str, files: dict[str, Path]) -> None:
    about = describe(files[kind])
    assert (about.kind, about.sizes, about.batch) == (kind, [SIZE], 1)
    if kind == "ncnn":
        assert about.delegated is None
    else:
        assert about.delegated is not None and 0.95 <= about.delegated <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_ssa_head(kind: str, tmp_path: Path) -> None:
    need_packages(kind)
    with small_variant() as name:
        out = tmp_path / f"ssa{load_format(kind).suffix}"
        (check,) = export(small_network(name, head="ssa"), kind, out, sizes=[SIZE]).checks
    assert describe(out).head == "ssa" and check.labels > 0.999
    assert check.logits is not None and check.logits < 1e-4


@pytest.mark.parametrize("kind", ["litert", "ncnn"])
def test_half_precision_halves_the_file(
    kind: str, files: dict[str, Path], network: CGRSeg, tmp_path: Path
) -> None:
    whole, half = files[kind], tmp_path / f"half{files[kind].suffix}"
    if kind == "ncnn":
        (check,) = export(network, kind, half, sizes=[SIZE], precision="fp16").checks
        assert describe(half).agreement == check.labels
    else:  # without a second conversion
        about = describe(whole).model_copy(update={"precision": "fp16"})
        LITERT.save(read_appended(whole, "a model")[1], about, half)
        (check,) = verify(open_exported(half), network, [SIZE], [1], HALF_PRECISION)
        assert describe(half).delegated == describe(whole).delegated
    assert describe(half).precision == "fp16"
    assert check.labels >= 0.99 and check.logits is not None and 1e-5 < check.logits < 1e-2
    before, after = (
        sum(part.stat().st_size for part in load_format(kind).files(path)) for path in (whole, half)
    )
    assert after < 0.55 * before


@pytest.mark.parametrize("kind", KINDS)
def test_many_classes_in_batches_with_uneven_pooling(
    kind: str, files: dict[str, Path], tmp_path: Path
) -> None:
    """Pooling at 96x160 is a product with a small matrix, as at 512x704."""
    assert files[kind]
    model = draw_weights(create_model("cgrseg_t", 300, context_blocks=1))
    export_format = load_format(kind)
    out = tmp_path / f"other{export_format.suffix}"
    gives, takes, batch = export_format.outputs[-1], export_format.inputs[-1], 2
    if export_format.one_image:
        batch = 1
    kinds = {"normalised": "normalized", "pixels": "pixels"}
    result = export(
        model, kind, out, sizes=[(96, 160)], batch=batch, takes=kinds[takes], gives=gives
    )
    (check,) = result.checks
    assert check.batch == batch and check.labels > 0.999
    backend = open_exported(out)
    batches = np.zeros((3, 3, 96, 160), np.float32)
    if gives == "labels":
        labels = backend.labels(batches)
        assert labels.shape == (3, 96, 160) and labels.dtype == np.int32
    else:
        assert check.logits is not None and check.logits < 1e-5
        assert backend.logits(batches).shape == (3, 300, 12, 20)


@pytest.mark.parametrize("kind", ["litert", "ncnn"])
def test_prediction_needs_no_pytorch(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    write_image(tmp_path / "picture.png", photo(128, 192))
    code = "import sys; sys.modules['torch'] = None; from cgrseg.cli.main import main; main()"
    words = ["predict", str(files[kind]), "picture.png", "--out", "found"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "INFO" not in done.stderr  # what the runtime prints is hidden
    found = Predictor.from_pretrained(files[kind])(photo(128, 192)).labels
    assert np.array_equal(read_label(tmp_path / "found/labels/picture.png"), found)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("litert", {}, r"--size: any, with the format litert\s+expected: one size"),
        ("ncnn", {"sizes": [(64, 96), (96, 64)]}, "2 sizes, with the format ncnn"),
        ("ncnn", {"sizes": [SIZE], "gives": "labels"}, "--output labels: the format ncnn"),
        ("ncnn", {"sizes": [SIZE], "takes": "pixels"}, "--input pixels: the format ncnn"),
        ("ncnn", {"sizes": [SIZE], "batch": 2}, "--batch-size 2: the format ncnn"),
    ],
)
def test_settings_that_cannot_be(
    kind: str, settings: dict[str, object], message: str, network: CGRSeg, tmp_path: Path
) -> None:
    out = tmp_path / f"small{load_format(kind).suffix}"
    with pytest.raises(ConfigError, match=message):
        export(network, kind, out, **settings)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_core_ml_is_written_and_not_compared(checkpoint: Path, tmp_path: Path) -> None:
    """coremltools reads back what it wrote; only Apple's systems run it."""
    need_packages("coreml")
    told: list[str] = []
    result = export(
        checkpoint, "coreml", tmp_path / "small.mlpackage", sizes=[SIZE], tell=told.append
    )
    assert not result.checks and "not compared" in told[-1] and result.megabytes > 10
    about = describe(result.path)
    assert (about.kind, about.sizes, about.batch, about.compared) == ("coreml", [SIZE], 1, False)
    spec = pytest.importorskip("coremltools").utils.load_spec(str(result.path)).description
    (source,), (target,) = spec.input, spec.output
    assert (source.name, target.name) == ("image", "logits")
    assert list(source.type.multiArrayType.shape) == [1, 3, *SIZE]
    assert list(target.type.multiArrayType.shape) == [1, about.num_classes, 8, 12]
    parts = [path for path in result.path.rglob("*") if path.is_file()]
    assert not any(str(Path(__file__).parents[2]).encode() in path.read_bytes() for path in parts)
    with pytest.raises(EnvironmentProblem, match="only Apple's systems run"):
        open_exported(result.path)
    with pytest.raises(ConfigError, match=r"small\.mlpackage: a folder of that name"):
        export(checkpoint, "coreml", result.path, sizes=[SIZE], overwrite=True)
    next(path for path in parts if path.suffix == ".mlmodel").write_bytes(b"anything")
    with pytest.raises(WeightsError, match="cannot be read"):
        describe(result.path)
