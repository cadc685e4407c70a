"""The door for users' arrays: in as float64 tensors, out as the kind that came.

Inside specfit everything is a tensor. A list, a numpy array or a float becomes one here, once, and the answer
goes back as numpy if no tensor was among the arguments.
"""

from __future__ import annotations

__all__ = ["ArrayLike", "as_float64", "same_kind", "usable_device"]

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specfit.errors import InputError

ArrayLike = Tensor | npt.ArrayLike
"""What a public numerical argument accepts: a tensor, or anything that numpy turns into numbers."""


def as_float64(value: ArrayLike, name: str) -> Tensor:
    """Turns a user's numbers into a float64 tensor (same shape), naming the argument when that is impossible.

    Raises:
        InputError: `value` holds something else than real numbers (strings, objects, complex).
    """
    if isinstance(value, Tensor):
        if value.is_complex():
            raise InputError(f"{name}: complex numbers came, real numbers are expected")
        return value.to(torch.float64)
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged nested lists
        raise InputError(f"{name}: not a rectangular array of numbers ({error})") from None
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"{name}: real numbers are expected, an array of {array.dtype} came; convert it to float first"
        )
    # A copy, so that no later change of the user's array reaches a frozen value.
    return torch.from_numpy(array.astype(np.float64))


def usable_device(device: str | torch.device) -> torch.device:
    """Returns the device that is named, if tensors can be put there.

    Raises:
        InputError: There is no such device here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # which of them depends on how torch was built
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device: {str(device)!r} cannot be used here ({reason}); 'cpu' always can") from None


def same_kind(formula: Callable[..., Tensor]) -> Callable[..., Any]:
    """Lets an elementwise formula take any arrays: arguments become float64 tensors, the answer goes back in kind.

    With a tensor among the arguments the answer is a tensor that carries the gradient; otherwise it is a numpy
    array, or a float where every argument was a scalar. An argument whose default is None may be None.

    Raises:
        InputError: An argument is not made of real numbers, or the shapes do not broadcast.
    """
    signature = inspect.signature(formula)
    may_be_none = {name for name, parameter in signature.parameters.items() if parameter.default is None}

    @functools.wraps(formula)
    def door(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        numbers = {
            name: as_float64(value, name)
            for name, value in given.items()
            if value is not None or name not in may_be_none
        }
        _check_broadcast(numbers)
        answer = formula(**numbers)
        if any(isinstance(value, Tensor) for value in given.values()):
            return answer
        return answer.item() if answer.ndim == 0 else answer.numpy()

    return door


def _check_broadcast(numbers: dict[str, Tensor]) -> None:
    shapes = {name: tuple(value.shape) for name, value in numbers.items()}
    try:
        np.broadcast_shapes(*shapes.values())
    except ValueError:
        came = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(f"{came}: these shapes do not broadcast; give every argument the same bins") from None
