"""The stream of samples: the same for any number of workers and processes, and after a resume."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrseg.data.sampling import (
    ShardSampler,
    StreamSampler,
    epoch_order,
    sample_generator,
    shares_of_rest,
    source_of,
)


def take(sampler: StreamSampler, count: int) -> list[tuple[int, int]]:
    return list(islice(sampler, count))


@given(
    length=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 5),
    world=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    steps=st.integers(1, 6),
)
def test_global_batches_do_not_depend_on_the_number_of_processes(
    length: int, seed: int, batch: int, world: int, accumulate: int, steps: int
) -> None:
    everything = batch * world * accumulate
    alone = take(StreamSampler(length, seed, everything), everything * steps)
    share = batch * accumulate
    ranks = [
        take(StreamSampler(length, seed, batch, rank, world, accumulate=accumulate), share * steps)
        for rank in range(world)
    ]
    for step in range(steps):
        together = [key for keys in ranks for key in keys[step * share : (step + 1) * share]]
        assert together == alone[step * everything : (step + 1) * everything]
    assert [position for position, _ in alone] == list(range(everything * steps))


@given(
    length=st.integers(1, 30),
    batch=st.integers(1, 5),
    world=st.integers(1, 3),
    done=st.integers(0, 20),
)
def test_resuming_continues_the_stream(length: int, batch: int, world: int, done: int) -> None:
    for rank in range(world):
        whole = take(StreamSampler(length, 7, batch, rank, world), batch * (done + 3))
        resumed = take(StreamSampler(length, 7, batch, rank, world, start_step=done), batch * 3)
        assert resumed == whole[batch * done :]


@given(length=st.integers(1, 50), seed=st.integers(0, 1000), epochs=st.integers(1, 3))
def test_each_epoch_shows_each_image_once(length: int, seed: int, epochs: int) -> None:
    keys = take(StreamSampler(length, seed, 3), length * epochs)
    for epoch in range(epochs):
        shown = [index for _, index in keys[epoch * length : (epoch + 1) * length]]
        assert sorted(shown) == list(range(length))
        assert shown == epoch_order(length, seed, epoch).tolist()


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        ([1], "0000"),
        ([1, 1], "010101"),
        ([1, 2], "011011"),
        ([1, 0.5], "001001"),
        ([1, 0.1], "00000000001" * 2),
        ([1, 0.5, 0.5], "01020102"),
    ],
)
def test_sources_take_turns_by_weight(weights: list[float], turns: str) -> None:
    shares = shares_of_rest(weights)
    found = [source_of(position, shares) for position in range(len(turns))]
    assert "".join(str(source) for source, _ in found) == turns
    for source in range(len(weights)):
        assert [n for one, n in found if one == source] == list(range(turns.count(str(source))))


SOURCES = st.lists(st.tuples(st.integers(1, 9), st.floats(0.01, 20)), min_size=1, max_size=4)


@given(sources=SOURCES, seed=st.integers(0, 2**32), start=st.integers(0, 10**9))
def test_any_stretch_of_the_stream_has_the_proportions(
    sources: list[tuple[int, float]], seed: int, start: int
) -> None:
    shares = shares_of_rest([weight for _, weight in sources])
    counts = Counter(source_of(start + step, shares)[0] for step in range(200))
    total = sum(weight for _, weight in sources)
    for number, (_, weight) in enumerate(sources):
        assert abs(counts[number] - 200 * weight / total) < len(sources) + 1


@given(sources=SOURCES, seed=st.integers(0, 2**32))
def test_each_epoch_of_a_source_shows_each_of_its_images_once(
    sources: list[tuple[int, float]], seed: int
) -> None:
    shown = [index for _, index in take(StreamSampler(sources, seed, 4), 300)]
    first = 0
    for number, (length, _) in enumerate(sources):
        own = [index - first for index in shown if first <= index < first + length]
        for epoch in range(len(own) // length):
            order = epoch_order(length, seed, epoch, number).tolist()
            assert own[epoch * length : (epoch + 1) * length] == order
            assert sorted(order) == list(range(length))
        first += length
    assert max(shown) < first


@given(sources=SOURCES, world=st.integers(1, 3), done=st.integers(0, 20))
def test_several_sources_resume_and_do_not_depend_on_the_number_of_processes(
    sources: list[tuple[int, float]], world: int, done: int
) -> None:
    alone = take(StreamSampler(sources, 7, 2 * world), 2 * world * (done + 2))
    for rank in range(world):
        resumed = take(StreamSampler(sources, 7, 2, rank, world, start_step=done), 4)
        steps = [(done + step) * 2 * world + rank * 2 for step in range(2)]
        assert resumed == [key for first in steps for key in alone[first : first + 2]]


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = {tuple(epoch_order(20, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_generators_depend_on_seed_and_position_only() -> None:
    draws = {
        (seed, position): sample_generator(seed, position).random(4).tolist()
        for seed in range(4)
        for position in range(50)
    }
    assert len({tuple(values) for values in draws.values()}) == len(draws)
    assert sample_generator(3, 49).random(4).tolist() == draws[3, 49]


@pytest.mark.parametrize(
    "arguments", [(0, 0, 1), (1, 0, 0), (1, 0, 1, 2, 2), (1, 0, 1, 0, 1, -1), (1, 0, 1, 0, 1, 0, 0)]
)
def test_impossible_samplers(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be positive|outside a world"):
        StreamSampler(*arguments)


@given(length=st.integers(0, 100), world=st.integers(1, 9))
def test_shards_are_a_partition(length: int, world: int) -> None:
    shards = [ShardSampler(length, rank, world) for rank in range(world)]
    assert sorted(index for shard in shards for index in shard) == list(range(length))
    sizes = [len(shard) for shard in shards]
    assert sizes == [len(list(shard)) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_shard_of_an_impossible_rank() -> None:
    with pytest.raises(ValueError, match="rank 2 of 2"):
        ShardSampler(5, 2, 2)
