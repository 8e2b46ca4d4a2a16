"""Training sets of a run: `data.root`, the further ones of `data.extra`, and `data.unlabeled`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cgrseg.addresses import local_folder
from cgrseg.class_names import differences, listed
from cgrseg.config.schema import DataConfig
from cgrseg.data.channels import companion_stems, image_endings
from cgrseg.data.file_index import companions_among, visible_files
from cgrseg.data.guess import guess_dataset
from cgrseg.data.pairs import Pair, find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import DataError

_SPLIT = "train"


@dataclass(frozen=True)
class Source:
    """A training set.

    Attributes:
        spec: the dataset, with the classes and the ignore index of the run.
        pairs: images with labels; without, in a folder of unlabeled images.
        weight: number of samples per sample of `data.root`.
    """

    spec: DatasetSpec
    pairs: list[Pair]
    weight: float = 1.0


def training_sources(config: DataConfig) -> list[Source]:
    """The training split of `data.root`, then all training images of each further folder.

    Raises:
        ConfigError: settings that contradict the dataset.
        DataError: a dataset that cannot be used, a further one with other classes, or a folder
            without images.
    """
    spec = resolve_spec(config)
    found = [Source(spec, find_pairs(spec, config.root, config.train_split))]
    for (folder, weight), own in zip(config.extra.items(), extra_settings(config), strict=True):
        other = _like(resolve_spec(own), spec, folder)
        found.append(Source(other, find_pairs(other, folder, _SPLIT), weight))
    found += [
        Source(spec, unlabeled_images(config, folder), weight)
        for folder, weight in config.unlabeled.items()
    ]
    return found


def unlabeled_images(config: DataConfig, folder: str) -> list[Pair]:
    """All images below a folder, as pairs without labels, sorted by name.

    Raises:
        DataError: there are none.
    """
    endings = image_endings(config.channels)
    files = {
        name: path
        for name, path in visible_files(local_folder(folder))
        if name.lower().endswith(endings)
    }
    further = companions_among(files.values(), companion_stems(config.channels))
    pairs = [Pair(name, files[name], None) for name in sorted(files) if files[name] not in further]
    if not pairs:
        raise DataError(
            folder,
            found="no images in this folder of data.unlabeled",
            expected="files that end in " + ", ".join(endings),
            remedy="correct the path, or leave it out",
        )
    return pairs


def extra_settings(config: DataConfig) -> Iterator[DataConfig]:
    """Settings of each further training set, recognized as `cgrseg data check` does.

    A set with the classes that `data.root` has before `data.merge`, `data.rename` and `data.drop`
    gets these settings too.
    """
    edits = {name: getattr(config, name) for name in ("merge", "rename", "drop")}
    none = {name: type(edit)() for name, edit in edits.items()}
    before = resolve_spec(config.model_copy(update=none)).classes
    edited = resolve_spec(config).classes != before
    for folder in config.extra:
        own = guess_dataset(folder)
        if edited and resolve_spec(own).classes == before:
            own = own.model_copy(update=edits)
        yield own.model_copy(update={"channels": config.channels})


def trained_splits(config: DataConfig) -> list[str]:
    """Splits of a further training set that are trained on: also what a run would hold out."""
    layout = resolve_spec(config).splits.get(_SPLIT)
    held_out = layout is not None and layout.held_out is not None
    return [_SPLIT, "val"] if held_out else [_SPLIT]


def _like(other: DatasetSpec, spec: DatasetSpec, folder: str) -> DatasetSpec:
    """A further dataset with the ignore index of the run, and nothing held out."""
    changed = differences(spec.classes, other.classes)
    if changed is not None:
        raise DataError(
            folder,
            found=f"a training set of data.extra with other classes than the run: {changed}",
            expected=f"the classes of the run, in this order: {listed(spec.classes)}",
            remedy="label it with a network of these classes, or correct its class list and labels",
        )
    ignored = spec.ignore_index
    return replace(
        other,
        splits={name: replace(layout, held_out=None) for name, layout in other.splits.items()},
        ignore_index=ignored,
        label_rule=other.label_rule.with_ignore_index(ignored),
        other_encodings=tuple(
            (suffix, rule.with_ignore_index(ignored)) for suffix, rule in other.other_encodings
        ),
    )
