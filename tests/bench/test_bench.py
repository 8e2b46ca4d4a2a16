"""Measuring: arithmetic by hand, and a small run of everything that is timed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from cgrseg.bench.machine import Peaks, describe_machine, measure_peaks
from cgrseg.bench.profile import summarize
from cgrseg.bench.random_weights import draw_weights
from cgrseg.bench.run import run_bench
from cgrseg.bench.subject_process import (
    Memory,
    SubjectProcess,
    job_of,
    measure_memory,
    read_job,
    reason_in,
    serve,
    write_network,
)
from cgrseg.bench.subjects import (
    FACTORIES,
    Setting,
    Subject,
    make_subject,
    predict,
    subject_of,
)
from cgrseg.bench.tables import as_markdown, profile_markdown, table
from cgrseg.bench.timing import Spread, Work, ratios, stopwatch, take_turns, work_of
from cgrseg.cli.bench import bench
from cgrseg.cli.main import app
from cgrseg.deploy.verify import as_input, sample_images
from cgrseg.errors import ConfigError, EnvironmentProblem
from cgrseg.inference.exported_backend import ExportedBackend
from cgrseg.models import CGRSeg, create_model
from cgrseg.models.digest import weights_digest
from cgrseg.precision import bf16_in_hardware
from tests.inference.fixtures import description

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> CGRSeg:
    return draw_weights(create_model("cgrseg_t", num_classes=6))


def test_drawn_weights_are_the_same_every_time(model: CGRSeg) -> None:
    again = draw_weights(create_model("cgrseg_t", num_classes=6))
    assert weights_digest(again) == weights_digest(model)
    other = draw_weights(create_model("cgrseg_t", num_classes=6), seed=1)
    assert weights_digest(other) != weights_digest(model)


def test_spread_by_hand() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0, 1.0, 5)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 1)


def test_ratios_are_taken_round_by_round() -> None:
    # Both ways slow down threefold in the second round: the ratio does not see it.
    assert ratios([4.0, 12.0], [2.0, 6.0]) == Spread(2.0, 2.0, 2.0, 2.0, 2)


def test_all_take_turns_and_the_second_time_counts() -> None:
    calls: list[str] = []
    now = [0.0]

    def work(name: str, seconds: float) -> None:
        calls.append(name)
        # Dearer right after another way, as where its threads still spin.
        now[0] += seconds if calls[-2:] == [name, name] else 100.0

    ways = {
        "a": stopwatch(lambda: work("a", 2.0), CPU, lambda: now[0]),
        "b": stopwatch(lambda: work("b", 0.5), CPU, lambda: now[0]),
    }
    taken = take_turns(ways, rounds=6)
    assert taken == {"a": [2.0] * 6, "b": [0.5] * 6}
    rounds = ["".join(calls[i : i + 4]) for i in range(0, 24, 4)]
    assert set(rounds) == {"aabb", "bbaa"}  # in changing order


def test_plain_path_computes_what_the_network_does(model: CGRSeg) -> None:
    size = (64, 96)
    plain = make_subject("plain", model, Setting(size, CPU))
    x = as_input(sample_images(2, size))
    with torch.inference_mode():
        logits = plain.logits(x)
        # At other sizes than the table's 512 the network itself resizes its biases too.
        torch.testing.assert_close(logits, model(x), rtol=1e-5, atol=1e-5)
        expected = F.interpolate(logits.double(), size=size, mode="bilinear").argmax(dim=1)
    labels = plain.decode(logits)
    assert labels.dtype == np.uint8
    assert (labels == expected.numpy()).mean() > 0.9999


def test_plain_path_leaves_the_network_alone(model: CGRSeg) -> None:
    modules = [type(getattr(m, "bias", None)) for m in model.modules()]
    make_subject("plain", model, Setting((64, 64), CPU))
    assert [type(getattr(m, "bias", None)) for m in model.modules()] == modules


@pytest.mark.parametrize("name", ["eager", "folded-fp32", "folded-bf16"])
def test_subjects_agree_with_the_plain_path(name: str, model: CGRSeg) -> None:
    setting = Setting((96, 64), CPU)
    photos = sample_images(2, setting.size)
    expected = predict(make_subject("plain", model, setting), photos, CPU)
    found = predict(make_subject(name, model, setting), photos, CPU)
    assert found.shape == (2, 96, 64)
    assert (found == expected).mean() > (0.97 if "bf16" in name else 0.9999)


def test_more_than_256_classes_keep_their_ids() -> None:
    setting = Setting((8, 8), CPU)
    logits = torch.zeros(1, 300, 1, 1)
    logits[0, 290] = 1.0
    model = create_model("cgrseg_t", num_classes=300)
    for name in ("plain", "eager"):
        assert (make_subject(name, model, setting).decode(logits) == 290).all()


def test_unknown_subject_is_explained(model: CGRSeg) -> None:
    with pytest.raises(ConfigError, match="compiled-bf16") as caught:
        make_subject("magic", model, Setting((64, 64), CPU))
    assert "'magic'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "package", "remedy"),
    [
        ("segformer-b0", "transformers", r'pip install "cgrseg\[hf\]"'),
        ("yolo26n-sem@64", "ultralytics", "pip install ultralytics"),
    ],
)
def test_peer_that_is_not_installed_is_explained(
    name: str, package: str, remedy: str, model: CGRSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentProblem, match=remedy):
        make_subject(name, model, Setting((64, 64), CPU))


def test_side_of_a_peer_is_a_multiple_of_32(model: CGRSeg) -> None:
    for side in ("0", "100", "large"):
        with pytest.raises(ConfigError, match="a multiple of 32 after the @"):
            make_subject(f"yolo26s-sem@{side}", model, Setting((64, 64), CPU))


@pytest.mark.parametrize("name", ["yolo26n-sem@96", "yolo26n-sem-openvino@96"])
def test_peer_at_another_size_gives_labels_of_the_image(name: str, model: CGRSeg) -> None:
    pytest.importorskip("ultralytics")
    subject = make_subject(name, model, Setting((64, 128), CPU))
    batch = subject.prepared(sample_images(1, (64, 128)), CPU)
    with torch.inference_mode():
        assert subject.logits(batch).shape == (1, 6, 12, 12)
        labels = subject.label(batch)
    assert labels.shape == (1, 64, 128) and labels.dtype == np.uint8 and labels.max() < 6


def test_a_subject_with_its_own_size_sees_resized_images() -> None:
    images = sample_images(2, (64, 96))
    small = Subject(lambda batch: batch, lambda logits: images[..., 0], size=(32, 64))
    expected = np.stack([cv2.resize(image, (64, 32)) for image in images])
    assert torch.equal(small.prepared(images, CPU), as_input(expected))
    same = Subject(lambda batch: batch, lambda logits: images[..., 0])
    assert torch.equal(same.prepared(images, CPU), as_input(images))


def test_a_file_that_gives_label_maps_is_a_subject(model: CGRSeg) -> None:
    def run(pixels: Any) -> Any:
        return np.full(pixels.shape[:3], 5)

    about = description(gives="labels", takes="pixels", num_classes=6)
    subject = subject_of(ExportedBackend(about, run, "file"), Setting((64, 96), CPU))
    labels = predict(subject, sample_images(2, (64, 96)), CPU)
    assert labels.shape == (2, 64, 96) and labels.dtype == np.uint8 and (labels == 5).all()


def test_peer_answers_at_the_size_of_the_image(model: CGRSeg) -> None:
    pytest.importorskip("transformers")
    setting = Setting((64, 96), CPU)
    labels = predict(make_subject("segformer-b0", model, setting), sample_images(2, (64, 96)), CPU)
    assert labels.shape == (2, 64, 96)
    assert labels.max() < 6


@pytest.fixture
def own_subject(monkeypatch: pytest.MonkeyPatch) -> str:
    def logits(batch: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(batch), 6, batch.shape[2] // 8, batch.shape[3] // 8)

    def decode(logits: torch.Tensor) -> Any:
        return np.zeros((len(logits), logits.shape[2] * 8, logits.shape[3] * 8), np.uint8)

    monkeypatch.setitem(FACTORIES, "constant", lambda model, setting: Subject(logits, decode))
    return "constant"


def test_a_run_holds_every_measurement(model: CGRSeg, own_subject: str) -> None:
    told: list[str] = []
    result = run_bench(
        [model],
        ["folded-fp32", own_subject],
        size=(64, 64),
        batches=(1, 2),
        works=("network", "labels", "image"),
        rounds=3,
        memory=False,
        tell=told.append,
    )
    assert len(result.rows) == 3 * 2 * 3
    keys = {(row.work, row.batch, row.subject) for row in result.rows}
    assert ("image", 2, "constant") in keys and ("network", 1, "plain") in keys
    for row in result.rows:
        assert row.seconds.rounds == 3
        assert row.images_per_second == pytest.approx(row.batch / row.seconds.median)
        if row.subject == "plain":
            assert row.ratio == Spread(1.0, 1.0, 1.0, 1.0, 3)
    agreement = {one.subject: one for one in result.agreements}
    assert agreement["plain"].equal_labels == 1.0 and agreement["plain"].logits_error == 0.0
    assert agreement["folded-fp32"].logits_error < 1e-5
    assert agreement["constant"].logits_error > 0.1
    assert 0.0 <= result.boundary_share["cgrseg_t"] <= 1.0
    assert any("image to label map, 2 at once" in line for line in told)

    stored = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert stored["rows"][0]["images_per_second"] > 0
    assert {row["work"] for row in stored["rows"]} == {"network", "labels", "photo"}
    assert stored["machine"]["versions"]["torch"] == torch.__version__
    text = as_markdown(result)
    assert "input tensor to label map, 2 at once" in text and "100.0000 %" in text


def test_memory_of_the_fused_decoding_is_a_part_of_the_plain_path_s() -> None:
    """150 maps of 256x256 in float32 are 39 MB, of which the plain path holds several."""
    network = draw_weights(create_model("cgrseg_t", num_classes=150))
    found = {
        name: measure_memory(name, network, Setting((256, 256), CPU, warm_up=False))
        for name in ("plain", "eager")
    }
    assert found["plain"].grown > 70 << 20
    assert found["eager"].grown < 0.8 * found["plain"].grown
    assert Memory(loaded=10, peak=7).grown == 0


def test_memory_of_a_failing_subject_is_explained(model: CGRSeg) -> None:
    with pytest.raises(EnvironmentProblem, match="--subjects: 'magic'; expected: plain"):
        measure_memory("magic", model, Setting((64, 64), CPU))


def test_ways_in_processes_of_their_own(model: CGRSeg) -> None:
    """They are timed by their own clocks, while their results are compared here."""
    result = run_bench(
        [model],
        ["folded-fp32"],
        size=(64, 64),
        batches=(2,),
        works=("network", "photo"),  # the older name of "image"
        rounds=3,
        clock="processor",
        apart=True,
        memory=False,
    )
    rows = {(row.work, row.subject): row for row in result.rows}
    assert set(rows) == {(w, s) for w in ("network", "image") for s in ("plain", "folded-fp32")}
    for row in rows.values():
        assert row.batch == 2 and row.seconds.rounds == 3
        assert row.seconds.best > 0.001  # of the processor: this one only waited
    agreement = {one.subject: one for one in result.agreements}
    assert agreement["folded-fp32"].logits_error < 1e-5
    assert "process of its own" in as_markdown(result)


def test_process_does_the_work_that_it_is_asked_for(
    model: CGRSeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of the input is done by the subject of the job, as often as it comes."""
    done: list[Any] = []

    def logits(batch: torch.Tensor) -> torch.Tensor:
        done.append(tuple(batch.shape))
        return torch.zeros(len(batch), 6, 8, 12)

    def decode(logits: torch.Tensor) -> Any:
        done.append("decoded")
        return np.zeros((len(logits), 64, 96), np.uint8)

    def make(given: CGRSeg, setting: Setting) -> Subject:
        done.append(weights_digest(given) == weights_digest(model))
        done.append(setting)
        return Subject(logits, decode)

    monkeypatch.setitem(FACTORIES, "recorder", make)
    weights = tmp_path / "model.pt"
    write_network(model, weights)
    setting = Setting((64, 96), CPU, tmp_path, (1, 2))
    asked = [["network", 1, "wall"], ["labels", 2, "wall"], ["network", 1, "processor"]]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(a) + "\n" for a in asked)))
    answers = io.StringIO()
    serve(job_of("recorder", weights, setting), answers)
    both = [(2, 3, 64, 96), "decoded"]
    # Everything is done twice, and the second time counts.
    assert done == [True, setting, *[(1, 3, 64, 96)] * 2, *both * 2, *[(1, 3, 64, 96)] * 2]
    ready, *seconds = answers.getvalue().split()
    assert ready == '"ready"' and [float(one) >= 0 for one in seconds] == [True] * 3


def test_network_with_a_geometric_bias_is_handed_over(tmp_path: Path) -> None:
    geometric = create_model("cgrseg_t", 3, attention_bias="geometric").eval()
    weights = tmp_path / "model.pt"
    write_network(geometric, weights)
    subject, _ = read_job(job_of("eager", weights, Setting((64, 96), CPU)))
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(torch.as_tensor(subject.logits(image)), geometric(image))


def test_way_that_fails_in_its_process_is_explained(model: CGRSeg, tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    write_network(model, weights)
    file = tmp_path / "missing.onnx"
    with (
        SubjectProcess(str(file), weights, Setting((64, 64), CPU)) as other,
        pytest.raises(EnvironmentProblem, match=r"measuring .*missing\.onnx: .*No such file"),
    ):
        other.wait()
    assert other._process.returncode is not None


def test_process_that_was_killed_is_explained(model: CGRSeg, tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    write_network(model, weights)
    with SubjectProcess("plain", weights, Setting((64, 64), CPU)) as other:
        other.wait()
        other._process.kill()
        other._process.wait()
        with pytest.raises(EnvironmentProblem, match="measuring plain: its process ended with"):
            other.seconds("network", 1, "wall")


def test_networks_are_gone_before_any_is_timed_apart(
    model: CGRSeg, own_subject: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cgrseg.bench import run

    kept: list[weakref.ref[Any]] = []
    alive: list[int] = []
    make = FACTORIES[own_subject]

    def watched(given: CGRSeg, setting: Setting) -> Any:
        subject = make(given, setting)
        kept.append(weakref.ref(subject))
        return subject

    class Other:
        def seconds(self, *asked: object) -> float:
            return 1.0

    def start(names: list[str], *_rest: object) -> dict[str, Other]:
        alive.append(sum(ref() is not None for ref in kept))
        return {name: Other() for name in names}

    monkeypatch.setitem(FACTORIES, own_subject, watched)
    monkeypatch.setattr(run, "_in_processes", start)
    result = run_bench([model], [own_subject], size=(64, 64), apart=True, memory=False)
    assert len(kept) == 1 and alive == [0]
    assert {row.seconds.median for row in result.rows} == {1.0}


@pytest.mark.parametrize("work", ["network", "labels", "image"])
def test_exported_files_are_timed_as_they_are_used(work: Work) -> None:
    seen: list[int] = []

    def run(array: Any) -> Any:
        seen.append(torch.get_num_threads())
        return np.zeros((len(array), 7, array.shape[2] // 8, array.shape[3] // 8), np.float32)

    backend = ExportedBackend(description(sizes=None), run, "x")
    photos = sample_images(1, (64, 64))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        work_of(subject_of(backend, Setting((64, 64), CPU)), work, photos, CPU)()
        assert seen == [2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_process_ends_with_its_block_and_ignores_what_libraries_print(
    model: CGRSeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_VERBOSE", "1")  # printed past Python, to the standard output
    weights = tmp_path / "model.pt"
    write_network(model, weights)
    with SubjectProcess("plain", weights, Setting((64, 64), CPU)) as other:
        other.wait()
        assert other.seconds("network", 1, "wall") > 0
        assert other._process.poll() is None
    assert other._process.returncode is not None
    assert "onednn_verbose" in other._messages.read_text()


def test_reason_of_a_process_that_ended() -> None:
    said = "warning\ncgrseg cannot go on: a: b\n  expected: c\n(end of the reason)\nignored\n"
    assert reason_in(said) == "a: b; expected: c"
    assert reason_in("Traceback\n  line\nMemoryError\n") == "MemoryError"
    assert reason_in("") == "no message"


def test_threads_are_those_of_opencv_too(tmp_path: Path) -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        with pytest.raises(ConfigError, match="--size"):  # which is looked at afterwards
            bench(threads=3, size=(33, 64))
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (3, 3)
        with pytest.raises(FileNotFoundError):
            job = {"threads": 2, "opencv_threads": 3, "weights": str(tmp_path / "missing.pt")}
            read_job(json.dumps(job))
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 3)
        told = json.loads(job_of("plain", tmp_path / "model.pt", Setting((64, 64), CPU)))
        assert (told["threads"], told["opencv_threads"]) == (2, 3)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def test_machine_names_itself() -> None:
    machine = describe_machine(CPU)
    assert machine.threads == torch.get_num_threads()
    assert machine.versions["torch"] == torch.__version__
    assert machine.cores >= 1 and machine.memory_gib > 0.1


def test_peaks_are_plausible() -> None:
    peaks = measure_peaks(CPU, seconds=0.05)
    assert all(1e8 < peak < 1e15 for peak in peaks.flops.values())
    # An emulated precision has no peak, and would take minutes.
    assert list(peaks.flops) == ["fp32", "bf16"][: 1 + bf16_in_hardware(CPU)[0]]
    assert 1e8 < peaks.bandwidth < 1e13


def event(name: str, microseconds: float, *shapes: tuple[int, ...], **more: Any) -> Any:
    return SimpleNamespace(
        name=name, self_cpu_time_total=microseconds, input_shapes=[list(s) for s in shapes], **more
    )


def test_costs_by_hand() -> None:
    passes = [
        [
            event("mkldnn::_convolution_pointwise", t, (1, 8, 4, 6), (16, 8, 1, 1), (16,)),
            event("mkldnn::_convolution_pointwise", t, (1, 8, 4, 6), (16, 8, 1, 1), (16,)),
            event(
                "mkldnn::_convolution_pointwise",
                5.0,
                (1, 8, 4, 6),
                (8, 1, 3, 3),
                concrete_inputs=["", "", "", [1, 1], [2, 2], [1, 1], 8],
            ),
            event("aten::bmm", 4.0, (2, 3, 5), (2, 5, 7), (2, 3, 7)),
            event("graph_0_cpp_fused_gelu_3", 2.0),
            event("## Call CompiledFxGraph x", 1.0),
        ]
        for t in (20.0, 10.0, 30.0)
    ]
    peaks = Peaks({"fp32": 1e9, "bf16": 2e9}, 1e9)
    found = summarize(passes, "fp32", peaks)
    costs = {cost.name: cost for cost in found.costs}
    assert found.costs[0].name == "convolution 1x1, 8 to 16, 4x6"
    first = found.costs[0]
    assert first.calls == 2
    assert first.seconds == pytest.approx(40e-6)
    assert first.operations == 2 * (2 * 24 * 16 * 8)
    assert first.moved == 2 * 4 * (8 * 24 + 16 * 8 + 16 * 24)
    assert first.floor == pytest.approx(2 * 6144e-9)
    assert costs["depthwise 3x3, 8 to 8, 4x6 stride 2"].operations == 2 * (2 * 3) * 8 * 9
    assert costs["product 2x3x5 by 2x5x7"].operations == 2 * 2 * 3 * 5 * 7
    assert costs["fused: gelu_3"].floor is None
    assert costs["between kernels"].seconds == pytest.approx(1e-6)
    assert found.seconds == pytest.approx(52e-6)
    text = profile_markdown(found, "Title")
    assert "| convolution 1x1, 8 to 16, 4x6 | 2 | 0.04 | 77 % |" in text


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("mkldnn::_convolution_pointwise_", [(1, 4, 2, 3), (1, 8, 2, 3), (4, 8, 1, 1)]),
        ("mkldnn::_convolution_pointwise", [(1, 8, 2, 3), (1, 4, 2, 3), (4, 8, 1, 1)]),
    ],
)
def test_cost_of_a_convolution_with_a_sum(name: str, shapes: list[tuple[int, ...]]) -> None:
    found = summarize([[event(name, 1.0, *shapes)]], "bf16", Peaks({"bf16": 1e9}, 1e9)).costs[0]
    assert found.name == "convolution 1x1, 8 to 4, 2x3 + sum"
    assert found.operations == 2 * 6 * 4 * 8
    assert found.moved == 2 * (8 * 6 + 4 * 8 + 2 * 4 * 6)


def test_table_by_hand() -> None:
    assert table(("name", "n"), [("a", "1"), ("b", "")]) == [
        "| name | n |",
        "|---|---:|",
        "| a | 1 |",
        "| b |  |",
    ]


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cgrseg", "bench", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--size", "100x64"), "round up: --size 128x64"),
        (("--works", "sleep"), "network, labels, image"),
        (("--clock", "sun"), "wall, processor"),
        (("--subjects", "magic"), "compiled-fp32"),
        (("--device", "cuda:77"), "device cuda:77"),
    ],
)
def test_command_explains_what_it_cannot_do(arguments: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments, "--no-peaks", "--no-memory"])
    assert result.exit_code == 2
    assert told in " ".join(result.output.split()) and "Traceback" not in result.output


def test_command_writes_its_numbers(tmp_path: Any) -> None:
    target = tmp_path / "speed.json"
    done = run_command(
        *("cgrseg_t", "--size", "64x64", "--num-classes", "4", "--rounds", "2"),
        *("--subjects", "folded-fp32", "--works", "labels", "--no-peaks", "--no-memory"),
        *("--out", str(target)),
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads(target.read_text())
    assert [row["subject"] for row in stored["rows"]] == ["plain", "folded-fp32"]
    assert "input tensor to label map" in done.stdout
