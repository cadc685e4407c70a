"""Pseudo-experiments at scale: drawn in chunks, on one or many processes, stored as they come, continued after a stop.

A run is a job, a number of pseudo-experiments and a seed. Chunk i draws from a source of randomness made of (seed, i)
alone and by one thread, so its answer is the same, bit for bit, for any number of workers, and however often it was
stopped (on one kind of processor; another may differ in the last digit).

With `store=` a run can be stopped at any moment, also by a power cut, and asked for more later: whole chunks are taken
as they are. Where `n` is no multiple of `chunk_size` the last chunk is a smaller one, which another `n` does not reuse:
the size of a chunk is part of what is drawn. Make `n` a multiple of `chunk_size` and a run is the beginning of every
longer one.

What to use when: `run_pseudo_experiments` draws; `global_p_value` compares the data with what was drawn; `digest` is
for the `identity()` of a job.
"""

from __future__ import annotations

__all__ = ["Job", "PseudoExperiments", "Running", "digest", "run_pseudo_experiments", "whole"]

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.progress import progress_bar
from specfit.search.toys.chunks import Arrays, Chunk, Job, chunks_of, digest, draw, naming
from specfit.search.toys.software import software
from specfit.search.toys.store import SOFTWARE, ChunkStore, open_store
from specfit.search.toys.workers import draw_on_workers

Report = Callable[[int, int], None]
# Longer than a few chunks take: the time left is judged by the chunks of this many seconds.
SPEED_MEMORY = 24 * 3600.0


@dataclass(frozen=True, eq=False)
class PseudoExperiments:
    """What was drawn.

    Args:
        values: What the job answered, by name, in order; every tensor has shape `(n, *)`.
        n: Number of pseudo-experiments.
        seed: Of the run.
        chunk_size: Pseudo-experiments that were drawn from one seed.
        identity: What the job said of itself.
        n_from_store: How many were there already.
    """

    values: dict[str, Tensor]
    n: int
    seed: int
    chunk_size: int
    identity: dict[str, Any]
    n_from_store: int = 0


def run_pseudo_experiments(
    job: Job,
    n: int,
    *,
    seed: int,
    chunk_size: int = 500,
    store: str | Path | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    progress: bool | Report = False,
) -> PseudoExperiments:
    """Draws pseudo-experiments, or those that a store lacks.

    Args:
        job: What is done in each; see `Job`.
        n: How many.
        seed: Decides, with `chunk_size`, every one of them; 0 or more.
        chunk_size: How many are drawn from one seed and stored at once, so also how many a stop may cost each worker.
            A few seconds of work or more keep the cost of sending and storing negligible.
        store: A folder that keeps what is done; the same call goes on there, and one with a larger `n` adds to it.
        workers: Processes; 1 is the calling one, more are started on this machine. A script asks for more only below
            `if __name__ == "__main__":`.
        scheduler: Address of a Dask scheduler, such as `tcp://node:8786`; its workers are used instead.
        progress: True draws a bar with the time left, if standard error is a terminal; a function is called with the
            number that is done and `n`.

    Raises:
        InputError: An argument cannot be used, or the store holds another run; says what differs.
        KeyboardInterrupt: It was stopped; says what is stored and how to go on.

    Example:
        >>> class Maximum:  # of three standard normal numbers
        ...     def __call__(self, size, rng):
        ...         return {"largest": torch.randn(size, 3, generator=rng).amax(1)}
        ...
        ...     def identity(self):
        ...         return {"job": "largest of three"}
        >>> drawn = run_pseudo_experiments(Maximum(), 10_000, seed=1)
        >>> drawn.values["largest"].shape, round(drawn.values["largest"].mean().item(), 2)
        (torch.Size([10000]), 0.85)
    """
    n, seed = whole("n", n, 1), whole("seed", seed, 0)
    chunk_size, workers = whole("chunk_size", chunk_size, 1), whole("workers", workers, 1)
    if scheduler is not None and workers > 1:
        raise InputError(f"workers: {workers} came beside scheduler={scheduler!r}, which brings its own; give one")
    identity = job.identity()
    card = {"job": identity, "seed": seed, "chunk_size": chunk_size, SOFTWARE: software()}
    kept = None if store is None else open_store(store, card)
    chunks, gathered, missing = chunks_of(n, chunk_size), _Gathered(n), []
    for chunk in chunks:
        found = kept.read(chunk) if kept else None
        if found is None:
            missing.append(chunk)
        else:
            gathered.put(chunk, found)
            gathered.done += chunk.size
    n_from_store = gathered.done
    if kept and missing:
        kept.check_can_grow()
    with _how_to_go_on(chunks, gathered, kept), _reporting(progress, n) as report:
        report(gathered.done, n)
        with contextlib.closing(_drawn(job, missing, seed, workers, scheduler)) as drawn:
            for chunk, arrays in drawn:
                gathered.put(chunk, arrays)
                if kept:
                    kept.write(chunk, arrays)
                gathered.done += chunk.size
                report(gathered.done, n)
    return PseudoExperiments(gathered.tensors(), n, seed, chunk_size, identity, n_from_store)


@dataclass(frozen=True)
class Running:
    """How pseudo-experiments are run, whatever the job: arguments of `run_pseudo_experiments` that belong together.

    Args:
        seed: Decides every one of them.
        workers: Processes for them.
        scheduler: Address of a Dask scheduler.
        store: Folder that keeps them.
        progress: Whether to draw a bar, or a function that is called with what is done.
    """

    seed: int = 1
    workers: int = 1
    scheduler: str | None = None
    store: str | Path | None = None
    progress: bool | Report = False

    def values(self, job: Job, n: int, *, chunk_size: int) -> dict[str, Tensor]:
        """Draws `n` pseudo-experiments and returns what the job answered, by name."""
        return run_pseudo_experiments(
            job,
            n,
            seed=self.seed,
            chunk_size=chunk_size,
            workers=self.workers,
            scheduler=self.scheduler,
            store=self.store,
            progress=self.progress,
        ).values

    def inside(self, folder: str) -> Running:
        """Keeps what is drawn in a folder inside the store, if there is one."""
        return self if self.store is None else dataclasses.replace(self, store=Path(self.store) / folder)


def whole(name: str, value: Any, least: int) -> int:
    """Checks an argument that counts something.

    Raises:
        InputError: It is no whole number from `least` upwards; names it.
    """
    if not isinstance(value, Integral) or value < least:
        raise InputError(f"{name}: a whole number from {least} upwards is expected, {value!r} came")
    return int(value)


def _drawn(
    job: Job, chunks: Sequence[Chunk], seed: int, workers: int, scheduler: str | None
) -> Generator[tuple[Chunk, Arrays], None, None]:
    workers = min(workers, len(chunks))
    if chunks and (scheduler is not None or workers > 1):
        yield from draw_on_workers(job, chunks, seed=seed, workers=workers, scheduler=scheduler)
        return
    for chunk in chunks:
        with naming(chunk, seed):
            arrays = draw(job, chunk, seed)
        yield chunk, arrays


@dataclass
class _Gathered:
    """Chunks in their places, as they come."""

    n: int
    arrays: Arrays = field(default_factory=dict)
    done: int = 0

    def put(self, chunk: Chunk, arrays: Arrays) -> None:
        if not self.arrays:
            self.arrays = {name: np.empty((self.n, *some.shape[1:]), some.dtype) for name, some in arrays.items()}
        if _layout(arrays) != _layout(self.arrays):
            raise InputError(
                f"job: {_layout(arrays)} came for pseudo-experiments {chunk.first} to {chunk.end - 1}, "
                f"{_layout(self.arrays)} before; names, shapes and types must not change"
            )
        for name, some in arrays.items():
            self.arrays[name][chunk.first : chunk.end] = some

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array) for name, array in self.arrays.items()}


def _layout(arrays: Arrays) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape[1:])}" for name, array in arrays.items()}


def _reporting(progress: bool | Report, n: int) -> AbstractContextManager[Report]:
    if callable(progress):
        return contextlib.nullcontext(progress)
    if progress:
        return progress_bar("pseudo-experiments", n, speed_memory=SPEED_MEMORY)
    return contextlib.nullcontext(lambda *_: None)


@contextmanager
def _how_to_go_on(chunks: Sequence[Chunk], gathered: _Gathered, kept: ChunkStore | None) -> Iterator[None]:
    """Lets a stop say what it leaves behind."""
    try:
        yield
    except KeyboardInterrupt:
        if kept is None:
            left = "none are kept, give a store=FOLDER for that"
            raise KeyboardInterrupt(
                f"stopped after {gathered.done} of {gathered.n} pseudo-experiments; {left}"
            ) from None
        # Of the folder itself: the stop may have come between a file and its count.
        done = sum(chunk.size for chunk in chunks if kept.has(chunk))
        left = f"which are in {kept.folder}; the same call goes on from there"
        raise KeyboardInterrupt(f"stopped after {done} of {gathered.n} pseudo-experiments, {left}") from None
