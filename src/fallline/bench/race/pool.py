"""Where the runs of a race run: worker processes on this machine, unless something else is given."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import takewhile
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch

PRELOADED = ["fallline.bench.race.coordinator", "torch._dynamo"]
"""What a worker needs and takes seconds to import; torch's optimizers ask for its compiler, even if it is not used."""


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


@contextmanager
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
    """How workers start: where the system can, forked from a server of one thread that has imported what they need.

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
