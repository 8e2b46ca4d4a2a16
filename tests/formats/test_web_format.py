"""`--format web`: the arithmetic of the page against ours, the runtime for browsers, refusals.

The page in a browser: tests/deploy/test_static_page.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cgrseg.config.schema import TestConfig
from cgrseg.data.color import MEAN, STD
from cgrseg.deploy import export
from cgrseg.errors import ConfigError, EnvironmentProblem, WeightsError
from cgrseg.formats import describe, onnxruntime_web, web_format
from cgrseg.inference.exported_backend import ExportedBackend
from cgrseg.inference.segmenting import fit_to_sizes
from cgrseg.inference.views import NetworkInput
from cgrseg.models import create_model
from cgrseg.ops.array_argmax import array_argmax
from tests.inference.fixtures import description, photo

SETTINGS = [
    TestConfig(scale=(160, 96)),
    TestConfig(resize="none"),
    TestConfig(scale=(120, 120), resize="keep_ratio_divisible", divisor=32),
]
SIZES = [None, [(96, 128)], [(64, 160), (160, 64)]]
IMAGES = [(75, 121), (192, 256), (31, 300), (300, 31), (96, 160)]
CLASSES = 40
# Runs the module that the page imports on the files of a folder.
NODE = """
import fs from "node:fs";
import { encodeIndexedPng, networkInput, planInput, upsampleArgmax } from "./segmenting.mjs";

function write(name, array) {
  fs.writeFileSync(name, new Uint8Array(array.buffer ?? array));
}

const plans = [];
for (const [number, settings] of JSON.parse(fs.readFileSync("cases.json")).entries()) {
  const [height, width] = settings.size;
  const plan = planInput(settings.size, settings);
  plans.push(plan);
  const data = new Uint8Array(fs.readFileSync(`${number}.image`));
  write(`${number}.input`, networkInput({ data, height, width, channels: 4 }, plan, settings));
  const logits = new Float32Array(new Uint8Array(fs.readFileSync(`${number}.logits`)).buffer);
  const ids = upsampleArgmax(logits, settings.classes, plan);
  write(`${number}.labels`, ids);
  const colors = Array.from({ length: settings.classes }, (_, id) => ({ color: [id, 2 * id, 7] }));
  const png = await encodeIndexedPng({ height, width, ids }, colors);
  write(`${number}.png`, await png.arrayBuffer());
}
fs.writeFileSync("plans.json", JSON.stringify(plans));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_arithmetic_is_ours(repository: Path, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    cases: list[dict[str, object]] = []
    expected = []
    for size in IMAGES:
        image = photo(*size, seed=len(cases))
        for test in SETTINGS:
            for sizes in SIZES:
                config = fit_to_sizes(test, image, sizes)
                made = NetworkInput.of(image, config)
                backend = ExportedBackend(description(sizes=sizes), lambda array: array, "x")
                padded = backend.padded(made.array)[0]
                rows, columns = (side // 8 for side in padded.shape[1:])
                coarse = draws.normal(size=(5, 6, CLASSES)).astype(np.float32)
                resized = cv2.resize(coarse, (columns, rows)).astype(np.float32)
                logits = resized.transpose(2, 0, 1)
                logits[:2] = logits[2]  # equal classes
                cropped = logits[:, : made.size[0] // 8, : made.size[1] // 8]
                labels = array_argmax(cropped, size, input_size=made.size, crop=made.resized)
                number = len(cases)
                cv2.cvtColor(image, cv2.COLOR_RGB2RGBA).tofile(tmp_path / f"{number}.image")
                logits.tofile(tmp_path / f"{number}.logits")
                about = {"size": size, "classes": CLASSES, "mean": MEAN, "std": STD, "sizes": sizes}
                cases.append({**about, **test.model_dump(include={"resize", "scale", "divisor"})})
                expected.append((made, padded, labels))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (tmp_path / "run.mjs").write_text(NODE)
    shutil.copy(repository / "cgrseg/page/segmenting.js", tmp_path / "segmenting.mjs")
    done = subprocess.run(["node", "run.mjs"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plans = json.loads((tmp_path / "plans.json").read_text())
    for number, (plan, (made, padded, labels)) in enumerate(zip(plans, expected, strict=True)):
        assert (plan["kept"], plan["padded"]) == ([*made.resized], [*made.size])
        found = np.fromfile(tmp_path / f"{number}.input", np.float32).reshape(padded.shape)
        assert np.array_equal(found, padded), cases[number]
        ids = np.fromfile(tmp_path / f"{number}.labels", np.uint8).reshape(labels.shape)
        # Equal but for near-ties: ours computes in float32, the page in float64.
        assert (ids != labels).mean() < 1e-4, cases[number]
        with Image.open(tmp_path / f"{number}.png") as stored:
            assert np.array_equal(np.asarray(stored), ids)
            assert stored.getpalette()[3:6] == [1, 2, 7]


def small_package() -> bytes:
    """A package like that of the npm registry, with a few bytes a file."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in onnxruntime_web.FILES:
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    return content.getvalue()


Registry = tuple[ThreadingHTTPServer, list[str], bytes]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    """A registry on this machine with a small package, and an empty cache."""
    package, asked = small_package(), list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(package)))
            self.end_headers()
            self.wfile.write(package)

        def log_message(self, *values: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/npm/"
    monkeypatch.setenv("npm_config_registry", address)
    monkeypatch.setenv("CGRSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(onnxruntime_web, "_SHA512", hashlib.sha512(package).hexdigest())
    monkeypatch.setattr(onnxruntime_web, "_SIZE", len(package))
    yield server, asked, package
    server.shutdown()
    server.server_close()


def test_a_folder_has_all_that_a_browser_needs(
    registry: Registry, repository: Path, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    shape = [1, 7, 8, 12]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, shape)
    node = onnx.helper.make_node("Softmax", ["image"], ["logits"], axis=1)
    graph = onnx.helper.make_graph([node], "small", [image], [logits])
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    about = description(kind="web", test={"scale": [96, 64]}, palette=None)
    page = tmp_path / "index.html"
    web_format.FORMAT.prepare(about)
    web_format.FORMAT.save(model, about, page)
    assert registry[1] == [f"/npm/onnxruntime-web/-/onnxruntime-web-{onnxruntime_web.VERSION}.tgz"]
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names == {path.name for path in web_format.FORMAT.files(page)}
    for name in onnxruntime_web.FILES:
        assert (tmp_path / name).read_text() == name
    assert "MIT" in (tmp_path / "onnxruntime-LICENSE.txt").read_text()
    assert "script-src 'self' 'wasm-unsafe-eval'" in page.read_text()
    header = "Content-Security-Policy: "
    (policy,) = (
        line.strip().removeprefix(header)
        for line in (tmp_path / "_headers").read_text().splitlines()
        if header in line
    )
    assert f'content="{policy}"' in page.read_text()
    for name, ours in {"labels.js": "labels_in_browser.js", "app.js": "app.js"}.items():
        assert (tmp_path / name).read_text() == (repository / "cgrseg/page" / ours).read_text()
    told = json.loads((tmp_path / "network.json").read_text())
    assert told["bytes"] == (tmp_path / "network.onnx").stat().st_size
    assert [each["name"] for each in told["classes"]] == list("abcdefg")
    assert told["gpu_features"] == []
    assert told["settings"]["scale"] == [96, 64] and told["settings"]["sizes"] == [[64, 96]]
    assert describe(page).kind == describe(tmp_path / "network.onnx").kind == "web"


def test_another_package_is_refused(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good = onnxruntime_web._SHA512
    monkeypatch.setattr(onnxruntime_web, "_SHA512", good[::-1])
    with pytest.raises(EnvironmentProblem, match="not in the cache, and not downloaded") as caught:
        onnxruntime_web.locate_package()
    told = str(caught.value)
    folder = tmp_path / "cache" / "onnxruntime-web"
    path = folder / f"onnxruntime-web-{onnxruntime_web.VERSION}.tgz"
    assert "npm_config_registry" in told and "npm pack" in told and str(path) in told
    assert good[:16] in told and not folder.exists()
    folder.mkdir(parents=True)
    path.write_bytes(registry[2])  # saved by hand, as the message says
    with pytest.raises(WeightsError, match=r"\.tgz: a file with the SHA-512"):
        onnxruntime_web.locate_package()
    assert path.is_file()
    monkeypatch.setattr(onnxruntime_web, "_SHA512", good)
    assert onnxruntime_web.locate_package() == path
    assert len(registry[1]) == 1


def test_without_a_connection_no_folder_is_made(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cgrseg.downloading.PAUSE", 0.0)
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:1")
    model, out = create_model("cgrseg_t", 7, context_blocks=1), tmp_path / "site"
    with pytest.raises(EnvironmentProblem, match=r"npm pack onnxruntime-web@"):
        export(model, "web", out)
    assert not out.exists()
    out.mkdir()
    (out / "app.js").write_text("mine")
    with pytest.raises(ConfigError, match=r"app\.js: a file is there already"):
        export(model, "web", out)
    assert [path.name for path in out.iterdir()] == ["app.js"]
    monkeypatch.setenv("npm_config_registry", "http://user:secret@127.0.0.1:1")
    with pytest.raises(ConfigError, match="npm_config_registry: an address with a user name"):
        onnxruntime_web.locate_package()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": {"mode": "slide"}}, r"slide, \[1\.0\], false(.|\n)*give test\.mode=whole"),
        ({"test": {"ratios": [0.5, 1], "flip": True}}, r"whole, \[0\.5, 1\.0\], true"),
        ({"num_classes": 257}, "a network of 257 classes"),
    ],
)
def test_what_the_page_cannot_do(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        web_format.FORMAT.prepare(description(**changes))


def test_a_page_without_its_network_is_named(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text("<!doctype html>")
    with pytest.raises(WeightsError, match=r"index\.html: no network\.onnx beside it"):
        describe(page)
