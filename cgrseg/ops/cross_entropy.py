"""Cross-entropy of bilinearly upsampled logits, without the upsampled logits.

At 512x512 and 150 classes the full-size logits of one image take 157 MB, and the plain loss
(resize, log-softmax, pick the label's class) holds several such tensors until the backward
pass.  Here the pixels are visited in cache-sized blocks: interpolate, softmax, loss, and at once
the gradient, carried back to the low-resolution logits.  Only that gradient, as small as the
logits, is kept; the backward pass multiplies it by what arrives from above.  Nothing is
approximated.

For one labeled pixel with logits z (interpolated), label t, K classes, class weights c and
label smoothing e, as in ``torch.nn.functional.cross_entropy``::

    loss = - sum_k q_k log softmax(z)_k      q_k = (1 - e) c_t [k = t] + e c_k / K
    dloss / dz_k = (sum q) softmax(z)_k - q_k
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cgrseg.errors import DataError
from cgrseg.ops.argmax import upsample_argmax
from cgrseg.ops.windows import Windows, tensor_plan

Average = Literal["all", "valid", "sum"]

# 8 MB of logits per chunk: each chunk takes some twenty operations, whose calls cost more than
# cache misses (4 images, 512x512, 150 classes, two cores of an AMD EPYC: 417 ms, with 2 MB 560 ms).
_CHUNK_TIMES = 4


def upsample_cross_entropy_reference(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    average: Average = "all",
) -> Tensor:
    """Plain version of :func:`upsample_cross_entropy`; same arguments and result."""
    _check(logits, target, ignore_index, weight, label_smoothing, average)
    logits, weight = _promote(logits, weight)
    resized = F.interpolate(logits, size=target.shape[1:], mode="bilinear", align_corners=False)
    losses = F.cross_entropy(
        resized,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return losses.sum() / _divisor(target, ignore_index, weight, average, losses.dtype)


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    average: Average = "all",
) -> Tensor:
    """Cross-entropy between logits, resized to the labels' size, and the labels.

    Value and gradient are those of a bilinear resize (``align_corners=False``) followed by
    ``torch.nn.functional.cross_entropy``, computed in float32 (float64 for float64 logits)
    whatever the precision of the logits; the gradient comes in the logits' own dtype.  It can be
    differentiated once: a second derivative raises an error.  Inside ``torch.compile`` it is one
    opaque operation.

    Args:
        logits: (N, K, h, w) floating, any strides (channels-last saves a copy).
        target: int64 (N, H, W), 0..K-1 or ``ignore_index``.  Other ids raise an error on a
            processor; on a GPU, where looking would wait for the device, they fail a device
            assertion, as with PyTorch's own loss.
        ignore_index: label value without loss and gradient.
        weight: (K,) factor of each class, >= 0, or ``None`` for 1.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1].
        average: what the sum of the pixels' losses is divided by.  ``"all"``: the number of
            pixels N * H * W, ignored ones included, weights or not (as published).  ``"valid"``:
            the sum of the labels' class weights over the labeled pixels, as PyTorch's
            ``"mean"``; where that is 0, loss and gradient are 0 (PyTorch: NaN or infinite).
            ``"sum"``: 1.

    Returns:
        Scalar, float32 (float64 for float64 logits).

    Raises:
        DataError: a shape, type or value that does not fit.
    """
    _check(logits, target, ignore_index, weight, label_smoothing, average)
    values, weight = _promote(logits, weight)
    wanted = torch.is_grad_enabled() and logits.requires_grad
    loss, _ = _fused(values, target, weight, ignore_index, label_smoothing, wanted)
    return loss / _divisor(target, ignore_index, weight, average, loss.dtype)


@torch.library.custom_op("cgrseg::upsample_cross_entropy_sum", mutates_args=())
def _fused(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    gradient_wanted: bool,
) -> tuple[Tensor, Tensor]:
    with torch.autocast(logits.device.type, enabled=False):
        return _sum_and_gradient(
            logits, target, weight, ignore_index, label_smoothing, gradient_wanted
        )


def _sum_and_gradient(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    gradient_wanted: bool,
) -> tuple[Tensor, Tensor]:
    """Summed loss, and its gradient by the logits (empty unless wanted)."""
    classes = logits.shape[1]
    rows, columns = (
        tensor_plan(logits.shape[axis], target.shape[axis - 1], device=logits.device)
        for axis in (2, 3)
    )
    windows = Windows(logits, rows, columns)
    cells = windows.all_cells()
    labels = target.reshape(-1)
    wide = _widest(logits)
    total = logits.new_zeros((), dtype=wide)
    gradient = torch.zeros_like(windows.positions) if gradient_wanted else None
    spread = None  # smoothing's part of q, per class
    if label_smoothing > 0.0:
        ones = logits.new_ones(classes)
        spread = (ones if weight is None else weight) * (label_smoothing / classes)
    # Everything that has one number per pixel is laid out by cells once: (m, R, S).
    label = labels[windows.targets(cells)]
    counted = (label != ignore_index) & windows.real(cells)
    label = torch.where(counted, label, 0)
    mass = counted.to(logits.dtype)  # sum of q
    sharp = mass * (1.0 - label_smoothing)  # q of the label's class, its share of smoothing aside
    if weight is not None:
        sharp *= weight[label]
    mass = sharp if spread is None else sharp + mass * spread.sum()
    # The gradient is (softmax - q / mass) times mass, which is applied on the way back.
    share = torch.where(mass > 0, 1.0 / mass, 0.0)
    elements = windows.places[0] * windows.places[1] * classes
    for part in windows.chunks(len(cells), elements, _CHUNK_TIMES):
        here, index = cells[part], label[part][..., None]
        logarithms = torch.log_softmax(windows.interpolate_all(here), dim=3)  # (m, R, S, K)
        chosen = logarithms.gather(3, index).squeeze(3)
        total -= (sharp[part] * chosen).sum(dtype=wide)
        if spread is not None:
            total -= ((logarithms * spread).sum(dim=3) * counted[part]).sum(dtype=wide)
        if gradient is not None:
            sent = logarithms.exp_()
            sent.scatter_add_(3, index, -(sharp[part] * share[part])[..., None])
            if spread is not None:
                sent.addcmul_(share[part][..., None], spread, value=-1.0)
            windows.scatter_back(here, sent, mass[part], gradient)
    if gradient is None:
        return total.to(logits.dtype), logits.new_empty(0)
    batch, _, height, width = logits.shape
    gradient = gradient.view(batch, height, width, classes).permute(0, 3, 1, 2)
    return total.to(logits.dtype), gradient.contiguous(memory_format=_layout(logits))


def _layout(logits: Tensor) -> torch.memory_format:
    """Of the gradient: that of the logits, so that the way back need not convert it."""
    channels_last = logits.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not logits.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


@_fused.register_fake
def _(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    gradient_wanted: bool,
) -> tuple[Tensor, Tensor]:
    if not gradient_wanted:
        return logits.new_empty(()), logits.new_empty(0)
    return logits.new_empty(()), torch.empty_like(logits, memory_format=_layout(logits))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, by_loss: Tensor, _by_gradient: Tensor | None) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # create_graph=True: the saved gradient knows no derivative
        raise RuntimeError(
            "upsample_cross_entropy can be differentiated once only; for a second derivative "
            "use upsample_cross_entropy_reference"
        )
    (gradient,) = ctx.saved_tensors
    return gradient * by_loss, None, None, None, None, None


_fused.register_autograd(_backward, setup_context=_remember)


def upsample_accuracy(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Percent of the labeled pixels whose best class, after resizing, is the label.

    A second pass beside the loss, and a small one: see
    :func:`cgrseg.ops.upsample_argmax`.

    Args:
        logits: (N, K, h, w), all finite.
        target: int64 (N, H, W).
        ignore_index: label value that does not count.

    Returns:
        float32 scalar in 0..100; 0 where nothing is labeled.
    """
    labeled = target != ignore_index
    right = (upsample_argmax(logits, (target.shape[1], target.shape[2])) == target) & labeled
    return 100.0 * right.sum() / labeled.sum().clamp(min=1)


def _promote(logits: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both in the dtype that is computed in: float64 stays, all else becomes float32."""
    values = logits if logits.dtype == torch.float64 else logits.float()
    return values, None if weight is None else weight.detach().to(values)


def _divisor(
    target: Tensor, ignore_index: int, weight: Tensor | None, average: Average, dtype: torch.dtype
) -> Tensor | int:
    """What the summed loss is divided by: a number, or a scalar, infinite where nothing counts.

    Where it is known beforehand it stays a number: moved to a GPU it would make the processor
    wait for all that is under way there.
    """
    if average == "all":
        return target.numel()
    if average == "sum":
        return 1
    labeled = target != ignore_index
    if weight is None:
        divisor = labeled.sum()
    else:
        chosen = weight[torch.where(labeled, target, 0)] * labeled
        divisor = chosen.sum(dtype=_widest(chosen))
    return torch.where(divisor > 0, divisor.to(dtype), torch.inf)


def _widest(values: Tensor) -> torch.dtype:
    """What long sums are kept in: float64, which Apple's GPUs do not have."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def _check(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    weight: Tensor | None,
    label_smoothing: float,
    average: str,
) -> None:
    def refuse(found: str, expected: str, remedy: str) -> DataError:
        return DataError("upsample_cross_entropy", found=found, expected=expected, remedy=remedy)

    if logits.ndim != 4 or not logits.is_floating_point() or 0 in logits.shape:
        raise refuse(
            f"{logits.dtype} logits of shape {tuple(logits.shape)}",
            "floating (batch, classes, height, width), none of them 0",
            "add a leading dimension for a single image",
        )
    fits = target.ndim == 3 and len(target) == len(logits) and 0 not in target.shape
    if not fits or target.dtype != torch.int64:
        raise refuse(
            f"{target.dtype} labels of shape {tuple(target.shape)}",
            f"int64 ({len(logits)}, height, width)",
            "pass one label map of class indices per image, converted by .long()",
        )
    classes = logits.shape[1]
    if weight is not None and tuple(weight.shape) != (classes,):
        raise refuse(
            f"class weights of shape {tuple(weight.shape)}",
            f"({classes},), one per class",
            "give one weight per class in id order",
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise refuse(f"label_smoothing = {label_smoothing}", "0 to 1", "correct label_smoothing")
    if average not in ("all", "valid", "sum"):
        raise refuse(f"average = {average!r}", "'all', 'valid' or 'sum'", "correct average")
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        if weight is not None and bool((weight < 0).any()):
            raise refuse(
                f"a class weight of {float(weight.min()):g}",
                "weights of at least 0",
                "correct the weights; 0 leaves a class out",
            )
        wrong = ((target < 0) | (target >= classes)) & (target != ignore_index)
        if bool(wrong.any()):
            ids = sorted(set(target[wrong].tolist()))
            raise refuse(
                f"label ids {ids[:10]} in {int(wrong.sum())} pixels",
                f"0 to {classes - 1}, or {ignore_index} for ignored pixels",
                "check that the number of classes and the label rule fit the dataset",
            )
