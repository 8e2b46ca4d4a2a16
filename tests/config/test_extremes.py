"""Every setting has bounds, keeps them, and works at them; every numeric option likewise."""

from __future__ import annotations

import inspect
import itertools
import math
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from typer.models import OptionInfo
from typer.testing import CliRunner

from cgrseg.cli.main import app
from cgrseg.cli.reference import commands
from cgrseg.config.fields import MAX_SIDE, _split
from cgrseg.config.loading import load_config
from cgrseg.config.schema import Config, walk_settings
from cgrseg.data.train_transform import TrainTransform
from cgrseg.devices import resolve_device, use_threads
from cgrseg.errors import ConfigError, EnvironmentProblem
from cgrseg.training.optimizer import rate_factor

NUMBERS = [
    *("0", "-1", "1", "1e-300", "-1e-300", "1e308", "-1e308", "1e309", "nan", "Infinity", "null"),
    *("2147483648", "9223372036854775808", "9" * 23, "9" * 5000, "true", "''", "[]", "{}"),
]
SETTINGS = dict(walk_settings())


def numbers_in(annotation: Any) -> Iterator[tuple[type, dict[str, Any]]]:
    """Type and limits of every number that an annotation admits."""
    base, limits = _split(annotation)
    if base in (int, float):
        yield base, limits
    for part in typing.get_args(base):
        if part is not Ellipsis and typing.get_origin(base) is not typing.Literal:
            yield from numbers_in(part)


NUMERIC = [path for path, annotation in SETTINGS.items() if list(numbers_in(annotation))]


def texts(path: str) -> Iterator[str]:
    """Extreme values of a setting, in the form that its type has."""
    base = _split(SETTINGS[path])[0]
    parts = [base, *typing.get_args(base)]
    yield from NUMBERS
    if any(typing.get_origin(_split(part)[0]) is tuple for part in parts):
        yield from (f"[{one},{two}]" for one, two in itertools.product(NUMBERS, NUMBERS))
        yield from ("[]", "[1]", "[1,1,1]")
    if any(typing.get_origin(_split(part)[0]) is list for part in parts):
        yield from (f"[{one}]" for one in NUMBERS)
        yield "[" + ",".join(["1"] * 1000) + "]"


@pytest.mark.parametrize("path", SETTINGS)
def test_extreme_values_are_taken_or_refused_in_words(path: str) -> None:
    for text in texts(path):
        try:
            config = load_config("cgrseg-t_custom", [f"{path}={text}"])
        except ConfigError as error:
            assert path.rpartition(".")[2] in str(error), text
            assert "expected:" in str(error), text
            continue
        value: Any = config
        for part in path.split("."):
            value = getattr(value, part)
        for number in np.asarray(value if value is not None else 0, dtype=object).reshape(-1):
            assert not isinstance(number, float) or math.isfinite(number), text


@pytest.mark.parametrize("path", NUMERIC)
def test_every_number_has_a_lower_and_an_upper_bound(path: str) -> None:
    """Without an upper one a typing error fills the machine, or never ends."""
    for _, limits in numbers_in(SETTINGS[path]):
        assert {"gt", "ge"} & set(limits), path
        assert {"lt", "le"} & set(limits), path


@pytest.mark.parametrize(
    ("setting", "accepted"),
    [
        ("model.drop_path=1", "at least 0 and less than 1"),
        ("model.context_blocks=100000", "from 1 to 100"),
        ("optimizer.betas=1,1", "at least 0 and less than 1"),
        ("optimizer.layer_decay=1e-300", "from 0.01 to 1"),
        ("augment.ratio_range=1,1e9", "from 0.01 to 100"),
        ("augment.ratio_range=1,100", f"at most {MAX_SIDE} pixels"),
        ("augment.photometric.brightness=1e308", "from 0 to 255"),
        ("augment.crop_size=1000000,1000000", f"at most {MAX_SIDE}"),
        ("augment.scale=1000000,1000000", f"at most {MAX_SIDE}"),
        ("test.ratios=[1e9]", "from 0.01 to 100"),
        ("test.ratios=[100]", f"at most {MAX_SIDE} pixels"),
        ("test.ratios=[]", "a list of numbers"),
        ("train.accumulate=99999999999999999999", "from 1 to 65536"),
        ("train.batch_size=1000000000", "from 1 to 65536"),
        ("train.seed=99999999999999999999999", "from 0 to 9223372036854775807"),
        ("data.workers=1000000", "from 0 to 512"),
        ("data.root=\0", "expected: text"),
    ],
)
def test_what_ended_in_a_trace_or_never(setting: str, accepted: str) -> None:
    with pytest.raises(ConfigError, match=accepted) as caught:
        load_config("cgrseg-t_custom", [setting])
    assert setting.partition("=")[0].rpartition(".")[2] in str(caught.value)


def bounds(path: str) -> Iterator[float]:
    _, limits = next(numbers_in(SETTINGS[path]))
    yield limits.get("ge", math.nextafter(limits.get("gt", 0), math.inf))
    yield limits.get("le", math.nextafter(limits.get("lt", 1), -math.inf))


AUGMENT = [path for path in NUMERIC if path.startswith("augment.") and "size" not in path]


@pytest.mark.parametrize("path", [path for path in AUGMENT if path != "augment.scale"])
def test_samples_are_made_at_the_bounds(path: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, (48, 64), dtype=np.uint8)
    size = ["augment.crop_size=32,32", "augment.scale=64,48", "augment.photometric.probability=1"]
    kind = typing.get_origin(_split(SETTINGS[path])[0])
    forms = {tuple: "[{0},{0}]", list: "[{0}]"}
    for value in bounds(path):
        text = f"{path}={forms.get(kind, '{0}').format(value)}"
        for order in ("true", "false"):
            config = load_config("cgrseg-t_custom", [*size, text, f"augment.crop_first={order}"])
            for seed in range(3):
                transform = TrainTransform(config.augment.stages[0])
                seeded = np.random.default_rng(seed)
                plan = transform.plan(labels, seeded)
                sample = transform.finish(*transform.render(image, plan, seeded))
                assert sample[0].shape == (3, 32, 32)
                assert np.isfinite(sample[0]).all()


@pytest.mark.parametrize(
    "path", [path for path in NUMERIC if path.startswith(("optimizer.", "schedule."))]
)
def test_optimizers_step_at_the_bounds(path: str) -> None:
    pair = typing.get_origin(_split(SETTINGS[path])[0]) is tuple
    for value in bounds(path):
        text = f"{path}=[{value},{value}]" if pair else f"{path}={value}"
        config = load_config("cgrseg-t_custom", [text])
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.full((3,), 0.5)
        optimizer, schedule = config.optimizer, config.schedule
        for iteration in {0, schedule.warmup_iters, schedule.max_iters // 2, schedule.max_iters}:
            rate = optimizer.lr * rate_factor(iteration, schedule)
            assert math.isfinite(rate)
            torch.optim.AdamW(
                [weight], lr=rate, betas=optimizer.betas, weight_decay=optimizer.weight_decay
            ).step()


def test_the_largest_seed_is_one() -> None:
    config = load_config("cgrseg-t_custom", [f"train.seed={2**63 - 1}"])
    torch.manual_seed(config.train.seed)
    assert np.random.default_rng(config.train.seed).random() >= 0


def test_assignments_keep_the_bounds() -> None:
    config = Config()
    with pytest.raises(ValueError):
        config.train.batch_size = 10**9


def options() -> Iterator[Any]:
    """Name, type and range of every numeric option of every command."""
    for name, command in commands():
        hints = typing.get_type_hints(inspect.unwrap(command.callback), include_extras=True)
        for parameter, hint in hints.items():
            if typing.get_origin(hint) is not typing.Annotated:
                continue
            base, info = typing.get_args(hint)[:2]
            if isinstance(info, OptionInfo) and {int, float} & {base, *typing.get_args(base)}:
                yield pytest.param(info, id=f"{name} {parameter}")


OPTIONS = list(options())


def test_there_are_numeric_options() -> None:
    assert len(OPTIONS) > 15


@pytest.mark.parametrize("option", OPTIONS)
def test_numeric_options_have_bounds(option: OptionInfo) -> None:
    assert option.min is not None
    assert option.max is not None


@pytest.mark.parametrize(
    "arguments",
    [
        "predict a.pth b.jpg --opacity nan",
        "predict a.pth b.jpg --opacity inf",
        "predict a.pth b.jpg --threads 99999",
        "predict a.pth b.jpg --batch-size 1000000000",
        "data check folder --workers 1000000",
        "data check folder --workers -1",
        f"data synth out --seed {2**63}",
        f"bench cgrseg_t --size {10**9}x{10**9}",
        "bench cgrseg_t --size 0",
        "web a.pth --upload-mb nan",
    ],
)
def test_options_beyond_their_bounds_are_refused(arguments: str) -> None:
    *_, option, value = arguments.split()
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 2
    assert option in done.stderr
    assert value[:20] in done.stderr
    assert "expected:" in done.stderr


@pytest.mark.parametrize("device", ["meta", "cuda:99", "cuda:-1", "", "vulkan", "nothing"])
def test_devices_that_cannot_run_a_network_are_refused(device: str) -> None:
    with pytest.raises(EnvironmentProblem, match="device"):
        resolve_device(device)


def test_threads_have_bounds() -> None:
    for threads in (0, -1, 1025, 10**9):
        with pytest.raises(ConfigError, match="threads"):
            use_threads(threads)
