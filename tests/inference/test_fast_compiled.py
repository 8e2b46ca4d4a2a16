"""The compiled backend: real compilations are marked slow, the ways around them are not."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cgrseg.bench.random_weights import draw_weights
from cgrseg.errors import ConfigError, EnvironmentProblem
from cgrseg.inference import Predictor, compiled_backend, compiled_cache
from cgrseg.inference.backends import Backend
from cgrseg.inference.compiled_backend import CompiledBackend
from cgrseg.inference.compiled_cache import default_folder, missing_compiler, prune, target_path
from cgrseg.models import CGRSeg, create_model
from cgrseg.models.digest import weights_digest
from tests.golden_weights import golden_input, set_golden_weights


@pytest.fixture(scope="module")
def model() -> CGRSeg:
    built = create_model("cgrseg_t", num_classes=5).eval()
    set_golden_weights(built)
    return built


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")


@pytest.fixture(scope="module")
def adaptive() -> CGRSeg:
    """A network with the SSA head."""
    return draw_weights(create_model("cgrseg_t", num_classes=5, head="ssa", context_blocks=1))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def picture(images: int = 1, height: int = 64, width: int = 64) -> torch.Tensor:
    return golden_input(f"input_{images}x{height}x{width}", (images, 3, height, width))


@pytest.mark.slow
@pytest.mark.skipif(
    bool(missing_compiler(torch.device("cpu"))), reason="there is no C++ compiler here"
)
def test_ssa_head_compiled(adaptive: CGRSeg, tmp_path: Path) -> None:
    x = picture(height=64, width=96)
    backend = CompiledBackend(adaptive, folder=tmp_path)
    assert backend.prepare(64, 96).how == "compiled"
    with torch.inference_mode():
        found, expected = backend.logits(x), adaptive(x)
    assert relative(found, expected) < 1e-5
    assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.slow
@pytest.mark.skipif(
    bool(missing_compiler(torch.device("cpu"))), reason="there is no C++ compiler here"
)
def test_compiles_once_and_is_found_again(
    model: CGRSeg,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    x, several = picture(), picture(3)
    with torch.inference_mode():
        expected, of_several = model(x), model(several)
    built = tmp_path_factory.mktemp("inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(built))
    first = CompiledBackend(model, folder=tmp_path)
    assert first.prepare(64, 64).how == "compiled"
    assert first.prepare(64, 64).how == "ready"
    assert relative(first.logits(x), expected) < 1e-5
    assert relative(first.logits(several), of_several) < 1e-5  # one after another
    kept = list(tmp_path.iterdir())
    assert len(kept) == 1 and kept[0].suffix == ".pt2"
    assert not any(path.is_file() for path in built.rglob("*"))  # nothing left of the build

    again = CompiledBackend(model, folder=tmp_path)
    assert relative(again.logits(x), expected) < 1e-5  # used from the first image
    assert again.prepare(64, 64).how == "ready"

    # Several images at the same time, without Python's lock.
    assert isinstance(again._runners[1, 64, 64], compiled_cache._ParallelNetwork)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: again.logits(x), range(16)):
            assert relative(found, expected) < 1e-5

    other = create_model("cgrseg_t", num_classes=5).eval()
    set_golden_weights(other)
    with torch.no_grad():
        other.decode_head.conv_seg.bias.add_(1.0)
    stranger = CompiledBackend(other, folder=tmp_path, compile_after=0)
    with torch.inference_mode():
        assert relative(stranger.logits(x), other(x)) < 1e-5  # not the file of other weights

    # A damaged file is told, removed and replaced (here it cannot be: no compiler).
    kept[0].write_bytes(b"not a package")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setenv("CXX", "no-such-compiler")
        damaged = CompiledBackend(model, folder=tmp_path).prepare(64, 64)
    assert damaged.how == "uncompiled"
    assert "not a usable compiled network" in caplog.text
    assert not kept[0].exists()


def test_is_a_backend(model: CGRSeg, tmp_path: Path) -> None:
    backend = CompiledBackend(model, folder=tmp_path)
    assert isinstance(backend, Backend)
    assert backend.num_classes == 5
    assert backend.device == torch.device("cpu")


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_it_says_so_once_and_predicts_the_same(
    model: CGRSeg, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = CompiledBackend(model, folder=tmp_path)
    with caplog.at_level(logging.WARNING, "cgrseg.inference"):
        done = backend.prepare(64, 64)
        backend.prepare(64, 64)
        found = backend.logits(picture(2))
    assert done.how == "uncompiled"
    assert "CXX names 'no-such-compiler'" in done.reason and "install g++" in done.reason
    assert caplog.text.count("runs uncompiled") == 1
    with torch.inference_mode():
        assert relative(found, model(picture(2))) < 1e-5
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_compiler")
def test_compiles_a_size_when_it_has_come_often_enough(
    model: CGRSeg, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = CompiledBackend(model, folder=tmp_path, compile_after=3)
    attempts = []
    with caplog.at_level(logging.WARNING, "cgrseg.inference"):
        for width in (64, 32, 64, 64, 64):
            backend.logits(picture(width=width))
            attempts.append(caplog.text.count("runs uncompiled"))
    assert attempts == [0, 0, 0, 1, 1]
    assert "64x64" in caplog.text and "64x32" not in caplog.text


def test_many_sizes_are_not_all_compiled(
    model: CGRSeg, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which sizes are compiled, with a compiler that only notes what it is asked for."""
    asked: list[tuple[int, ...]] = []

    def note(network: torch.nn.Module, example: torch.Tensor, target: Path) -> Path:
        asked.append(tuple(example.shape[2:]))
        return keep(target, b"")

    monkeypatch.setattr(compiled_backend, "missing_compiler", lambda device: "")
    monkeypatch.setattr(compiled_cache, "compile_to_file", note)
    backend = CompiledBackend(model, folder=tmp_path, compile_after=2, most_sizes=2)
    monkeypatch.setattr(compiled_cache, "load", lambda path: backend._network)
    with caplog.at_level(logging.WARNING, "cgrseg.inference"), torch.inference_mode():
        for width in (32, 64, 96, 32, 96, 64, 64, 64, 128, 128):
            found = backend.logits(picture(width=width))
            assert relative(found, model(picture(width=width))) < 1e-5
    assert asked == [(64, 32), (64, 96)]  # the first two that came twice
    assert caplog.text.count("more than 2 sizes") == 1 and "64x64 and others" in caplog.text
    # What is asked for by name is compiled all the same, in the place of the oldest.
    assert backend.prepare(64, 64).how == "compiled"
    assert backend.prepare(64, 64).how == "ready"
    assert backend.prepare(64, 32).how == "loaded"
    assert backend.seconds_preparing > 0

    again = CompiledBackend(model, folder=tmp_path, most_sizes=2)
    again.logits(picture(width=96))  # found on disk with the first image
    assert again.prepare(64, 96).how == "ready" and len(asked) == 3


def test_folder_of_compiled_networks_stays_within_bounds(tmp_path: Path) -> None:
    now = time.time()
    ages = {"old": 100, "big": 30, "used": 20, "new": 0}  # days
    for name, days in ages.items():
        path = tmp_path / f"cgrseg_t-fp32-{name}.pt2"
        path.write_bytes(bytes(1000))
        os.utime(path, (now - days * 86400, now - days * 86400))
    stranger = tmp_path / "notes.pt2"
    stranger.write_bytes(bytes(5000))
    os.utime(stranger, (0, 0))

    def left() -> set[str]:
        return {path.stem.rpartition("-")[2] for path in tmp_path.glob("cgrseg_*")}

    assert [path.stem for path in prune(tmp_path)] == ["cgrseg_t-fp32-old"]
    assert left() == {"big", "used", "new"}
    prune(tmp_path, max_bytes=2500)
    assert left() == {"used", "new"}
    prune(tmp_path, keep=tmp_path / "cgrseg_t-fp32-used.pt2", max_bytes=1)
    assert left() == {"used"} and stranger.exists()
    assert prune(tmp_path / "missing") == []


def test_slow_precisions_are_told_without_onednn_too(
    model: CGRSeg, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING, "cgrseg.inference"):
        CompiledBackend(model, precision="fp16", folder=tmp_path)
    assert "this CPU has no fp16 instructions" in caplog.text


def keep(target: Path, content: bytes) -> Path:
    """A file as a compilation leaves it, whatever it holds."""
    compiled_cache.prepare_folder(target.parent)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    kept = target.with_name(f"{target.stem}-{digest}.pt2")
    kept.write_bytes(content)
    kept.chmod(0o600)
    return kept


@pytest.mark.parametrize("change", ["flip", "cut", "nothing"])
def test_files_that_cannot_be_used_are_removed(tmp_path: Path, change: str) -> None:
    target = tmp_path / "cgrseg_t-fp32-1.pt2"
    kept = keep(target, b"not a package" * 100)
    assert compiled_cache.find(target) == kept
    content = bytearray(kept.read_bytes())
    if change == "flip":
        content[100] ^= 1
    kept.write_bytes(content[:-4] if change == "cut" else content)
    reason = "" if change == "nothing" else "its content has changed"
    with pytest.raises(RuntimeError, match=f"not a usable compiled network .{reason}"):
        compiled_cache.load(kept)
    assert compiled_cache.find(target) is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners of files here")
def test_machine_code_that_others_may_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "cache" / "cgrseg_t-fp32-1.pt2"
    kept = keep(target, b"code")
    assert target.parent.stat().st_mode & 0o777 == 0o700
    kept.chmod(0o622)
    with pytest.raises(EnvironmentProblem, match="others may write to it"):
        compiled_cache.load(kept)
    assert kept.exists()
    kept.chmod(0o600)
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    if kept.stat().st_uid != 0:
        with pytest.raises(EnvironmentProblem, match="belongs to another user"):
            compiled_cache.load(kept)
        with pytest.raises(EnvironmentProblem, match="belongs to another user"):
            compiled_cache.prepare_folder(target.parent)


_COMPILES = """
import sys, time
from pathlib import Path
from cgrseg.inference import compiled_cache
target, begun = Path(sys.argv[1]), Path(sys.argv[2])
with compiled_cache.compile_lock(target, lambda: print("waiting", flush=True)):
    if compiled_cache.find(target) is None:
        (target.parent / f".compiling-{target.stem}-x").mkdir()
        begun.touch()
        while not begun.with_name("go on").exists():
            time.sleep(0.01)
        target.with_name(target.stem + "-" + "0" * 32 + ".pt2").touch()
        print("compiled")
    else:
        print("found")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no waiting on Windows")
def test_one_compiles_and_the_other_waits(tmp_path: Path) -> None:
    target, begun = tmp_path / "cache" / "cgrseg_t-fp32-1.pt2", tmp_path / "begun"
    command = [sys.executable, "-c", _COMPILES, str(target), str(begun)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = start()
    while not begun.exists():
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    begun.unlink()
    (target.parent / ".compiling-cgrseg_t-fp32-of a dead one-y").mkdir()
    first = start()
    while not begun.exists():  # the dead process's lock and folder are no hindrance
        time.sleep(0.01)
    assert [path.name for path in target.parent.glob(".compiling-*")] == [
        ".compiling-cgrseg_t-fp32-1-x"
    ]
    second = start()
    assert second.stdout is not None
    assert second.stdout.readline() == "waiting\n"
    (tmp_path / "go on").touch()
    assert first.communicate()[0] == "compiled\n"
    assert second.communicate()[0] == "found\n"
    left = [path.name for path in target.parent.iterdir()]
    assert left == [f"cgrseg_t-fp32-1-{'0' * 32}.pt2"]


def test_a_user_without_a_home_has_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CGRSEG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert default_folder().parent.name.startswith("cgrseg-")


def test_a_batch_on_a_gpu_is_not_taken_apart(
    model: CGRSeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = CompiledBackend(model, folder=tmp_path)
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(backend, "_runner", asked.append)  # which gives None
    backend.logits(picture(2))
    assert asked == [(2, 64, 64), (1, 64, 64)]
    monkeypatch.setattr(backend, "device", torch.device("meta"))
    monkeypatch.setattr(backend, "_network", torch.nn.Identity())
    backend.logits(picture(2))
    assert asked[2:] == [(2, 64, 64)]


@pytest.mark.skipif(
    bool(missing_compiler(torch.device("cpu"))), reason="there is no C++ compiler here"
)
def test_a_folder_that_cannot_be_written_is_told(model: CGRSeg, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    done = CompiledBackend(model, folder=blocked / "compiled").prepare(64, 64)
    assert done.how == "uncompiled"
    assert "what to do" in done.reason and str(blocked) in done.reason
    assert blocked.read_text() == "in the way"


def test_unknown_precision_is_explained(model: CGRSeg) -> None:
    with pytest.raises(ConfigError, match="precision"):
        CompiledBackend(model, precision="int8")  # type: ignore[arg-type]


class TestNamesOfCachedFiles:
    def path(self, weights: str = "w", precision: str = "fp32", width: int = 64) -> Path:
        return target_path(Path("f"), weights, "cgrseg_t", precision, (1, 3, 64, width))

    def test_each_depends_on_what_it_was_compiled_from(self) -> None:
        paths = {self.path(), self.path("v"), self.path(precision="bf16"), self.path(width=96)}
        assert len(paths) == 4
        assert self.path() == self.path()

    def test_depends_on_the_number_of_threads(self) -> None:
        threads = torch.get_num_threads()
        first = self.path()
        try:
            torch.set_num_threads(threads + 1)
            assert self.path() != first
        finally:
            torch.set_num_threads(threads)

    def test_weights_differ_by_a_single_number(self, model: CGRSeg) -> None:
        before = weights_digest(model)
        bias = model.decode_head.conv_seg.bias
        assert bias is not None
        with torch.no_grad():
            bias[0] += 1e-3
            changed = weights_digest(model)
            bias[0] -= 1e-3
        assert changed != before

    def test_folder_can_be_chosen(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CGRSEG_CACHE", str(tmp_path))
        assert default_folder() == tmp_path / "compiled"
        monkeypatch.delenv("CGRSEG_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_folder() == tmp_path / "cgrseg" / "compiled"


_FAULTS = """
import resource, sys
from cgrseg.devices import keep_freed_memory
import torch
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.zeros(20, 1 << 18) for _ in range(4)]  # 20 MiB each
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_kept() -> None:
    def faults(mode: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _FAULTS, mode], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    # 10 rounds of 80 MiB are 200,000 pages of 4 kB when all of them are fetched anew.
    left = faults("leave")
    if left == 0:
        pytest.skip("this system counts no page faults")
    assert faults("keep") < 0.05 * left


def test_gelu_without_exp_is_exact_up_to_rounding() -> None:
    near = torch.linspace(-8, 8, 400_001)
    far = torch.logspace(-44, 37, 100_001)
    x = torch.cat([near, far, -far, torch.zeros(1)])
    exact = torch.nn.functional.gelu(x.double())
    error = (compiled_cache.rational_gelu(x).double() - exact).abs()
    assert (error / x.double().abs().clamp(min=1.0)).max() < 2.5e-7
    assert compiled_cache.rational_gelu(torch.tensor([torch.nan])).isnan().all()


@pytest.mark.parametrize(
    ("processor", "dtype", "replaced"),
    [
        ("AVX2", torch.float32, True),
        ("AVX2", torch.bfloat16, False),
        ("AVX512", torch.float32, False),
    ],
)
def test_gelu_is_replaced_where_that_is_faster(
    processor: str, dtype: torch.dtype, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.GELU()).to(dtype).eval()
    x = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        traced = compiled_cache._traced(network, x)
        assert relative(traced.module()(x), network(x)) < 1e-6
    targets = [node.target for node in traced.graph.nodes]
    assert (torch.ops.aten.gelu.default not in targets) is replaced


@pytest.mark.usefixtures("without_compiler")
def test_predictor_labels_alike_with_and_without(
    model: CGRSeg, tmp_path: Path, golden_dir: Path
) -> None:
    model.save_pretrained(tmp_path)
    photo = golden_dir / "photo.png"
    plain = Predictor.from_pretrained(tmp_path, "cpu")(photo)
    fast = Predictor.from_pretrained(tmp_path, "cpu", compile=True)
    assert isinstance(fast.backend, CompiledBackend)
    assert (fast(photo).labels == plain.labels).mean() > 0.9999
