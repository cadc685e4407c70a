"""Chunks of pseudo-experiments: each is drawn from a seed of its own, wherever and whenever it is drawn.

Chunk i of a run takes its randomness from (seed, i) alone and is calculated by one thread: sums in another order differ
in the last digit, and torch's order depends on the number of threads. So a run has one answer, bit for bit, for any
number of workers and after any interruption.
"""

from __future__ import annotations

__all__ = ["Arrays", "Chunk", "Job", "chunks_of", "digest", "draw", "naming"]

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.parallel import one_thread
from specfit.randomness import independent_rng

Arrays = dict[str, npt.NDArray[Any]]
"""What a chunk holds: arrays by name, one row a pseudo-experiment."""


class Job(Protocol):
    """What is done in every pseudo-experiment.

    Several workers need it to be picklable, a worker with several threads calls it from all of them, and its answer may
    depend on nothing but its fields and `rng`. A job that calculates with numpy's linear algebra limits the threads of
    that itself; torch's are limited for it.
    """

    def __call__(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Draws `size` pseudo-experiments; every tensor has shape `(size, *)`."""
        ...

    def identity(self) -> dict[str, Any]:
        """Describes everything that determines the answer, as plain data: settings, and `digest` of larger things."""
        ...


@dataclass(frozen=True)
class Chunk:
    """Pseudo-experiments `first` to `end` - 1 of a run, counted from 0.

    Args:
        index: Number of the chunk, which seeds it.
        first: Its first pseudo-experiment.
        end: The one after its last.
    """

    index: int
    first: int
    end: int

    @property
    def size(self) -> int:
        """Number of pseudo-experiments."""
        return self.end - self.first


def chunks_of(n: int, chunk_size: int) -> list[Chunk]:
    """Cuts a run into chunks; the last one takes what is left."""
    return [Chunk(i, first, min(first + chunk_size, n)) for i, first in enumerate(range(0, n, chunk_size))]


def draw(job: Job, chunk: Chunk, seed: int) -> Arrays:
    """Draws one chunk.

    Raises:
        InputError: The job did not answer with tensors of `chunk.size` rows.
    """
    with one_thread():
        answer: Any = job(chunk.size, independent_rng((seed, chunk.index)))
    if not isinstance(answer, dict) or not answer:
        raise InputError(f"job: a dictionary of tensors is expected, {answer!r} came")
    return {name: _array(name, value, chunk.size) for name, value in answer.items()}


@contextmanager
def naming(chunk: Chunk, seed: int) -> Iterator[None]:
    """Adds to an error which chunk it came from and how to see it again."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"in pseudo-experiments {chunk.first} to {chunk.end - 1}: "
            f"job({chunk.size}, independent_rng(({seed}, {chunk.index}))) repeats them"
        )
        raise


def digest(value: Any) -> str:
    """Computes a fingerprint (SHA-256) of tensors, arrays and plain data, nested in mappings and sequences.

    The state of a net, `net.state_dict()`, can be given as it is. Values of another type or shape count as different.

    Raises:
        InputError: Something else is in it, whose content is not known.

    Example:
        >>> digest({"mass": 125.0, "counts": torch.ones(3)})[:12]
        '1c4656272eb2'
    """
    sha = hashlib.sha256()
    for part in _parts(value):
        # With its length, so that no two sequences of parts run together to the same bytes.
        sha.update(len(part).to_bytes(8, "little") + part)
    return sha.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "O":
        yield from (value.dtype.str.encode(), repr(value.shape).encode(), value.tobytes())
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key in sorted(value):
            yield from (repr(key).encode(), *_parts(value[key]))
    elif isinstance(value, list | tuple):
        yield f"sequence {len(value)}".encode()
        for item in value:
            yield from _parts(item)
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        yield repr(value).encode()
    else:
        raise InputError(f"digest: tensors, arrays and plain data are expected, {type(value).__name__} came")


def _array(name: Any, value: Any, size: int) -> npt.NDArray[Any]:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise InputError(f"job: tensors by name are expected, {type(value).__name__} came under {name!r}")
    if value.ndim == 0 or len(value) != size:
        raise InputError(f"job: {name} must have {size} rows, one a pseudo-experiment; shape {tuple(value.shape)} came")
    array: npt.NDArray[Any] = value.detach().cpu().numpy()
    return array
