"""A fake CUDA device: real arithmetic on the CPU, for tests of the places of tensors.

Inside `fake_cuda()` a tensor that is moved to or created on "cuda" says that it is there
(`device`, `is_cuda`), refuses to become a NumPy array, and an operation on tensors of different
devices raises PyTorch's own error.  The values stay on the CPU and are real, unlike those of
PyTorch's `FakeTensorMode`, so code that depends on values (`nonzero`, `unique`, masks) runs too.

Two modes do this.  The function mode sees each call from Python: it answers `device`, and turns
`device="cuda"` into a mark on the result.  The dispatch mode sees each operation that PyTorch
runs, those of the backward pass too: it compares the devices of the operands and marks results.

PyTorch's `FakeTensorMode` cannot be used here: a build without CUDA ends the process at the first
backward pass of a fake CUDA tensor (PyTorch 2.13).

Not covered: CUDA kernels themselves, streams, several GPUs, threads that the code starts
(a thread has no modes), and compiled code.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

_aten = torch.ops.aten
# Operations that take tensors of several devices.
_ACROSS = {
    _aten.copy_.default,
    _aten._foreach_copy_.default,
    _aten._to_copy.default,
    _aten.lift_fresh.default,
}
# Operations whose indices (second argument) may be on the CPU.
_INDEXED = {
    _aten.index.Tensor,
    _aten._unsafe_index.Tensor,
    _aten.index_put_.default,
    _aten.index_put.default,
    _aten._index_put_impl_.default,
}
# Operations that refuse even a scalar of another device: all operands go to one kernel.
_STRICT = {"cat", "stack", "mm", "bmm", "addmm", "convolution", "gather", "index_select", "scatter"}


def device_of(value: Tensor) -> torch.device:
    """The device that a tensor says it is on."""
    return value.__dict__.get("fake_device", CPU) if hasattr(value, "__dict__") else CPU


def _mark(value: Any, device: torch.device) -> None:
    for one in tree_leaves(value):
        if isinstance(one, Tensor):
            one.__dict__["fake_device"] = device


def _tensors(*values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]


def _named(device: Any) -> torch.device:
    """A device as "cuda:0" or "cpu"; other devices pass unchanged."""
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return CUDA if found.type == "cuda" and found.index is None else found


class _Move(torch.autograd.Function):
    """A copy to another device, whose gradient goes back to the first one."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, device: torch.device, layout: Any) -> Tensor:
        ctx.home = device_of(value)
        moved = value.clone(memory_format=layout)
        _mark(moved, device)
        return moved

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        back = gradient.clone()
        _mark(back, ctx.home)
        return back, None, None


class FakeCuda(TorchDispatchMode):
    """The dispatch mode; `functions` is the function mode beside it.

    Attributes:
        mistakes: messages of all refused operations, those too whose error was caught.
        operations: number of operations that had an operand on the fake GPU.
    """

    def __init__(self, custom: dict[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.custom = custom
        self.functions = _Functions(self)
        self.mistakes: list[str] = []
        self.operations = 0
        self.new_tensors = [CPU]  # device of tensors that operations create from nothing

    @contextlib.contextmanager
    def creating_on(self, device: torch.device) -> Iterator[None]:
        """Mark tensors that PyTorch creates inside an operation."""
        self.new_tensors.append(device)
        try:
            yield
        finally:
            self.new_tensors.pop()

    def refuse(self, message: str, kind: type[Exception] = RuntimeError) -> Exception:
        """Note a mistake and give the error to raise."""
        self.mistakes.append(message)
        return kind(message)

    def common_device(self, operation: Any, args: Any, kwargs: Any) -> torch.device | None:
        """Device of the operands; None without operands.

        Raises:
            RuntimeError: operands on different devices, with PyTorch's message.
        """
        operands = _tensors(args, kwargs)
        places = {device_of(one) for one in operands}
        if len(places) < 2:
            return next(iter(places), None)
        if operation in _ACROSS:
            return device_of(operands[0])
        main = next(one for one in operands if device_of(one).type == "cuda")
        excused: set[int] = set()
        if operation in _INDEXED:
            main = operands[0]
            if device_of(main).type == "cuda":
                excused = {id(one) for one in _tensors(args[1])}
        name = operation.name().partition("::")[2].partition(".")[0]
        scalars = name not in _STRICT
        wrong = [
            one
            for one in operands
            if device_of(one) != device_of(main)
            and id(one) not in excused
            and not (scalars and one.dim() == 0 and device_of(one) == CPU)
        ]
        if wrong:
            shapes = ", ".join(f"{tuple(one.shape)} on {device_of(one)}" for one in operands)
            raise self.refuse(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{device_of(main)} and {device_of(wrong[0])}! ({name}: {shapes})"
            )
        return device_of(main)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        device = self.common_device(func, args, kwargs)
        self.operations += device == CUDA
        python = self.custom.get(func.name())
        if python is not None:  # an operation of ours: its inside is checked as well
            with self, self.functions:
                return python(*args, **kwargs)
        generator = kwargs.get("generator")
        place = self.new_tensors[-1] if device is None else device
        if generator is not None and generator.device.type != place.type:
            raise self.refuse(f"Expected a '{place.type}' device type for generator ({func})")
        found = func(*args, **kwargs)
        given = {id(one) for one in _tensors(args, kwargs)}
        _mark([one for one in _tensors(found) if id(one) not in given], place)
        return found


class _Functions(TorchFunctionMode):
    def __init__(self, owner: FakeCuda) -> None:
        super().__init__()
        self.owner = owner
        of: Any = torch.Tensor
        self.answers: dict[Any, Callable[..., Any]] = {
            of.device.__get__: device_of,
            of.is_cuda.__get__: lambda value: device_of(value).type == "cuda",
            of.is_cpu.__get__: lambda value: device_of(value).type == "cpu",
            of.get_device: lambda value: 0 if device_of(value).type == "cuda" else -1,
            of.data.__set__: self._set_data,
            of.grad.__set__: self._set_gradient,
            of.numpy: functools.partial(self._array, of.numpy),
            of.__array__: functools.partial(self._array, of.__array__),
            of.to: self._to,
            of.cpu: lambda value, **options: self._to(value, CPU, **options),
            of.cuda: lambda value, device=CUDA, **options: self._to(value, device, **options),
            of.pin_memory: lambda value, *args: value,
            of.backward: self._backward,
            of.__deepcopy__: self._deepcopy,
            torch.as_tensor: functools.partial(self._as_tensor, torch.as_tensor),
            torch.asarray: functools.partial(self._as_tensor, torch.asarray),
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        answer = self.answers.get(func)
        if answer is not None:
            return answer(*args, **kwargs)
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = CPU
        operands = _tensors(args, kwargs)
        if asked is None:
            places = [device_of(one) for one in operands]
            place = CUDA if CUDA in places else CPU
        else:
            place = _named(asked)
        with self.owner.creating_on(place):
            found = func(*args, **kwargs)
        if asked is not None:
            given = {id(one) for one in operands}
            _mark([one for one in _tensors(found) if id(one) not in given], place)
        return found

    def _set_data(self, value: Tensor, data: Tensor) -> None:
        torch.Tensor.data.__set__(value, data)  # type: ignore[attr-defined]
        _mark(value, device_of(data))

    def _set_gradient(self, value: Tensor, gradient: Tensor | None) -> None:
        if gradient is not None and device_of(gradient) != device_of(value):
            raise self.owner.refuse("assigned grad has data located on a different device")
        torch.Tensor.grad.__set__(value, gradient)  # type: ignore[attr-defined]

    def _array(self, convert: Callable[..., Any], value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if device_of(value).type == "cuda":
            raise self.owner.refuse(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first.",
                TypeError,
            )
        return convert(value, *args, **kwargs)

    def _to(self, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target = kwargs.pop("device", None)
        for one in args:
            if isinstance(one, Tensor):
                target, kwargs["dtype"] = device_of(one), one.dtype
            elif isinstance(one, torch.dtype):
                kwargs["dtype"] = one
            elif isinstance(one, bool):
                kwargs["copy" if "non_blocking" in kwargs else "non_blocking"] = one
            elif one is not None:
                target = one
        target = device_of(value) if target is None else _named(target)
        with self.owner.creating_on(device_of(value)):
            found = value.to(**kwargs)
            if target != device_of(value):
                layout = kwargs.get("memory_format", torch.preserve_format)
                found = _Move.apply(found, target, layout)  # type: ignore[no-untyped-call]
        return found

    def _as_tensor(self, convert: Callable[..., Any], data: Any, **kwargs: Any) -> Tensor:
        target = kwargs.pop("device", None)
        home = device_of(data) if isinstance(data, Tensor) else CPU
        with self.owner.creating_on(home):
            found: Tensor = convert(data, **kwargs)
        return found if target is None else self._to(found, target)

    def _backward(self, value: Tensor, gradient: Any = None, *args: Any, **kwargs: Any) -> None:
        # With the mode on, so that Python code of the backward pass is seen.
        with self, self.owner.creating_on(device_of(value)):
            torch.autograd.backward(value, gradient, *args, **kwargs)

    def _deepcopy(self, value: Tensor, memo: Any) -> Tensor:
        found = torch.Tensor.__deepcopy__(value, memo)
        _mark(found, device_of(value))
        return found


class _Autocast(torch.autocast):
    """Autocast of the fake GPU, run by that of the CPU; autocast of the CPU does nothing."""

    def __init__(
        self,
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        self.of_gpu = device_type.startswith("cuda")
        super().__init__("cpu", dtype or torch.float16, enabled and self.of_gpu, cache_enabled)

    def __enter__(self) -> Any:
        return super().__enter__() if self.of_gpu else self

    def __exit__(self, *error: Any) -> Any:
        return super().__exit__(*error) if self.of_gpu else None


def _grouped(lists: list[list[Any]], with_indices: bool = False) -> dict[Any, Any]:
    """`torch._C._group_tensors_by_device_and_dtype` for marked tensors."""
    groups: dict[Any, Any] = {}
    for number, first in enumerate(lists[0]):
        key = (device_of(first), first.dtype)
        columns, numbers = groups.setdefault(key, ([[] for _ in lists], []))
        for column, values in zip(columns, lists, strict=True):
            if values:
                column.append(values[number])
        numbers.append(number)
    return groups


def _make_subclass(cls: Any, data: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`torch.Tensor._make_subclass`, which `nn.Parameter` calls, for marked tensors."""
    found: Tensor = torch._C.TensorBase._make_subclass(cls, data, *args, **kwargs)
    _mark(found, device_of(data))
    return found


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """A machine with one GPU, as far as Python code can tell.

    Raises:
        AssertionError: at the end, when an operation was refused and the error was caught.
    """
    from cgrseg.ops import cross_entropy

    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "manual_seed_all": None,
        "max_memory_allocated": 0,
        "get_device_name": "fake GPU",
        "get_device_capability": (9, 0),
        "is_current_stream_capturing": False,
        "is_bf16_supported": True,
    }
    name = "cgrseg::upsample_cross_entropy_sum"
    device = FakeCuda({name: cross_entropy._fused._init_fn})
    with contextlib.ExitStack() as ends:
        for function, answer in answers.items():
            fake = functools.partial(lambda answer, *args, **kwargs: answer, answer)
            ends.enter_context(mock.patch.object(torch.cuda, function, fake))
        ends.enter_context(mock.patch.object(torch, "autocast", _Autocast))
        ends.enter_context(
            mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", _grouped)
        )
        ends.enter_context(
            mock.patch.object(torch.Tensor, "_make_subclass", staticmethod(_make_subclass))
        )
        ends.enter_context(device)
        ends.enter_context(device.functions)
        yield device
    assert not device.mistakes, device.mistakes
