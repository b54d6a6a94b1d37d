"""Where the runs of a race run: worker processes on this machine, or those of a dask.distributed scheduler.

Start dask's workers with one thread each, in a folder that holds your task's file and your optimizer's module:
`dask worker tcp://... --nthreads 1`. What a worker has must be what the coordinator has: versions are compared before
the race, code and data before the runs.
"""

import contextlib
import functools
import importlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, InvalidStateError, ProcessPoolExecutor
from itertools import takewhile
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch

from fallline.bench.race.coordinator import RaceError

# --- on this machine ---

PRELOADED = ["fallline.bench.race.coordinator", "torch._dynamo"]
"""Modules that a worker needs and that take seconds to import; torch's optimizers import its compiler, used or not."""


def available_cores() -> int:
    """Cores that this process may use; on some systems not all that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Renewed(Executor):
    """An executor that is made anew when it breaks: one killed worker ends a whole `ProcessPoolExecutor`."""

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make = make
        self._inner = make()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As the executor inside does it, or the next one."""
        try:
            return self._inner.submit(fn, *args, **kwargs)
        except BrokenExecutor:
            self._inner.shutdown(wait=False, cancel_futures=True)
            self._inner = self._make()
            return self._inner.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers."""
        self._inner.shutdown(wait=wait, cancel_futures=cancel_futures)


@contextlib.contextmanager
def local_pool(jobs: int, said: Path | None = None) -> Iterator[Executor]:
    """Worker processes on this machine, one thread each; on an error or Ctrl-C they are ended at once.

    On a machine with GPUs each worker sees one of them; the workers take turns. What they print, or a model in them, is
    added to the file `said`: it would break the display.
    """
    start = start_method()
    turn, devices = start.Value("i", 0), visible_devices()
    pool = Renewed(lambda: ProcessPoolExecutor(jobs, start, initializer=_start_worker, initargs=(turn, devices, said)))
    others = set(multiprocessing.active_children())
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown()


def start_method() -> ForkServerContext | SpawnContext:
    """The start method of workers: forked, where the system can, from a server of one thread with all imports done.

    A worker that takes the place of a dead one is then there at once. A fork of the coordinator itself would copy
    torch's threads and locks.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(PRELOADED)
    return start


def visible_devices() -> tuple[str, ...]:
    """The GPUs that CUDA may use, as `CUDA_VISIBLE_DEVICES` names them; CUDA too stops reading it at a -1."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = (device.strip() for device in chosen.split(","))
        return tuple(takewhile(lambda name: name not in ("", "-1"), names))
    return tuple(map(str, range(torch.cuda.device_count())))


def take_turn(turn: "Synchronized[int]", devices: Sequence[str]) -> None:
    """Let this process see the next device alone. To be called before CUDA wakes."""
    with turn.get_lock():
        mine = turn.value
        turn.value += 1
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[mine % len(devices)]


def may_start_processes() -> None:
    """Let a task's data loader start its processes here as it would in a script of its user.

    A worker of a pool would start them through a server or anew, which takes seconds for each; a daemonic worker, as
    dask's nannies start them, would be refused any.
    """
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    vars(multiprocessing.current_process())["_config"].pop("daemon", None)


def _start_worker(turn: "Synchronized[int]", devices: Sequence[str], said: Path | None) -> None:
    if said is not None:
        with said.open("ab") as file:
            os.dup2(file.fileno(), 1)  # by number: whoever writes, in whatever language
            os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the coordinator decides
    take_turn(turn, devices)
    may_start_processes()
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End this worker when the coordinator is gone: killed, it could not say goodbye."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# --- on a cluster ---

CONNECT = 10
"""Seconds to wait for the scheduler, at the start and when it falls silent."""

DESERTED = 120.0
"""Seconds without any worker after which a race ends; others may be on their way."""

VERSIONS = "{name: __import__(name).__version__ for name in ('fallline', 'torch')}"
"""The versions that must be the same everywhere. A text, as a worker without fallline could not load a function."""


GO_ON = "What had finished is kept; the same command goes on from there, without --scheduler on this machine alone"


class Workers(Executor):
    """The executor of a client; what it runs, it runs as `on_worker` does."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._inner = client.get_executor(pure=False)  # two runs are two, whatever their arguments
        self._pending: set[Future[Any]] = set()
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As any executor; without a worker it waits for one, for a while.

        Raises:
            RaceError: the scheduler is gone. The future raises it when the workers are.
        """
        while self._client.status == "connecting":  # again, for a while; then it closes
            time.sleep(0.1)
        if self._client.status != "running":
            raise RaceError(f"the dask scheduler is gone. {GO_ON}")
        future: Future[Any] = self._inner.submit(on_worker, functools.partial(fn, *args, **kwargs))
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more; the workers stay."""
        self._over.set()
        self._inner.shutdown(wait=wait and not cancel_futures)

    def _watch(self) -> None:
        """Give up what is pending when there has been no worker for a while: a scheduler would wait for ever."""
        seen = time.monotonic()
        while not self._over.wait(min(1.0, DESERTED / 4)):
            with contextlib.suppress(Exception):  # a client that connects again, or is being closed
                if self._client.nthreads():
                    seen = time.monotonic()
            if time.monotonic() > seen + DESERTED:
                told = f"no worker is left, and for {DESERTED:g} seconds none has come"
                for future in list(self._pending):
                    with contextlib.suppress(InvalidStateError):
                        future.set_exception(RaceError(f"{told}. {GO_ON}"))


def on_worker(work: Callable[[], Any]) -> Any:
    """Do some work as a local worker would: with one thread, and finding modules in the worker's folder."""
    torch.set_num_threads(1)  # here, as OpenMP counts for each thread that calls it
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    may_start_processes()
    return work()


@contextlib.contextmanager
def cluster(address: str) -> Iterator[tuple[Executor, int]]:
    """The workers of a running dask scheduler, and how many there are; more may join. They outlive this.

    Raises:
        ValueError: dask is not installed, there is no scheduler at this address, it has no workers, or they are not fit
            for a race: several threads, other versions.
    """
    try:
        dask, comm = importlib.import_module("distributed"), importlib.import_module("distributed.comm")
    except ImportError as error:
        raise ValueError('--scheduler needs dask: pip install "fallline[dask]"') from error
    address = address if "://" in address else f"tcp://{address}"
    with _quiet():
        try:
            comm.get_address_host_port(address, strict=True)  # a client that fails here cannot be closed for a while
            client = dask.Client(address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"there is no dask scheduler at {address}: {error}") from error
        workers = Workers(client)
        try:
            yield workers, fit(client, address)
        finally:
            with contextlib.suppress(Exception):  # a scheduler that is gone has nothing left to cancel
                workers.shutdown(wait=False)
            client.close()


def fit(client: Any, address: str) -> int:
    """The number of workers, when all are fit for a race; else `ValueError`."""
    threads = client.nthreads()
    if not threads:
        raise ValueError(f"the scheduler at {address} has no workers: dask worker {address} --nthreads 1 --nworkers N")
    if many := [worker for worker, count in threads.items() if count != 1]:
        raise ValueError(
            f"the worker {many[0]} has {threads[many[0]]} threads, and all its runs would draw from one random "
            f"generator: start it with dask worker {address} --nthreads 1 --nworkers N"
        )
    here = eval(VERSIONS)
    for worker, there in client.run(eval, VERSIONS, on_error="return").items():
        if isinstance(there, Exception):
            raise ValueError(f"the worker {worker} cannot run anything of ours: {there}")
        for package, version in here.items():
            if there[package] != version:
                raise ValueError(f"the worker {worker} has {package} {there[package]}, and here it is {version}")
    return len(threads)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without dask's messages in the terminal: what matters of a lost worker, the race itself finds out."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="distributed")
            yield
    finally:
        logger.setLevel(level)
