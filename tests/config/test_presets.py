"""The shipped runs: nine published names and our own examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgrseg.config import list_presets, load_config, preset
from cgrseg.config.presets import DATASETS, PLUS
from cgrseg.errors import ConfigError

PUBLISHED = [
    f"cgrseg-{size}_{rest}"
    for rest in ("ade20k_160k", "coco-stuff10k_80k", "pascal-context59_80k")
    for size in "tbl"
]


def test_the_nine_names_are_presets() -> None:
    assert list_presets()[:9] == PUBLISHED


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_loads_under_its_own_name(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert config.model.name == f"cgrseg_{name[7]}"
    assert config.schedule.warmup_iters < config.schedule.max_iters


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_file_and_name_are_the_same_run(repository: Path, name: str) -> None:
    assert load_config(repository / "local_configs" / "cgrseg" / f"{name}.py") == load_config(name)


def test_every_shipped_file_loads_under_its_own_name(repository: Path) -> None:
    files = sorted((repository / "local_configs" / "cgrseg").glob("*.py"))
    assert {path.stem for path in files} >= {
        *PUBLISHED,
        "cgrseg-t_camvid",
        "cgrseg-t_custom",
        "cgrseg-t_finetune",
        "cgrseg-t_synthetic",
    }
    for path in files:
        assert load_config(path).name == path.stem


def test_schedules_of_ours_are_said_to_be_ours(repository: Path) -> None:
    for dataset in ("coco_stuff10k", "pascal_context59"):
        assert DATASETS[dataset].settings["schedule"] == {"max_iters": 80_000}
        assert "our choice" in DATASETS[dataset].about
    for path in (repository / "local_configs" / "cgrseg").glob("*_80k.py"):
        assert "The 80k schedule is ours" in path.read_text()


def test_published_runs_differ_only_where_the_dataset_does() -> None:
    base = load_config("cgrseg-t_ade20k_160k").model_dump()
    coco = load_config("cgrseg-b_coco-stuff10k_80k").model_dump()
    changed = {
        (section, key)
        for section, values in base.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if coco[section][key] != value
    }
    assert changed == {
        ("model", "name"),
        ("data", "dataset"),
        ("data", "root"),
        ("schedule", "max_iters"),
    }


def test_the_recipe_plus_is_its_table_and_nothing_else() -> None:
    usual, plus = (load_config(f"cgrseg-t_camvid{end}") for end in ("", "_plus"))
    assert plus == load_config("cgrseg-t_camvid", PLUS | {"name": plus.name})
    assert plus.schedule == usual.schedule  # for the same iterations
    assert plus.optimizer.name == "muon" and plus.loss.model_dump()["lovasz_weight"] == 1
    assert plus.run_dir == "work_dirs/cgrseg-t_camvid_plus"
    assert preset("cgrseg_t", "camvid", recipe="plus") == plus
    own = load_config("cgrseg-t_camvid_plus", ["schedule.max_iters=10"])
    assert own.schedule.max_iters == 10 and own.optimizer == plus.optimizer
    with pytest.raises(ConfigError, match="one of published, plus"):
        preset("cgrseg_t", "camvid", recipe="best")


def test_changes_are_laid_over_the_recipe_not_in_its_place() -> None:
    config = preset("cgrseg_t", "custom", name="mine", data={"root": "here"})
    assert (config.name, config.data.root, config.data.dataset) == ("mine", "here", "custom")
    assert config.train.batch_size == 8
    assert preset("cgrseg_t", "custom").data.root == "data/custom"


@pytest.mark.parametrize(
    ("model", "dataset", "wrong"), [("cgrseg_x", "ade20k", "cgrseg_x"), ("cgrseg_t", "a", "'a'")]
)
def test_unknown_row_lists_the_known_ones(model: str, dataset: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match="one of") as caught:
        preset(model, dataset)
    assert wrong in str(caught.value)


@pytest.mark.parametrize("name", list_presets())
def test_published_runs_are_fp32_and_all_others_choose(name: str) -> None:
    expected = "fp32" if name in PUBLISHED else "auto"
    assert load_config(name).train.precision == expected
    assert load_config(f"{name}_plus").train.precision == "auto"
