"""ONNX Runtime Web: the package of the npm registry, downloaded once and verified.

https://www.npmjs.com/package/onnxruntime-web, MIT license.  The package holds no license text; the
files of the same project's Python package are copied instead.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from cgrseg.downloading import Unreachable, checked_address, download, file_digests
from cgrseg.errors import EnvironmentProblem, WeightsError
from cgrseg.extras import require
from cgrseg.files import cache_folder
from cgrseg.locks import output_lock
from cgrseg.progress import shown_progress

VERSION = "1.30.0"
FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""Files for a CPU, then those for a GPU (WebGPU)."""

LICENSES = {
    "LICENSE": "onnxruntime-LICENSE.txt",
    "ThirdPartyNotices.txt": "onnxruntime-ThirdPartyNotices.txt",
}
"""Files of the Python package, and their names beside the page."""

_SIZE = 33_106_585
_SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
_REGISTRY = "https://registry.npmjs.org"
_SETTING = "npm_config_registry"
_NAME = f"onnxruntime-web-{VERSION}.tgz"


def locate_package() -> Path:
    """The verified package in the cache of this project, downloaded if it is not there.

    The environment variable `npm_config_registry` names another registry, as for npm itself.

    Raises:
        EnvironmentProblem: the package cannot be downloaded.
        WeightsError: the file in the cache is another one.
    """
    path = cache_folder() / "onnxruntime-web" / _NAME
    if not path.is_file():
        _download(path)
    digest = _sha512(path)
    if digest != _SHA512:
        raise WeightsError(
            path,
            found=f"a file with the SHA-512 {digest[:16]}...",
            expected=f"{_NAME} of the npm registry, {_SHA512[:16]}...",
            remedy="remove the file: it is then downloaded again",
        )
    return path


def _download(path: Path) -> None:
    registry = os.environ.get(_SETTING) or _REGISTRY
    address = checked_address(f"{registry.rstrip('/')}/onnxruntime-web/-/{_NAME}", _SETTING)
    new = path.with_name(f"{_NAME}.new")
    problem = ""
    with output_lock(path.parent):
        try:
            with shown_progress("downloading ONNX Runtime Web", unit="MB") as progress:
                download(address, new, _SIZE, progress)
        except Unreachable as error:
            problem = str(error).splitlines()[0]
        else:
            digest = _sha512(new)
            if digest == _SHA512:
                new.replace(path)
                return
            new.unlink()
            problem = f"{address}: a file with the SHA-512 {digest[:16]}..."
    raise EnvironmentProblem(
        f"ONNX Runtime Web {VERSION}",
        found=f"not in the cache, and not downloaded ({problem})",
        expected=f"{_NAME} of the npm registry, with the SHA-512 {_SHA512[:16]}...",
        remedy=f"set the environment variable {_SETTING} to a registry that this machine reaches; "
        f"or run `npm pack onnxruntime-web@{VERSION}` elsewhere and save the file as {path}",
    )


def _sha512(path: Path) -> str:
    return file_digests(path, "sha512")["sha512"]


def copy_runtime(folder: Path) -> None:
    """Copy the files that a browser needs, and the licenses, into a folder."""
    with tarfile.open(locate_package()) as archive:
        for name in FILES:
            source = archive.extractfile(f"package/dist/{name}")
            assert source is not None  # the digest says so
            with (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)
    for license_file, target_name in find_licenses().items():
        shutil.copyfile(license_file, folder / target_name)


def find_licenses() -> dict[Path, str]:
    """The license files of the Python package, and their names beside the page.

    Raises:
        EnvironmentProblem: a build of the package that has none.
    """
    package = Path(require("onnxruntime", "export as web").__file__).parent
    found = {package / source: target for source, target in LICENSES.items()}
    for path in found:
        if not path.is_file():
            raise EnvironmentProblem(
                path,
                found="missing from this build of ONNX Runtime",
                expected="the license that has to be beside the page",
                remedy="install the published package onnxruntime instead of this build",
            )
    return found
