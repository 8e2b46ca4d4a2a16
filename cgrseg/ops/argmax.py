"""From low-resolution logits to labels at any size, without the full-size logits.

The published code resizes 150 logit maps to the image's size, takes a softmax and then an
argmax: most of a CPU prediction.  The answer can be had exactly for much less:

* Bilinear resizing gives every output pixel a convex combination of a small window of
  low-resolution logits.  Where one class is the best at every position of the window, it is the
  best everywhere between them; no arithmetic is needed.
* Elsewhere (at boundaries, about a tenth of the picture) nearly every class is still out of the
  question.  Take the mean ``m`` of the window's winning classes.  It is resized like any class,
  and the best class is nowhere below it; so a class that is below ``m`` at every position of the
  window cannot win within it.  About two classes are left, and only those are interpolated.

Pure noise leaves most classes in the race; then all of them are interpolated, a cache-sized
block of pixels at a time.

"Exact" means: equal to a float64 evaluation wherever its two best classes differ by more than
1e-5 (for logits below about 30 in magnitude; float32 carries about 7 digits); exact ties go to
the smallest class index, as with ``argmax``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cgrseg.errors import DataError
from cgrseg.ops.array_argmax import (
    BUCKETS,
    CANDIDATE_SHARE,
    SAMPLE,
    SCAN_SHARE,
    Method,
    Size,
    array_argmax,
    array_topk,
    check_sizes,
    require_finite,
)
from cgrseg.ops.windows import Cells, Windows, best_class, tensor_plan, where_true

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def _by_value(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Run ``function`` eagerly and without gradients: which work it does depends on the values."""
    without_gradients = torch.no_grad()(function)
    uncompiled: list[Callable[_Parameters, _Result]] = []

    @functools.wraps(function)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        if not torch.compiler.is_compiling():
            return without_gradients(*args, **kwargs)
        if not uncompiled:
            # Only now: `disable` imports the compiler, which takes as long as torch itself.
            uncompiled.append(torch.compiler.disable(without_gradients))  # type: ignore[no-untyped-call]
        return uncompiled[0](*args, **kwargs)

    return run


def upsample_argmax_reference(
    logits: Tensor, size: Size, *, input_size: Size | None = None, crop: Size | None = None
) -> Tensor:
    """Plain version of :func:`upsample_argmax`: resize every class to full size, then argmax.

    Same arguments and result.  Pass float64 logits for a reference to compare with.
    """
    _check(logits, size, input_size, crop)
    resized = logits if logits.dtype == torch.float64 else logits.float()
    if input_size is not None:
        resized = F.interpolate(resized, size=input_size, mode="bilinear", align_corners=False)
        if crop is not None:
            resized = resized[:, :, : crop[0], : crop[1]]
    if tuple(resized.shape[2:]) != tuple(size):
        resized = F.interpolate(resized, size=size, mode="bilinear", align_corners=False)
    return resized.argmax(dim=1)


@_by_value
def upsample_argmax(
    logits: Tensor,
    size: Size,
    *,
    input_size: Size | None = None,
    crop: Size | None = None,
    method: Method = "auto",
) -> Tensor:
    """Best class per pixel of bilinearly resized logits (``align_corners=False``).

    Args:
        logits: (N, K, h, w) float32, float64, bfloat16 or float16, on any device, any strides
            (channels-last is the faster layout, and saves a copy).  Half precisions are
            computed in float32.
            All values finite.
        size: (H, W) of the result.
        input_size: for the two-step resize of the published test path: the size of the
            network's input, to which the logits are resized first.  ``None``: one resize.
        crop: (rows, columns) of that first result that remain, counted from its top left
            corner, before it is resized to ``size``: what is left without the padding.
        method: ``"auto"`` chooses; ``"boundary"`` always looks for the few classes that can
            win; ``"dense"`` interpolates all of them.  The result is the same.

    Returns:
        int64 (N, H, W) class indices; among equal classes the smallest index.

    Raises:
        DataError: a shape that does not fit, or a logit that is NaN or infinite.
    """
    _check(logits, size, input_size, crop)
    if logits.device.type == "cpu":
        steps = {"input_size": input_size, "crop": crop}
        found = [array_argmax(one, size, method=method, **steps) for one in _arrays(logits)]
        return torch.from_numpy(np.stack(found)).long()
    return argmax_on_device(logits, size, input_size=input_size, crop=crop, method=method)


def argmax_on_device(
    logits: Tensor,
    size: Size,
    *,
    input_size: Size | None = None,
    crop: Size | None = None,
    method: Method = "auto",
) -> Tensor:
    """The form of :func:`upsample_argmax` for GPUs, which runs on any device."""
    windows = _open(logits, size, input_size, crop)
    dense = method == "dense"
    labels = _dense(windows) if dense else _boundary(windows, always=method == "boundary")
    return labels.long()


@_by_value
def upsample_confidence(
    logits: Tensor, size: Size, *, input_size: Size | None = None, crop: Size | None = None
) -> tuple[Tensor, Tensor]:
    """Best class per pixel and its softmax probability, both of the resized logits.

    The probability needs every class at every pixel, so this costs a few times as much as
    :func:`upsample_argmax`, and still holds no full-size logits.

    Args:
        logits: (N, K, h, w), as for :func:`upsample_argmax`.
        size: (H, W) of the result.
        input_size: as for :func:`upsample_argmax`.
        crop: as for :func:`upsample_argmax`.

    Raises:
        DataError: as for :func:`upsample_argmax`.

    Returns:
        labels int64 (N, H, W), and probability in [1 / K, 1], (N, H, W), float32 (float64 for
        float64 logits).
    """
    labels, probabilities = _topk(logits, size, 1, input_size, crop)
    return labels[:, 0], probabilities[:, 0]


@_by_value
def upsample_topk(
    logits: Tensor, size: Size, k: int, *, input_size: Size | None = None, crop: Size | None = None
) -> tuple[Tensor, Tensor]:
    """The ``k`` best classes per pixel, best first, and their softmax probabilities.

    Args:
        logits: (N, K, h, w), as for :func:`upsample_argmax`.
        size: (H, W) of the result.
        input_size: as for :func:`upsample_argmax`.
        crop: as for :func:`upsample_argmax`.
        k: 1 to K.  Among exactly equal classes the order is not specified for k > 1.

    Returns:
        labels int64 (N, k, H, W) and probabilities (N, k, H, W), falling along k.

    Raises:
        DataError: as for :func:`upsample_argmax`, or ``k`` outside 1..K.
    """
    return _topk(logits, size, k, input_size, crop)


def _topk(
    logits: Tensor, size: Size, k: int, input_size: Size | None, crop: Size | None
) -> tuple[Tensor, Tensor]:
    _check(logits, size, input_size, crop)
    if not 1 <= k <= logits.shape[1]:
        raise DataError(
            "upsample_topk",
            found=f"k = {k} with {logits.shape[1]} classes",
            expected=f"k between 1 and {logits.shape[1]}",
            remedy="ask for at most as many classes as there are",
        )
    if logits.device.type != "cpu":
        return topk_on_device(logits, size, k, input_size=input_size, crop=crop)
    found = [array_topk(one, size, k, input_size=input_size, crop=crop) for one in _arrays(logits)]
    labels, probabilities = (torch.from_numpy(np.stack(each)) for each in zip(*found, strict=True))
    return labels.long(), probabilities


def _arrays(logits: Tensor) -> NDArray[Any]:
    """Logits on the CPU as an array, float64 or float32, without a copy where they are so."""
    found: NDArray[Any] = _promote(logits.detach()).numpy()
    return found


def _boundary(windows: Windows, *, always: bool) -> Tensor:
    """Fill cells whose window has one winner; decide the others among their candidates.

    Args:
        windows: the resize.
        always: do so even where interpolating all classes everywhere is expected to be faster.
    """
    nodes = windows.all_nodes()  # (all cells, taps)
    seen = best_class(windows.positions)[nodes]
    mixed = (seen != seen[:, :1]).any(dim=1).nonzero().squeeze(1)
    if not always and not _few_candidates(windows, nodes, seen, mixed):
        return _dense(windows)
    blocks = windows.blocks(seen[:, 0])
    if not len(mixed):
        return windows.assemble(blocks)
    cells, nodes, seen = windows.cells(mixed), nodes[mixed], seen[mixed]  # m of them
    parts = [
        _candidates(windows, nodes[part], seen[part])
        for part in windows.chunks(len(cells), windows.taps * windows.classes)
    ]
    counts = torch.cat([count for _, count in parts])
    table = _table(torch.cat([candidates for candidates, _ in parts]), counts)
    del parts
    places = windows.places[0] * windows.places[1]
    lower = 1
    for upper in BUCKETS:
        bucket = ((counts > lower) & (counts <= upper)).nonzero().squeeze(1)
        lower = upper
        for part in windows.chunks(len(bucket), places * upper):
            chosen = bucket[part]
            few = table[:upper, chosen]
            labels = _decide(windows, cells[chosen], nodes[chosen], few)
            # Turned round first: writing turned labels to scattered cells is far slower.
            blocks[mixed[chosen]] = labels.to(blocks.dtype).permute(2, 0, 1).contiguous()
    bucket = (counts > lower).nonzero().squeeze(1)
    _decide_all(windows, cells[bucket], mixed[bucket], blocks)
    return windows.assemble(blocks)


def _few_candidates(windows: Windows, nodes: Tensor, seen: Tensor, mixed: Tensor) -> bool:
    """Whether looking for candidates pays, judged by a sample of the mixed cells."""
    height, width = windows.size
    dense_work = windows.batch * height * width * windows.classes
    if len(mixed) * windows.taps * windows.classes > SCAN_SHARE * dense_work:
        return False
    if len(mixed) <= SAMPLE:
        return True
    sample = mixed[:: len(mixed) // SAMPLE]
    counts = _candidates(windows, nodes[sample], seen[sample])[1]
    places = windows.places[0] * windows.places[1]
    mean = int(counts.sum()) / len(sample)
    return mean * places * len(mixed) <= CANDIDATE_SHARE * dense_work


def _candidates(windows: Windows, nodes: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Which classes can win somewhere in each cell.

    Args:
        windows: the resize.
        nodes: int64 (m, taps) positions of the cells' windows.
        seen: int64 (m, taps) best class at each of them.

    Returns:
        candidates int32 (n,), cell after cell, in rising order; counts (m,) of each cell, at
        least 2 where the winners differ.
    """
    values = windows.gather(nodes)  # (m, taps, K)
    taps = nodes.shape[1]
    mean = values.gather(2, seen[:, None, :].expand(-1, taps, -1)).mean(dim=2, keepdim=True)
    values -= mean
    possible = functools.reduce(torch.maximum, values.unbind(1)) >= 0  # (m, K), ties included
    # So are the winners, but for the rounding of their mean.
    possible.scatter_(1, seen, True)
    labels = where_true(possible.view(-1)) % windows.classes
    return labels.int(), possible.sum(dim=1)  # labels of all cells are kept at once


def _table(candidates: Tensor, counts: Tensor) -> Tensor:
    """Candidates side by side: int32 (c, m), padded with the cell's first.

    c is the largest count, or the largest bucket if that is smaller.
    """
    first = counts.cumsum(0) - counts
    rank = torch.arange(min(int(counts.max()), BUCKETS[-1]), device=counts.device)[:, None]
    return candidates[first + torch.where(rank < counts, rank, 0)]


def _decide(windows: Windows, cells: Cells, nodes: Tensor, table: Tensor) -> Tensor:
    """Best of n candidates in every place.

    Args:
        windows: the resize.
        cells: the m cells.
        nodes: int64 (m, taps) positions of their windows.
        table: integers (n, m), the candidates in rising order.

    Returns:
        Class ids (R, S, m), as floating numbers (exact up to 2^24): a vectorised lerp by 0 or 1
        is several times faster than `where` on integers.
    """
    few = windows.gather_some(nodes, table)  # (taps, n, m)
    resized = windows.interpolate_some(cells, few)  # (R, S, n, m)
    names = table.to(resized.dtype)
    best, label = resized[:, :, 0], names[0].expand(*resized.shape[:2], -1)
    for candidate in range(1, len(table)):
        challenger = resized[:, :, candidate]
        better = (challenger > best).to(resized.dtype)
        label = torch.lerp(label, names[candidate].expand_as(label), better)
        best = torch.maximum(best, challenger)
    return label


def _decide_all(windows: Windows, cells: Cells, which: Tensor, blocks: Tensor) -> None:
    """Write the best of all classes into the blocks of the given cells, whose numbers are given."""
    places = windows.places[0] * windows.places[1]
    for part in windows.chunks(len(cells), places * windows.classes):
        labels = best_class(windows.interpolate_all(cells[part]))  # (m, R, S)
        blocks[which[part]] = labels.to(blocks.dtype)


def _dense(windows: Windows) -> Tensor:
    which = windows.all_numbers()
    blocks = windows.blocks(which)  # all are overwritten
    _decide_all(windows, windows.cells(which), which, blocks)
    return windows.assemble(blocks)


def topk_on_device(
    logits: Tensor, size: Size, k: int, *, input_size: Size | None = None, crop: Size | None = None
) -> tuple[Tensor, Tensor]:
    """The form of :func:`upsample_topk` for GPUs, which runs on any device."""
    windows = _open(logits, size, input_size, crop)
    height, width = windows.size
    cells = windows.all_cells()
    labels: Tensor | None = None
    for part in windows.chunks(len(cells), windows.places[0] * windows.places[1] * windows.classes):
        here = cells[part]
        resized = windows.interpolate_all(here)  # (m, R, S, K)
        if k == 1:
            label = best_class(resized)[..., None]
            best = resized.gather(3, label)
        else:
            best, label = resized.topk(k, dim=3)
        total = resized.sub_(best[..., :1]).exp_().sum(dim=3, keepdim=True)
        share = (best - best[..., :1]).exp_() / total
        if labels is None:
            pixels = windows.batch * height * width
            labels = label.new_empty(pixels, k)
            probabilities = share.new_empty(pixels, k)
        targets = windows.targets(here)
        labels[targets] = label
        probabilities[targets] = share
    assert labels is not None  # there is at least one cell
    shape = (windows.batch, height, width, k)
    return (
        labels.view(shape).permute(0, 3, 1, 2),
        probabilities.view(shape).permute(0, 3, 1, 2),
    )


def _promote(logits: Tensor) -> Tensor:
    """Logits in the dtype that is computed in: float64 stays, all else becomes float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _open(logits: Tensor, size: Size, input_size: Size | None, crop: Size | None) -> Windows:
    """Lay the resize out."""
    rows, columns = (
        tensor_plan(
            logits.shape[2 + axis],
            size[axis],
            between=None if input_size is None else input_size[axis],
            kept=None if crop is None else crop[axis],
            device=logits.device,
        )
        for axis in range(2)
    )
    windows = Windows(_promote(logits.detach()), rows, columns)
    require_finite(windows.positions)
    return windows


def _check(logits: Tensor, size: Size, input_size: Size | None, crop: Size | None) -> None:
    if logits.ndim != 4 or not logits.is_floating_point() or 0 in logits.shape:
        raise DataError(
            "upsample",
            found=f"{logits.dtype} logits of shape {tuple(logits.shape)}",
            expected="floating (batch, classes, height, width), none of them 0",
            remedy="add a leading dimension for a single image",
        )
    check_sizes(size, input_size, crop)
