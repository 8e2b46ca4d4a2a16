"""Download the wheels that `make gpu-check` needs beside PyTorch, for a machine without a network.

    python scripts/gpu_wheels.py build/gpu-wheels       # Python 3.12, Linux, x86-64

The folder holds what CGRSeg and its GPU tests import, in the versions of constraints.txt, without
PyTorch and what comes with it.  OpenCV alone is as large as all others together, so it has a
folder of its own, FOLDER-opencv; a machine that has OpenCV does not need it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
# PyTorch brings filelock, fsspec, jinja2, markupsafe, mpmath, networkx, setuptools, sympy and
# typing-extensions.  Left out because nothing that runs here imports them: aiohttp,
# grpcio, hf-xet, requests, tensorboard's data server, and what these need.
NEEDED = (
    *("annotated-doc", "annotated-types", "click", "huggingface-hub", "lightning"),
    *("lightning-utilities", "numpy", "packaging", "pydantic", "pydantic-core"),
    *("pytorch-lightning", "pyyaml", "safetensors", "torchmetrics", "tqdm", "typer"),
    *("typing-inspection", "rich", "markdown-it-py", "mdurl", "pygments", "shellingham"),
    *("absl-py", "markdown", "protobuf", "tensorboard", "werkzeug"),
    *("contourpy", "cycler", "fonttools", "kiwisolver", "matplotlib", "pillow"),
    *("pyparsing", "python-dateutil"),
    *("anyio", "h11", "httpcore2", "httpx2", "idna", "truststore"),
    *("hypothesis", "iniconfig", "pluggy", "pytest", "sortedcontainers"),
)
LARGE = ("opencv-python-headless",)
_GLIBC = (28, 27, 24, 17, 12, 5)


def pinned(names: tuple[str, ...], python: str) -> list[str]:
    """Names with the versions of constraints.txt for Linux on x86-64.

    Raises:
        SystemExit: a name without a version.
    """
    surroundings = {
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
    }
    versions = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            found = Requirement(line)
            if found.marker is None or found.marker.evaluate(surroundings):
                versions[found.name] = f"{found.name}{found.specifier}"
    unknown = [name for name in names if name not in versions]
    if unknown:
        raise SystemExit(f"error: constraints.txt has no {', '.join(unknown)}")
    return [versions[name] for name in names]


def download(names: tuple[str, ...], folder: Path, python: str) -> int:
    """Download wheels without their dependencies, and remove older ones; returns bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = pinned(names, python)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--python-version", python, "--implementation", "cp", "--find-links", str(folder)]
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in _GLIBC]
    for platform in (*platforms, "manylinux2014_x86_64", "manylinux1_x86_64"):
        command += ["--platform", platform]
    subprocess.run([*command, *wanted], check=True)
    keep = {re.sub(r"[-_.]+", "-", one.replace("==", "/")).lower() for one in wanted}
    for wheel in folder.glob("*.whl"):
        name, version = wheel.name.split("-")[:2]
        if re.sub(r"[-_.]+", "-", f"{name}/{version}").lower() not in keep:
            wheel.unlink()
    return sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))


def main() -> None:
    """Fill the folders and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python-version", default="3.12")
    options = parser.parse_args()
    large = options.folder.with_name(f"{options.folder.name}-opencv")
    for names, folder in ((NEEDED, options.folder), (LARGE, large)):
        size = download(names, folder, options.python_version)
        for wheel in sorted(folder.glob("*.whl"), key=lambda file: -file.stat().st_size):
            print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}")
        print(f"{size / 2**20:6.1f} MiB  in {folder}")


if __name__ == "__main__":
    main()
