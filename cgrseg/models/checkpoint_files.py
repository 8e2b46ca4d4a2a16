"""Read weight files of all common forms without running code in them.

Supported: PyTorch `.pth`/`.pt` (mmsegmentation's, the EfficientFormerV2 authors',
averaged-weight wrappers, bare state dicts, our own), `.safetensors`, a folder made
by `save_pretrained`, Hugging Face hub ids, and names of published weights
(:mod:`cgrseg.published`).  Pickles are read with PyTorch's
restricted unpickler and a list of safe substitutes
(:mod:`cgrseg.models.plain_pickle`); everything that would run code is refused.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cgrseg.downloading import file_digests
from cgrseg.errors import WeightsError
from cgrseg.hub import download, is_hub_id
from cgrseg.input_files import open_input, read_input_text
from cgrseg.models.digest import tensors_digest
from cgrseg.models.plain_pickle import is_dense, load_plain
from cgrseg.published import PUBLISHED, PublishedWeights
from cgrseg.surroundings import raise_machine_problem

StateDict = dict[str, Tensor]

DIGEST = "cgrseg_digest"
"""Metadata key of the digest of the tensors: safetensors files have no checksums."""

# Keys of the state dict in files of known tools; the first that exists is taken.  With both raw and
# averaged weights in a file, the order takes those that the authors of the tool evaluate: timm
# marks its averages; mmengine writes averages as `state_dict` and the raw weights as
# `ema_state_dict`; the EfficientFormerV2 authors evaluate `model`.
_CONTAINERS = ("state_dict_ema", "state_dict", "model", "module", "model_ema", "ema_state_dict")
# Counters among the parameters of weight-averaging wrappers.
_COUNTERS = ("n_averaged", "steps")
# Prefixes by wrappers: data parallel and weight averaging, torch.compile, Lightning modules.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network_module.")
# Files of a repository that are downloaded.
_PARTS = ("*.safetensors", "config.json")
# File name suffixes: a missing file with one of them is not taken for a hub id.
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".onnx")
# Suffixes of exports that are not archives: weights cannot be read from them.
_EXPORTS = (".onnx", ".tflite", ".pte", ".xml", ".param", ".html")


@dataclass
class Checkpoint:
    """Content of a weight file: names and tensors on the CPU, and metadata."""

    source: str
    """File, folder or hub id, for messages."""
    state_dict: StateDict
    """Names as in the file, without the prefixes of wrappers."""
    meta: dict[str, Any] = field(default_factory=dict)
    """`meta` of a `.pth`, `config.json` of a folder, metadata of a safetensors file."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Content beside the weights, such as optimizer state."""
    notes: list[str] = field(default_factory=list)
    """Remarks as sentences, for instance which of several sets of weights was taken."""


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file, folder, hub id or name into names and tensors.

    Args:
        path: `.pth`, `.pt`, `.bin` or `.safetensors` file; folder written by
            `save_pretrained`; a hub id such as "name/repository"; or a name that
            `cgrseg models` lists.

    Raises:
        WeightsError: the file is missing, truncated, foreign or unsafe.
    """
    location = locate_pretrained(path)
    if location.is_dir():
        return _read_folder(location)
    if location.suffix == ".safetensors":
        return _read_safetensors(location)
    return _read_pickle(location)


def locate_pretrained(path: str | Path, **hub_options: Any) -> Path:
    """Local file or folder of a path, a hub id or a name; the latter two are downloaded.

    A local path comes before a name that is the same.

    Raises:
        WeightsError: the path does not exist, the hub id or name cannot be downloaded, or the
            weights of a name are not those that were published.
    """
    location = Path(os.path.expanduser(path))
    if location.exists():
        return location
    text = str(path)
    if text in PUBLISHED:
        return _published(PUBLISHED[text], hub_options)
    if not is_hub_id(text) or location.suffix in _SUFFIXES:
        names = ", ".join(PUBLISHED)
        raise WeightsError(
            text,
            found="there is no such file or folder",
            expected="a .pth or .safetensors file, a folder made by save_pretrained, a "
            "Hugging Face hub id like 'owner/name', or a name that `cgrseg models` lists"
            + (f" ({names})" if names else " (none yet)"),
            remedy="check the path"
            + (f"; the folder {location.parent} holds {_listing(location.parent)}"),
        )
    return download(text, _PARTS, WeightsError, **hub_options)


def _published(entry: PublishedWeights, hub_options: Mapping[str, Any]) -> Path:
    """Folder of published weights, compared with the digest of their row."""
    options = {**hub_options, "revision": entry.revision}
    folder = download(entry.hub_id, _PARTS, WeightsError, **options)
    weights = folder / "model.safetensors"
    found = file_digests(weights)["sha256"] if weights.is_file() else "no model.safetensors"
    if found != entry.sha256:
        raise WeightsError(
            f"{entry.name} ({weights})",
            found=f"SHA-256 {found}" if weights.is_file() else found,
            expected=f"SHA-256 {entry.sha256}, that of the published weights",
            remedy=f"remove the folder {folder.parent.parent}, and download them again; if they "
            f"differ again, the repository {entry.hub_id} was changed: do not use it",
        )
    return folder


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "nothing (it does not exist either)"
    names = sorted(p.name for p in folder.iterdir() if p.suffix in {".pth", ".safetensors", ".pt"})
    return ", ".join(names[:6]) if names else "no weight files"


def _read_folder(folder: Path) -> Checkpoint:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise WeightsError(
            folder,
            found=f"no model.safetensors; it holds {_listing(folder)}",
            expected="a folder made by save_pretrained (model.safetensors and config.json)",
            remedy="pass the weight file itself if it has another name",
        )
    checkpoint = _read_safetensors(weights)
    config = folder / "config.json"
    if config.is_file():
        try:
            config_values = json.loads(read_input_text(config))
            if not isinstance(config_values, dict):
                raise ValueError(f"it holds {type(config_values).__name__}, not a table")
        except (OSError, ValueError, RecursionError) as error:
            raise unusable_config(config, str(error)) from error
        checkpoint.meta.update(config_values)
    checkpoint.source = str(folder)
    return checkpoint


def unusable_config(where: object, found: str) -> WeightsError:
    """The error for an unusable `config.json` beside weights."""
    return WeightsError(
        where,
        found=f"its config.json cannot be used ({found})",
        expected="what save_pretrained wrote",
        remedy="write the folder again with save_pretrained, or download it again",
    )


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    head = _first_bytes(path)
    if head[8:9] != b"{":
        raise _foreign_file(path, head)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as stream:
            state_dict = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            metadata = dict(stream.metadata() or {})
    except (SafetensorError, OSError, MemoryError) as error:
        raise_machine_problem(error, path)
        raise _truncated(path, error) from error
    digest = metadata.pop(DIGEST, None)
    if digest is not None and digest != tensors_digest(state_dict):
        raise _truncated(path, ValueError("its tensors are not those that were saved"))
    return Checkpoint(str(path), _strip_prefixes(state_dict), metadata)


def _truncated(path: Path, error: Exception) -> WeightsError:
    size = path.stat().st_size if path.exists() else 0
    reason = re.split(r"\. |\n", str(error))[0] if str(error) else type(error).__name__
    return WeightsError(
        path,
        found=f"the file is truncated or damaged ({size:,} bytes; {reason})",
        expected="a complete weight file",
        remedy="download or copy it again, and compare its size with the original's",
    )


def _first_bytes(path: Path, count: int = 64) -> bytes:
    try:
        with open_input(path) as stream:
            return stream.read(count)
    except OSError as error:
        raise WeightsError(
            path,
            found=f"it cannot be opened ({error.strerror or error})",
            expected="a weight file that this user may read",
            remedy="check its permissions and the disk that it lies on",
        ) from error


def _foreign_file(path: Path, head: bytes) -> WeightsError:
    if path.suffix in _EXPORTS and head:
        return WeightsError(
            path,
            found=f"the file is an export ({path.suffix})",
            expected="the checkpoint that it was made from, a .pth file or a .safetensors file",
            remedy="pass the checkpoint; `cgrseg predict`, `web` and `bench` take exports",
        )
    return WeightsError(
        path,
        found=_foreign_kind(head),
        expected="a PyTorch .pth file or a .safetensors file",
        remedy="check that the download finished and that this is the weight file itself",
    )


def _read_pickle(path: Path) -> Checkpoint:
    head = _first_bytes(path)
    if not head.startswith(b"PK\x03\x04") and head[:1] != b"\x80":
        raise _foreign_file(path, head)
    try:
        content = load_plain(path)
    except Exception as error:  # damaged pickles raise many types
        raise_machine_problem(error, path)
        text = str(error)
        if "TorchScript" in text:
            raise WeightsError(
                path,
                found="it is a TorchScript program, not weights",
                expected="a state dict",
                remedy="save the state_dict() of the network that it was made from",
            ) from error
        culprit = refused_global(text) if isinstance(error, pickle.UnpicklingError) else None
        if culprit is None:
            raise _truncated(path, error) from error
        raise WeightsError(
            path,
            found=f"reading it would run code: it holds `{culprit}`, which is neither a "
            "tensor nor plain data",
            expected="tensors, numbers, texts, lists and dictionaries only",
            remedy="do not load it unless you trust its author; if you do, open it in an "
            "environment of its own and save its state dict alone with torch.save",
        ) from error
    return _unpack(path, content)


def refused_global(message: str) -> str | None:
    """Name that PyTorch's restricted unpickler refused, read from its message; None: no name."""
    for pattern in (r"GLOBAL ([\w.]+)", r"nsupported (?:global|class|operand)\W+([\w.]+)"):
        found = re.search(pattern, message)
        # A name without a module is an opcode or a truncated name.
        if found is not None and "." in found.group(1).strip("."):
            return found.group(1).strip(".")
    return None


def _foreign_kind(head: bytes) -> str:
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "the file is a Git LFS pointer, not the weights it points to"
    if head.lstrip()[:1] == b"<":
        return "the file is a web page, probably an error page saved by a download"
    if head[8:9] == b"{":
        return "the file looks like safetensors but has another suffix"
    return f"the file is of another kind (it begins with {head[:8]!r})"


def _unpack(path: Path, content: Any) -> Checkpoint:
    """Find the state dict in the content of a pickle."""
    extra: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    notes: list[str] = []
    tensors = content
    if isinstance(content, Mapping):
        meta = dict(content["meta"]) if isinstance(content.get("meta"), Mapping) else {}
        for key in _CONTAINERS:
            if _holds_tensors(content.get(key)):
                tensors = content[key]
                extra = {k: v for k, v in content.items() if k not in (key, "meta")}
                others = [k for k in _CONTAINERS if k in extra and _holds_tensors(extra[k])]
                if others:
                    notes.append(f"taken from '{key}'; the file also has {', '.join(others)}")
                break
    if not _holds_tensors(tensors):
        names = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else ""
        raise WeightsError(
            path,
            found=f"it holds no weights ({type(content).__name__}"
            + (f" with {names})" if names else ")"),
            expected="a state dict, bare or under 'state_dict' or 'model'",
            remedy="save the network's state_dict() with torch.save",
        )
    named = {str(k): v for k, v in tensors.items() if isinstance(v, Tensor)}
    odd = next((name for name, value in named.items() if not is_dense(value)), None)
    if odd is not None:
        raise WeightsError(
            path,
            found=f"{odd} is a {_form(named[odd])} tensor of shape {tuple(named[odd].shape)}",
            expected="dense tensors of real numbers, with a value for each element",
            remedy="save the network's state_dict() with torch.save, from the CPU",
        )
    return Checkpoint(str(path), _strip_prefixes(named), meta, extra, notes)


def _form(value: Tensor) -> str:
    layout, dtype = str(value.layout).removeprefix("torch."), str(value.dtype)[6:]
    return f"{layout} {dtype} {value.device.type}"


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def _strip_prefixes(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Remove prefixes that all parameters share, and counters of weight averaging."""
    names = {k: v for k, v in state_dict.items() if k not in _COUNTERS}
    while True:
        prefix = next((p for p in _PREFIXES if names and all(k.startswith(p) for k in names)), None)
        if prefix is None:
            return names
        names = {k[len(prefix) :]: v for k, v in names.items()}
