"""Pieces of one computation on all cores: each piece by one thread, so that the answer does not depend on how many."""

from __future__ import annotations

__all__ = ["on_all_cores", "one_thread"]

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Answer = TypeVar("Answer")


def on_all_cores(compute: Callable[[Piece], Answer], pieces: Iterable[Piece]) -> list[Answer]:
    """Computes each piece, as many at a time as torch has threads (`torch.set_num_threads`), and keeps their order.

    Many small operations one after the other keep one core busy each; torch's own threads would share out every
    single operation and wait for each other after it. Gradients are not recorded.
    """
    waiting = list(pieces)
    with _callers.number() as n_threads:
        if n_threads == 1 or len(waiting) < 2:
            _callers.take_one()
            return [_without_gradient(compute, piece) for piece in waiting]
        with ThreadPoolExecutor(n_threads, initializer=_callers.take_one) as pool:
            return list(pool.map(lambda piece: _without_gradient(compute, piece), waiting))


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes what is inside by one thread, also what asks for all cores."""
    with _callers.number():
        _callers.take_one()
        yield


class _Callers(threading.local):
    """Who changes the number of torch's threads, and what it was before.

    torch keeps a number for each thread of the program, and a new one begins with what any other has set last. Who
    comes while others compute would take their 1 for the user's choice, and leave it behind.
    """

    lock, inside, before = threading.Lock(), 0, 1
    alone = False
    """Whether this thread computes its pieces by itself; everything else belongs to all threads."""

    @contextmanager
    def number(self) -> Iterator[int]:
        """Says how many threads torch had before the first caller came, and gives this thread as many in the end."""
        if self.alone:  # inside of another piece, which is not over
            yield 1
            return
        with self.lock:
            if _Callers.inside == 0:
                _Callers.before = torch.get_num_threads()
            _Callers.inside += 1
            before = _Callers.before
        try:
            yield before
        finally:
            self.alone = False
            with self.lock:
                _Callers.inside -= 1
                _set(before)

    def take_one(self) -> None:
        """Lets this thread compute by itself."""
        self.alone = True
        with self.lock:
            _set(1)


_callers = _Callers()


def _set(n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    torch.get_num_threads()  # a thread that never asked takes over what another sets later


def _without_gradient(compute: Callable[[Piece], Answer], piece: Piece) -> Answer:
    with torch.no_grad():  # the mode is a thread's own
        return compute(piece)
