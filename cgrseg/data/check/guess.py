"""Which dataset a folder holds, told by its folders and its class list."""

from __future__ import annotations

from pathlib import Path

from cgrseg.config.schema import DataConfig
from cgrseg.data.catalogue import get_spec, list_specs
from cgrseg.data.custom import CLASS_LIST, read_class_list
from cgrseg.data.custom_layout import IMAGE_SUFFIXES, find_folders, refuse_misplaced_root
from cgrseg.data.file_index import cut_suffix, visible_files
from cgrseg.errors import DataError

COLOR_TABLE = "labelmap.txt"
"""Name of the color table that CVAT writes beside its masks."""


def guess_dataset(folder: Path | str) -> DataConfig:
    """Settings for a folder that no config describes.

    A class list makes it a custom dataset unless it is CamVid's; otherwise it is the
    dataset of the catalogue whose folders and label endings are there.

    Args:
        folder: root of a dataset.

    Raises:
        DataError: nothing fits, or more than one dataset does.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(
            root,
            found="no such folder",
            expected="the folder that holds a dataset's images and labels",
            remedy="check the path",
        )
    # "synthetic" is written in ADE20K's layout, which speaks for ADE20K's rule here.
    fitting = [name for name in list_specs() if name != "synthetic" and _fits(name, root)]
    class_file, folders = root / CLASS_LIST, find_folders(root)
    if class_file.is_file():
        names = read_class_list(class_file)
        same = [name for name in fitting if get_spec(name).classes == names]
        if len(same) == 1:
            return DataConfig(dataset=same[0], root=str(root))
        if folders is not None or (root / DataConfig().images).is_dir():
            return DataConfig(dataset="custom", root=str(root))
    else:
        _refuse_other_annotations(root, folders)
    # CamVid's folders are those of any custom dataset: only its class list tells it.
    fitting = [name for name in fitting if name != "camvid"]
    if "pascal_context59" in fitting:
        # The 60-class form shares its files; 59 is the one of the published numbers.
        fitting = [name for name in fitting if name != "pascal_context60"]
    if len(fitting) == 1:
        return DataConfig(dataset=fitting[0], root=str(root))
    refuse_misplaced_root(DataConfig(dataset="custom"), root)
    if folders is not None and not fitting:
        found = f"images in {folders[0]} and labels in {folders[1]}, but no class list"
    elif fitting:
        found = f"the layouts of {', '.join(fitting)}"
    else:
        inside = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        found = f"it holds {inside}"
    raise DataError(
        root,
        found=found,
        expected=f"the layout of one dataset of the catalogue, or a custom one with {CLASS_LIST}",
        remedy="name the dataset (--dataset), or write the class names into "
        f"{class_file}, one a line in id order",
    )


def _refuse_other_annotations(root: Path, folders: tuple[str, str] | None) -> None:
    """Name the conversion that a folder needs, where it holds another tool's annotations.

    Raises:
        DataError: color masks of CVAT, LabelMe files beside their images, or COCO-Stuff-10k as
            it is downloaded.
    """
    table = root / COLOR_TABLE
    found, command = "", ""
    if folders is not None and table.is_file():
        images, masks = (root / name for name in folders)
        found = f"color masks with {COLOR_TABLE}, as CVAT exports them"
        command = f"cgrseg data convert rgb {images} {masks} OUT --colors {table}"
    elif (root / "imageLists").is_dir() and any((root / "annotations").glob("*.mat")):
        found = "label maps in MATLAB files, as COCO-Stuff-10k is downloaded"
        command = f"cgrseg data convert coco-stuff10k {root} --out OUT"
    elif folders is None:
        annotated = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        beside = next((folder for folder in annotated if _holds_labelme(folder)), None)
        if beside is not None:
            found = f"JSON files beside their images in {beside}, as LabelMe writes them"
            command = f"cgrseg data convert labelme {beside} OUT"
    if command:
        raise DataError(
            root,
            found=found,
            expected="label maps of class ids",
            remedy=command,
        )


def _holds_labelme(folder: Path) -> bool:
    stems = {path.stem for path in folder.glob("*.json")}
    return bool(stems) and any(
        path.stem in stems and path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir()
    )


def _fits(name: str, root: Path) -> bool:
    spec = get_spec(name)
    for layout in spec.splits.values():
        if layout.labels is None or not (root / layout.images).is_dir():
            continue
        endings = [suffix for suffix, _ in spec.encodings]
        if any(cut_suffix(name, endings) for name, _ in visible_files(root / layout.labels)):
            return True
    return False
