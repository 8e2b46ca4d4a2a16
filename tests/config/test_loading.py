"""Loading a run's settings: where from, and what is said when it cannot be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cgrseg.config import Config, load_config, preset
from cgrseg.config.loading import as_config
from cgrseg.errors import ConfigError


def test_defaults_are_the_published_recipe() -> None:
    config = load_config("cgrseg-t_ade20k_160k")
    assert config == Config()
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1.2e-4, 0.01)
    assert config.optimizer.betas == (0.9, 0.999)
    assert config.optimizer.head_multiplier == 10
    assert (config.schedule.max_iters, config.schedule.warmup_iters) == (160_000, 1_500)
    assert (config.schedule.warmup_ratio, config.schedule.power) == (1e-6, 1.0)
    assert config.augment.scale == (2048, 512)
    assert config.augment.ratio_range == (0.5, 2.0)
    assert config.augment.crop_size == (512, 512)
    assert (config.train.batch_size, config.train.eval_interval) == (4, 4_000)
    assert config.loss.average == "all"
    assert not config.model.freeze_norm
    assert config.run_dir == "work_dirs/cgrseg-t_ade20k_160k"


def test_pascal_context_follows_the_published_geometry() -> None:
    config = load_config("cgrseg-l_pascal-context59_80k")
    assert config.model.name == "cgrseg_l"
    assert (config.augment.scale, config.augment.crop_size) == ((520, 520), (480, 480))
    assert (config.test.scale, config.test.resize) == ((520, 520), "keep_ratio_divisible")
    assert config.schedule.max_iters == 80_000


def test_python_file_exposes_a_config_or_its_tables(tmp_path: Path) -> None:
    made = tmp_path / "mine.py"
    made.write_text(
        "from cgrseg.config import preset\n"
        "config = preset('cgrseg_b', 'custom', schedule={'max_iters': 7})\n"
    )
    table = tmp_path / "table.py"
    table.write_text("config = {'name': 'other', 'train': {'seed': 5}}\n")
    assert load_config(made).schedule.max_iters == 7
    assert load_config(made).model.name == "cgrseg_b"
    assert load_config(table, ["train.seed=6"]).train.seed == 6
    assert load_config(table).name == "other"


def test_copied_file_is_a_run_of_its_own(tmp_path: Path) -> None:
    copied = tmp_path / "my_street.py"
    copied.write_text("from cgrseg.config import preset\nconfig = preset('cgrseg_t', 'ade20k')\n")
    assert load_config(copied).run_dir == "work_dirs/my_street"
    assert load_config(copied, ["name=chosen"]).run_dir == "work_dirs/chosen"


def test_json_of_a_run_loads_as_it_was_saved(tmp_path: Path) -> None:
    config = preset("cgrseg_t", "camvid", data={"merge": {"thing": ["car", "pole"]}})
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    assert load_config(tmp_path / "config.json") == config
    # In the folder of a run, that folder counts, not the one that the file names.
    (tmp_path / "best.pth").write_bytes(b"")
    assert load_config(tmp_path / "config.json").work_dir == config.work_dir
    config.work_dir = "/somewhere/else"
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    assert load_config(tmp_path / "config.json").work_dir == str(tmp_path)

    # the folder stands for the run in it: whoever goes on with it writes there
    in_folder = load_config(tmp_path)
    assert in_folder.run_dir == str(tmp_path)
    assert in_folder == config.model_copy(update={"work_dir": str(tmp_path)})
    assert load_config(tmp_path, ["work_dir=other"]).run_dir == "other"


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../b", " ", "a\0b"])
def test_a_name_that_leads_out_of_work_dirs_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name: "):
        load_config("cgrseg-t_camvid", {"name": name})
    assert load_config("cgrseg-t_camvid", {"name": "a/b"}).run_dir == "work_dirs/a/b"


def test_overrides_as_a_table_are_taken_as_they_are() -> None:
    config = load_config("cgrseg-t_custom", {"data.root": "1", "train": {"seed": 3}})
    assert (config.data.root, config.train.seed) == ("1", 3)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.lr=fast", ["optimizer.lr: got 'fast'", "a number greater than 0"]),
        ("optimizer.lr=0", ["optimizer.lr: got 0", "a number greater than 0"]),
        ("optimizer.lr=NaN", ["got 'NaN'", "a number"]),
        ("optimizer.lr=1e999", ["got inf", "a number greater than 0"]),
        ("train.batch_size=2.5", ["train.batch_size: got 2.5", "a whole number from 1 to 65536"]),
        ("train.batch_size=true", ["train.batch_size: got True", "a whole number"]),
        ("train.patience=true", ["train.patience: got True", "or null"]),
        ("test.ratios=[true]", ["test.ratios: got [True]", "a list of numbers from 0.01 to 100"]),
        ("train.evaluate=7", ["train.evaluate: got 7", "true or false"]),
        ("augment.crop_size=[512]", ["augment.crop_size: got [512]", "a size in pixels"]),
        ("augment.crop_size=[500, 512]", ["[500, 512]", "multiples of 32", "take [512, 512]"]),
        ("augment.ratio_range=[2, 1]", ["[2, 1]", "write [1, 2]"]),
        ("augment.photometric.hue=200", ["got 200", "a whole number from 0 to 90"]),
        ("test.resize=keep", ["got 'keep'", "one of 'keep_ratio', 'keep_ratio_divisible', 'none'"]),
        ("test.stride=[600, 100]", ["test.stride: [600, 100], larger than the window [512, 512]"]),
        ("test.ratios=[1, 'a']", ["test.ratios[1]: got 'a'", "a list of numbers from 0.01 to 100"]),
        ("data.palette=[[1, 2, 300]]", ["data.palette[0][2]: got 300", "from 0 to 255"]),
        ("data.split_lists={'a': 3}", ["data.split_lists[a]: got 3", "a table of text to text"]),
        ("model.name=cgrseg_x", ["got 'cgrseg_x'", "one of 'cgrseg_t', 'cgrseg_b', 'cgrseg_l'"]),
        (
            "optimizer=3",
            ["optimizer: got 3", "a table with name, lr, betas", "optimizer.NAME=value"],
        ),
    ],
)
def test_wrong_value_is_told_in_plain_words(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("cgrseg-t_custom", [override])
    message = str(caught.value)
    for part in [*parts, "expected:", "what to do:"]:
        assert part in message
    for jargon in ("pydantic", "validation error", "type=", "Input should", "int_type"):
        assert jargon not in message


def test_all_wrong_values_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("cgrseg-t_custom", ["train.seed=-1", "optimizer.lr=x"])
    assert "train.seed: got -1" in str(caught.value)
    assert "optimizer.lr: got 'x'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("config = 3\n", ["config is int", "cgrseg.config.preset"]),
        ("x = 3\n", ["no `config` in it"]),
        ("import nothing_of_that_name\n", ["line 1", "ModuleNotFoundError"]),
        ("x = 1\nconfig = {\n", ["line 2", "SyntaxError"]),
        ("\n\nconfig = 1 / 0\n", ["line 3", "ZeroDivisionError", "correct that line"]),
        ("config = {'optimizer': {'lrr': 1}}\n", ["optimizer.lrr", "did you mean optimizer.lr?"]),
        ("config = {'optimizer': {'lr': []}}\n", ["optimizer.lr: got []", "a number"]),
        (
            "from cgrseg.config import preset\nconfig = preset('cgrseg_t', 'ade')\n",
            ["'ade' is not known", "ade20k"],
        ),
        (
            "from cgrseg.config import preset\nconfig = preset('cgrseg_t', 'ade20k')\n"
            "config.augment.photometric.hue = 'red'\n",
            ["augment.photometric.hue: got 'red'", "a whole number from 0 to 90"],
        ),
    ],
)
def test_python_file_that_does_not_work_is_named(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", '"text"', '{"optimizer": {"lrr": 1}}'])
def test_json_file_that_does_not_work_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "what to do:" in str(caught.value)


def test_json_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bytes.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot be read as JSON"):
        load_config(path)


def test_unknown_name_gives_the_nearest_preset() -> None:
    with pytest.raises(ConfigError, match=r"did you mean the preset cgrseg-t_ade20k_160k\?"):
        load_config("cgrseg-t_ade20k")


def test_path_of_a_shipped_file_that_is_not_there_is_no_silent_preset() -> None:
    with pytest.raises(ConfigError, match="the name alone, cgrseg-t_ade20k_160k, works"):
        load_config("elsewhere/cgrseg-t_ade20k_160k.py")


def test_other_file_types_and_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: x")
    with pytest.raises(ConfigError, match=r"end in \.yaml are not read"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        load_config(tmp_path)


def test_whole_config_made_in_python_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="multiples of 32"):
        Config(augment={"crop_size": (100, 100)})  # type: ignore[arg-type]


def test_a_config_a_name_and_nothing_else() -> None:
    config = load_config("cgrseg-t_custom")
    assert as_config(config) is config and as_config("cgrseg-t_custom") == config
    with pytest.raises(ConfigError, match="a value of type dict") as caught:
        as_config({"name": "mine"})  # type: ignore[arg-type]
    assert "cgrseg.load_config(name" in str(caught.value)


@pytest.mark.parametrize("text", ["64x96", "64,96", "[64, 96]", "(64,96)", "64X96", "64 x 96"])
def test_one_size_in_every_form(text: str) -> None:
    config = load_config("cgrseg-t_custom", [f"augment.crop_size={text}", f"test.scale={text}"])
    assert config.augment.crop_size == config.test.scale == (64, 96)


def test_one_number_is_a_square_and_no_truth_value_is_a_size() -> None:
    assert load_config("cgrseg-t_custom", ["augment.crop_size=64"]).augment.crop_size == (64, 64)
    for text in ("true", "64x", "x64", "64x96x3", "-64", "wide"):
        with pytest.raises(ConfigError, match=r"augment\.crop_size.*: got .*\n.*a size in pixels"):
            load_config("cgrseg-t_custom", [f"augment.crop_size={text}"])
