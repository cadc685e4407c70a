"""Chunks on several processes or machines, by Dask.

Workers write nothing: what they draw comes back and the caller alone stores it. So they may be on machines that share
no disk, and nothing is written twice. The job travels as the result of a task, not by `scatter`: scattered data are
gone with the last worker that held them, a task Dask repeats.

Dask's messages are pickled, and whoever reaches the port of a worker could run code in it. Processes of this machine
therefore talk by TLS with a key of this run, as other people may work on the same machine.
"""

from __future__ import annotations

__all__ = ["draw_on_workers"]

import itertools
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import current_process, resource_tracker
from typing import Any

import torch

from specfit.errors import InputError
from specfit.search.toys.chunks import Arrays, Chunk, Job, draw, naming
from specfit.search.toys.software import software

# Chunks that Dask is given beforehand: enough to keep every thread busy, and for a cluster that grows with its queue.
IN_FLIGHT_PER_THREAD, IN_FLIGHT_AT_LEAST = 2, 64
# Dask has its processes give freed memory back at once; the page faults that follow cost a third more processor time
# where tensors of a megabyte come and go.
LOCAL_CONFIGURATION = {"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}


def draw_on_workers(
    job: Job, chunks: Sequence[Chunk], *, seed: int, workers: int = 1, scheduler: str | None = None
) -> Iterator[tuple[Chunk, Arrays]]:
    """Draws chunks on workers and yields each as it comes, in any order.

    A chunk whose worker died is drawn again by another one; Dask gives up (`KilledWorker`) on a chunk that several
    workers died of. An error of the job is raised as itself.

    Args:
        job: What is drawn.
        chunks: Which chunks.
        seed: Of the run.
        workers: Processes to start on this machine, of one thread each.
        scheduler: Address of a Dask scheduler, whose workers are taken instead; they need the same specfit and torch.
            Torch stays at one thread in them.

    Raises:
        InputError: No scheduler or worker answers, a worker has other versions, or the job cannot be pickled.
    """
    from distributed import as_completed

    with _client(workers, scheduler) as client:
        remote, waiting = _send(client, job), iter(chunks)
        running, done = dict[str, Chunk](), as_completed(loop=client.loop)
        while True:
            limit = max(IN_FLIGHT_PER_THREAD * sum(client.nthreads().values()), IN_FLIGHT_AT_LEAST)
            for chunk in itertools.islice(waiting, max(0, limit - len(running))):
                future = client.submit(_draw_as_worker, remote, chunk, seed, software(), pure=False)
                running[future.key] = chunk
                done.add(future)
            if not running:
                return
            future = next(done)
            chunk = running.pop(future.key)
            with naming(chunk, seed):
                arrays = future.result()
            yield chunk, arrays


def _draw_as_worker(job: Job, chunk: Chunk, seed: int, expected: dict[str, str]) -> Arrays:
    if software() != expected:
        raise InputError(f"scheduler: a worker has {software()}, {expected} is needed; install the same there")
    # For good: a worker may have several threads, and one that put the number back would change it for the others.
    torch.set_num_threads(1)
    return draw(job, chunk, seed)


def _send(client: Any, job: Job) -> Any:
    from dask import config

    # Dask warns of anything above 10 MB and advises `scatter`, which the module docstring decides against.
    with config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
        try:
            return client.submit(_itself, job, pure=False)
        except Exception as error:  # pickling calls code of the job, which can fail in any way
            raise InputError(
                f"job: cannot be sent to another process ({error}); make it picklable, or use one worker"
            ) from error


def _itself(job: Job) -> Job:
    return job


@contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    """Yields the way to the workers and closes it; workers that were started here end with it."""
    from distributed import Client

    with ExitStack() as stack:
        if scheduler is None:
            stack.enter_context(_environment_restored())
            with _interrupt_held():
                cluster = stack.enter_context(_local_cluster(workers))
            yield stack.enter_context(Client(cluster, set_as_default=False))
            return
        try:
            client = stack.enter_context(Client(scheduler, set_as_default=False))
        except (OSError, ValueError) as error:
            raise InputError(
                f"scheduler: no Dask scheduler answers at {scheduler} ({error}); "
                "start one with `dask scheduler`, and workers with `dask worker ADDRESS`"
            ) from error
        yield client


def _local_cluster(workers: int) -> Any:
    from dask import config
    from distributed import LocalCluster, Security

    script = 'a script asks for more than one worker below `if __name__ == "__main__":`, as every process imports it'
    if getattr(current_process(), "_inheriting", False):  # a process that is importing it, as multiprocessing finds out
        raise InputError(f"workers: this script starts itself in each of the {workers} processes; {script}")
    try:
        with config.set(LOCAL_CONFIGURATION):
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                security=Security.temporary(),
                dashboard_address=None,
                memory_limit=None,  # by default one core's share of the memory, above which a worker is killed
                silence_logs=logging.ERROR,  # at a stop, it would tell of every worker in the middle of a chunk
            )
    except RuntimeError as error:
        raise InputError(f"workers: the {workers} processes did not start ({error}); {script}") from error


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Takes back what Dask sets in the environment of the calling process so that its workers inherit it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _interrupt_held() -> Iterator[None]:
    """Holds Ctrl-C back for a moment, and for good in the threads and processes that are started meanwhile.

    A terminal sends it to all processes. Only the calling one is to act on it, and then close its workers in order.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # a helper of multiprocessing, which lets signals through again as it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
