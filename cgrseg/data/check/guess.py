"""Which dataset a folder holds, told by its folders and its class list."""

from __future__ import annotations

from pathlib import Path

from cgrseg.config.schema import DataConfig
from cgrseg.data.catalogue import get_spec, list_specs, resolve_spec
from cgrseg.data.custom import CLASS_LIST, read_class_list
from cgrseg.data.pairs import cut_suffix, visible_files
from cgrseg.errors import DataError, explain


def guess_dataset(folder: Path | str) -> DataConfig:
    """Settings for a folder that no config describes.

    A class list makes it a custom dataset unless it is CamVid's; otherwise it is the
    dataset of the catalogue whose training folders and label endings are there.

    Args:
        folder: root of a dataset.

    Raises:
        DataError: nothing fits, or more than one dataset does.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(
            explain(
                root,
                found="no such folder",
                expected="the folder that holds a dataset's images and labels",
                remedy="check the path",
            )
        )
    # "synthetic" is written in ADE20K's layout, which speaks for ADE20K's rule here.
    fitting = [name for name in list_specs() if name != "synthetic" and _fits(name, root)]
    class_file = root / CLASS_LIST
    if class_file.is_file():
        names = read_class_list(class_file)
        same = [name for name in fitting if get_spec(name).classes == names]
        if len(same) == 1:
            return _settings(same[0], root)
        if (root / DataConfig().images).is_dir():
            return _settings("custom", root)
    if "pascal_context59" in fitting:
        # The 60-class form shares its files; 59 is the one of the published numbers.
        fitting = [name for name in fitting if name != "pascal_context60"]
    if len(fitting) == 1:
        return _settings(fitting[0], root)
    inside = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise DataError(
        explain(
            root,
            found=f"the layouts of {', '.join(fitting)}" if fitting else f"it holds {inside}",
            expected="the layout of one dataset of the catalogue, or a custom one with "
            f"{CLASS_LIST}",
            remedy="name the dataset (--dataset), or write the class names into "
            f"{class_file}, one a line",
        )
    )


def _settings(name: str, root: Path) -> DataConfig:
    """Settings whose splits exist; a folder may hold one split alone."""
    settings = DataConfig(dataset=name, root=str(root))
    splits = list(resolve_spec(settings).splits)
    if settings.train_split not in splits:
        settings.train_split = splits[0]
    if settings.eval_split not in splits:
        settings.eval_split = settings.train_split
    return settings


def _fits(name: str, root: Path) -> bool:
    spec = get_spec(name)
    for layout in spec.splits.values():
        if layout.labels is None or not (root / layout.images).is_dir():
            continue
        endings = [suffix for suffix, _ in spec.encodings]
        if any(cut_suffix(name, endings) for name, _ in visible_files(root / layout.labels)):
            return True
    return False
