"""Initial weights of a run: ImageNet's for the backbone, a checkpoint, or random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from cgrseg.config.schema import Config
from cgrseg.downloading import file_digests
from cgrseg.errors import ConfigError, EnvironmentProblem, speaks_python
from cgrseg.formats import is_exported
from cgrseg.hub import CachedFile, NotAvailable, hub_address, locate_file
from cgrseg.models import CGRSeg, load_weights
from cgrseg.models.checkpoint_files import locate_pretrained
from cgrseg.variants import IMAGENET, imagenet_weights

_FILE = "model.safetensors"
_LICENSE = "Apache-2.0"


class NoImageNetWeights(EnvironmentProblem):
    """ImageNet weights that are neither in the cache nor downloadable."""

    in_all_processes = True


def _needs_imagenet(config: Config) -> bool:
    """Whether a new run of this config starts from the ImageNet weights of its variant."""
    return config.model.pretrained == IMAGENET and config.train.load_from is None


def _other_weights(config: Config) -> dict[Literal["backbone", "all"], str]:
    """The files, hub ids and names that a new run starts from, by the part that they fill."""
    pretrained, load_from = config.model.pretrained, config.train.load_from
    named: dict[Literal["backbone", "all"], str] = {}
    if pretrained is not None and pretrained != IMAGENET:
        named["backbone"] = pretrained
    if load_from is not None:
        named["all"] = load_from
    return named


def locate_initial_weights(config: Config, say: Callable[[str], None]) -> None:
    """Find the weights that a new run starts from, and its teacher, or download them.

    Args:
        config: config of the run.
        say: receives lines about ImageNet weights.

    Raises:
        NoImageNetWeights: see :func:`_locate_imagenet`.
        WeightsError: a file, hub id or name that cannot be had.
    """
    if _needs_imagenet(config):
        _locate_imagenet(config, say)
    named = list(_other_weights(config).values())
    if config.train.teacher is not None and not is_exported(config.train.teacher):
        named.append(config.train.teacher)
    for text in named:
        locate_pretrained(text)


def _locate_imagenet(config: Config, say: Callable[[str], None] = lambda text: None) -> CachedFile:
    """The ImageNet weights of a run's variant, verified; downloaded if they are not in the cache.

    Args:
        config: config of the run.
        say: receives lines about source, size, license and place.

    Raises:
        NoImageNetWeights: they cannot be had; the message says the three ways on.
    """
    hub_id = imagenet_weights(config.model.name)
    try:
        found = locate_file(hub_id, _FILE, say)
    except NotAvailable as error:
        raise _unavailable(hub_id, str(error)) from error
    digest = "not recorded" if found.digest is None else f"{found.digest}, verified"
    say(
        f"ImageNet weights of the backbone: {hub_id} ({found.path.stat().st_size / 1e6:.1f} MB, "
        f"license {_LICENSE}, SHA-256 {digest}), kept in {found.path}"
    )
    return found


def _unavailable(hub_id: str, reason: str) -> NoImageNetWeights:
    if speaks_python():
        file, none = '{"model.pretrained": "FILE"}', '{"model.pretrained": None}'
        file, none = f"set {file}", f"set {none}"
    else:
        file, none = "add model.pretrained=FILE", "add model.pretrained=null"
    return NoImageNetWeights(
        f"model.pretrained={IMAGENET}",
        found=reason,
        expected=f"the ImageNet weights of the backbone, {_FILE}, from which the published runs "
        "start",
        remedy="one of three ways:\n"
        f"    a local file: download {hub_address()}/{hub_id}/resolve/main/{_FILE} on a machine "
        f"that can, and {file}\n"
        "    a mirror of the hub: set the environment variable HF_ENDPOINT=https://..., or "
        "HTTPS_PROXY for a proxy\n"
        f"    from scratch: {none}; the published accuracy needs ImageNet weights",
    )


def load_initial_weights(model: CGRSeg, config: Config, say: Callable[[str], None]) -> str:
    """Load the weights that a new run starts from.

    Args:
        model: the network, with random weights.
        config: config of the run.
        say: receives lines about what was loaded.

    Returns:
        Description of the weights' origin.

    Raises:
        ConfigError: a frozen backbone without trained weights.
        WeightsError: weights that cannot be read or do not fit.
        NoImageNetWeights: see :func:`_locate_imagenet`.
    """
    origin = []
    if _needs_imagenet(config):
        found = _locate_imagenet(config)
        say(str(load_weights(model, found.path, part="backbone", verbose=False)))
        digest = found.digest or file_digests(found.path)["sha256"]
        hub_id = imagenet_weights(config.model.name)
        origin.append(f"ImageNet: {hub_id}, SHA-256 {digest}; head: random")
    for part, text in _other_weights(config).items():
        place = locate_pretrained(text)
        say(str(load_weights(model, place, part=part, verbose=False)))
        digest = file_digests(place / _FILE if place.is_dir() else place)["sha256"]
        kind = "checkpoint" if part == "all" else part
        origin.append(f"{kind}: {text}, SHA-256 {digest}")
    if origin:
        return "; ".join(origin)
    if config.model.freeze_backbone:
        raise ConfigError(
            "model.freeze_backbone",
            found="true, for a backbone with random weights",
            expected="trained weights in the part that is kept as it is",
            remedy=f"set model.pretrained={IMAGENET} or train.load_from=CHECKPOINT",
        )
    say(
        "weights: random, from scratch; published results start from ImageNet's backbone: "
        f"model.pretrained={IMAGENET}"
    )
    return "random, from scratch"
