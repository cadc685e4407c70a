"""Pieces of one computation on all cores: each piece by one thread, so that the answer does not depend on how many."""

from __future__ import annotations

__all__ = ["on_all_cores"]

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Answer = TypeVar("Answer")


def on_all_cores(compute: Callable[[Piece], Answer], pieces: Iterable[Piece]) -> list[Answer]:
    """Computes each piece, as many at a time as torch has threads (`torch.set_num_threads`), and keeps their order.

    Many small operations one after the other keep one core busy each; torch's own threads would share out every
    single operation and wait for each other after it. Gradients are not recorded.
    """
    waiting, n_threads = list(pieces), torch.get_num_threads()
    try:
        if n_threads == 1 or len(waiting) < 2:
            torch.set_num_threads(1)
            return [_without_gradient(compute, piece) for piece in waiting]
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(lambda piece: _without_gradient(compute, piece), waiting))
    finally:
        torch.set_num_threads(n_threads)


def _without_gradient(compute: Callable[[Piece], Answer], piece: Piece) -> Answer:
    with torch.no_grad():  # the mode is a thread's own
        return compute(piece)
