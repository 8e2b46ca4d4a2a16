"""Order and randomness of training samples as functions of (seed, position).

A training reads one endless stream of (position, index) keys.  The position counts every sample of
the whole job; the index selects the image.  So neither the number of loader workers, nor the
number of processes, nor resuming changes the samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Key = tuple[int, int]
"""Position in the stream of the whole job, index of the image."""

Sources = Sequence[tuple[int, float]]
"""Number of images and weight of each source; indices count through all of them in order."""

# Distinguishes the stream of permutations from that of samples, which is (seed, position).
_ORDER = 0x6F72646572


def sample_generator(seed: int, position: int) -> np.random.Generator:
    """Randomness of the sample at one position of the stream."""
    return np.random.Generator(np.random.PCG64([seed, position]))


def draw_index(sources: Sources, rng: np.random.Generator) -> int:
    """Index of an image: of a source drawn by its weight, drawn uniformly from its images."""
    weights = np.array([weight for _, weight in sources])
    source = int(rng.choice(len(weights), p=weights / weights.sum()))
    before = sum(length for length, _ in sources[:source])
    return before + int(rng.integers(sources[source][0]))


def epoch_order(length: int, seed: int, epoch: int, source: int = 0) -> NDArray[np.int64]:
    """The order of one pass over the images of a source: a permutation of 0 .. length - 1."""
    own = [source] if source else []
    generator = np.random.Generator(np.random.PCG64([seed, epoch, _ORDER, *own]))
    return generator.permutation(length)


def shares_of_rest(weights: Sequence[float]) -> list[Fraction]:
    """Share of each source among itself and the sources after it; the last share is 1."""
    exact = [Fraction(str(weight)) for weight in weights]
    return [weight / sum(exact[number:]) for number, weight in enumerate(exact)]


def source_of(position: int, shares: Sequence[Fraction]) -> tuple[int, int]:
    """Source of a position of the stream, and the number of earlier positions that it has.

    Sources take turns as evenly as their weights allow: any stretch of the stream has their
    proportions, but for less than one sample per source.

    Args:
        position: 0 or more.
        shares: from :func:`shares_of_rest`.
    """
    for source, share in enumerate(shares):
        before, after = (
            -(-count * share.numerator // share.denominator) for count in (position, position + 1)
        )
        if after > before:
            return source, before
        position -= before
    raise ValueError("the last share must be 1")


class StreamSampler(Sampler[Key]):
    """Endless keys of one process's share of the stream.

    Step s of the job uses positions s * G .. (s + 1) * G - 1 with
    G = batch_size * accumulate * world_size; process r takes a contiguous slice of them.
    The samples of a source run through its images in epochs, each in an order of its own;
    batches run across the border between two epochs, so no image is left out.

    Args:
        sources: number of images, or number of images and weight of each source.
        seed: seed of the order.
        batch_size: samples per process and forward pass.
        rank: rank of this process.
        world_size: number of processes.
        start_step: optimizer steps that are already done (resuming).
        accumulate: forward passes per optimizer step.

    Raises:
        ValueError: a count that is not positive, or a rank outside the world.
    """

    def __init__(
        self,
        sources: int | Sources,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        accumulate: int = 1,
    ) -> None:
        sources = [(sources, 1.0)] if isinstance(sources, int) else sources
        length = min(length for length, _ in sources)
        if min(length, batch_size, world_size, accumulate) < 1 or start_step < 0:
            raise ValueError(
                "length, batch_size, world_size and accumulate must be positive and start_step at "
                f"least 0, got {length}, {batch_size}, {world_size}, {accumulate}, {start_step}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is outside a world of {world_size}")
        self.lengths = [length for length, _ in sources]
        self.shares = shares_of_rest([weight for _, weight in sources])
        self.seed = seed
        self.share = batch_size * accumulate
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step

    def __iter__(self) -> Iterator[Key]:
        """Keys from `start_step` on, without end."""
        orders = [(-1, np.empty(0, dtype=np.int64))] * len(self.lengths)
        offsets = [sum(self.lengths[:number]) for number in range(len(self.lengths))]
        step = self.start_step
        while True:
            first = (step * self.world_size + self.rank) * self.share
            for position in range(first, first + self.share):
                source, number = source_of(position, self.shares)
                epoch, place = divmod(number, self.lengths[source])
                if epoch != orders[source][0]:
                    order = epoch_order(self.lengths[source], self.seed, epoch, source)
                    orders[source] = epoch, order
                yield position, offsets[source] + int(orders[source][1][place])
            step += 1


class ShardSampler(Sampler[int]):
    """One process's share of an evaluation: each image exactly once over all processes.

    Nothing is repeated, since a repeated image would count twice in the metrics.

    Args:
        length: number of images.
        rank: rank of this process.
        world_size: number of processes.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        if length < 0 or not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} processes over {length} images")
        self.indices = range(rank, length, world_size)

    def __iter__(self) -> Iterator[int]:
        """Indices of this share, ascending."""
        return iter(self.indices)

    def __len__(self) -> int:
        """Number of images of this process."""
        return len(self.indices)
