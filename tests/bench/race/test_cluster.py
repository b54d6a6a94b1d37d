"""Races on a dask cluster: a real scheduler and real worker processes, on this machine."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from stress import contents, hold

import fallline
from fallline.bench.race import workers as module
from fallline.bench.race.coordinator import RaceError
from fallline.bench.race.results import results
from fallline.bench.race.store import Store
from fallline.bench.race.workers import cluster, fit, on_worker

pytest.importorskip("distributed", reason='pip install "fallline[dask]"')

PATIENCE = 300.0
"""Seconds after which a test gives up; nothing else in it depends on time."""

HERE = Path(__file__).parents[2] / "helpers"


def until(condition):
    """Wait for something; what it is, once it is so."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


class Farm:
    """A scheduler and its workers: processes of their own, as on a cluster."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = []
        file = folder / "scheduler.json"
        self.scheduler = self.start("scheduler", "--port", "0", "--scheduler-file", str(file))
        self.address = until(lambda: file.exists() and read(file)).get("address")

    def start(self, what, *arguments, cwd=None):
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments, "--host", "127.0.0.1", "--no-dashboard"],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            cwd=cwd or self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(process)
        return process

    def worker(self, threads=1, cwd=None):
        more = ["--nthreads", str(threads), "--no-nanny", "--local-directory", str(self.folder)]
        return self.start("worker", self.address, *more, cwd=cwd)

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()


def read(file):
    """What a file of JSON says; None while it is being written."""
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(file.read_text())


@pytest.fixture
def farm(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CONNECT", 5)
    folder = tmp_path / "farm"
    folder.mkdir()
    made = Farm(folder)
    yield made
    made.end()


@contextlib.contextmanager
def workplace(farm, workers):
    """The cluster, once so many workers are there."""

    def there():
        with contextlib.suppress(ValueError), cluster(farm.address) as (_, count):
            return count == workers

    until(there)
    with cluster(farm.address) as found:
        yield found


ASKED = {"tasks": ("stress:Long",), "trials": 4, "finalists": 2, "reruns": 1, "seeds": 3}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "records.sqlite"
    with Store(path) as store:
        hold(store, "sgd", "koala-m", **ASKED)
    return contents(path)


def test_a_race_on_a_cluster_gives_the_records_of_one_process_even_if_a_worker_is_killed(
    farm, tmp_path, undisturbed, capfd
):
    first, second = farm.worker(), farm.worker()
    path = tmp_path / "records.sqlite"
    ran, killed_at = [], []

    def watch(progress):
        ran.append(progress.ran)
        if progress.ran >= 3 and not killed_at:
            first.kill()
            killed_at.append(progress.ran)

    with Store(path) as store:
        with workplace(farm, 2) as (executor, count):
            assert count == 2
            held = hold(store, "sgd", "koala-m", executor=executor, watch=watch, **ASKED)
        assert results(store, held).missing == 0
    assert killed_at[0] < ran[-1] == 18
    assert first.wait() == -9
    assert second.poll() is None  # the cluster outlives the race
    assert contents(path) == undisturbed
    assert not (tmp_path / "checkpoints").exists()
    assert not list(farm.folder.glob("**/*.pt"))
    assert capfd.readouterr() == ("", "")


def test_a_task_that_a_worker_has_not_ends_the_race_with_a_sentence(farm, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    farm.worker(cwd=elsewhere)
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text((HERE / "sprint.py").read_text())
    with (
        Store(tmp_path / "records.sqlite") as store,
        workplace(farm, 1) as (executor, _),
        pytest.raises(RaceError, match=r"a worker on .* cannot run sgd on mine.py:Sprint: there is no task"),
    ):
        hold(store, "sgd", executor=executor, tasks=("mine.py:Sprint",))
    assert contents(tmp_path / "records.sqlite")["runs"] == []


def test_a_scheduler_that_dies_ends_the_race_with_a_sentence(farm, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(module, "CONNECT", 0.5)
    farm.worker()

    def watch(progress):
        if progress.ran == 1:
            farm.scheduler.kill()

    with (
        Store(tmp_path / "records.sqlite") as store,
        workplace(farm, 1) as (executor, _),
        pytest.raises(RaceError, match=r"the dask scheduler is gone. What had finished is kept"),
    ):
        hold(store, "sgd", executor=executor, watch=watch, **ASKED)
    assert 1 <= len(contents(tmp_path / "records.sqlite")["runs"]) < 9
    assert capfd.readouterr() == ("", "")


def test_a_race_whose_last_worker_is_gone_ends_with_a_sentence(farm, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DESERTED", 2.0)
    worker = farm.worker()

    def watch(progress):
        if progress.ran == 1:
            worker.kill()

    with (
        Store(tmp_path / "records.sqlite") as store,
        workplace(farm, 1) as (executor, _),
        pytest.raises(RaceError, match=r"no worker is left, and for 2 seconds none has come. What had finished is"),
    ):
        hold(store, "sgd", executor=executor, watch=watch, **ASKED)
    assert 1 <= len(contents(tmp_path / "records.sqlite")["runs"]) < 9


def test_a_cluster_without_workers_or_with_unfit_ones_is_refused(farm):
    with pytest.raises(ValueError, match="has no workers: dask worker tcp://"), cluster(farm.address):
        pass
    farm.worker(threads=2)
    assert until(lambda: "has 2 threads" in complaint(farm.address))


def complaint(address):
    """Why a cluster is refused, if it is."""
    try:
        with cluster(address):
            return ""
    except ValueError as error:
        return str(error)


def test_work_finds_modules_in_the_workers_folder_and_has_one_thread(tmp_path, monkeypatch):
    (tmp_path / "beside_the_worker.py").write_text("import torch\n\nthreads = torch.get_num_threads()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.set_num_threads(2)
    try:
        assert on_worker(lambda: importlib.import_module("beside_the_worker").threads) == 1
    finally:
        torch.set_num_threads(1)


class Client:
    """Says what a client would say of a cluster."""

    def __init__(self, **workers):
        self.workers = workers

    def nthreads(self):
        return dict.fromkeys(self.workers, 1)

    def run(self, function, *arguments, on_error):
        assert (function(*arguments).keys(), on_error) == ({"fallline", "torch"}, "return")
        return self.workers


def test_workers_have_the_versions_of_the_coordinator():
    same = {"torch": torch.__version__, "fallline": fallline.__version__}
    assert fit(Client(one=same, two=same), "tcp://here:1") == 2
    with pytest.raises(ValueError, match=r"the worker two has torch 1.13, and here it is \d"):
        fit(Client(one=same, two={**same, "torch": "1.13"}), "tcp://here:1")
    lacking = ModuleNotFoundError("No module named 'fallline'")
    with pytest.raises(ValueError, match=r"the worker one cannot run anything of ours: No module named 'fallline'"):
        fit(Client(one=lacking), "tcp://here:1")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere", "carrier-pigeon://coop:1"])
def test_where_there_is_no_scheduler_a_sentence_says_so(address, monkeypatch):
    monkeypatch.setattr(module, "CONNECT", 0.2)
    assert complaint(address).startswith("there is no dask scheduler at ")


def test_without_dask_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert complaint("tcp://127.0.0.1:9") == '--scheduler needs dask: pip install "fallline[dask]"'
