"""The loggers: what each library finds is what was measured, and none of them can end a race."""

import json
import sys
import types
import warnings
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context

from fallline.bench.protocol.records import Place, Race
from fallline.bench.race.loggers import LOGGERS, Events, Jsonl, Logger, Logging, Trackio, Wandb, open_loggers
from fallline.bench.runs.run import Outcome, Run

RACE = Race(id="0123abcd", design={"tasks": ["digits"], "trials": 2}, setting={}, started_at="2026-01-01T00:00:00")
CURVE = {"step": [0.0, 10.0, 20.0], "train loss": [None, 0.5, 0.25], "validation loss": [2.0, 1.0, 0.5]}
SUMMARY = {"digits": {"SGD": 0.125, "KOALA-M": 0.25}, "bowl": {"SGD": 7.5}}


def case(task="digits", optimizer="sgd", stage="seed", number=1, repeat=0, settings=None, outcome=None):
    """What a logger is told of one run."""
    run = Run(task, optimizer, {"lr": 0.5, "betas": "0.9 0.99"} if settings is None else settings, seed=7)
    finished = Outcome("finished", 20, score=0.5, result={"loss": 0.75, "accuracy": 0.875}, curve=CURVE)
    return RACE, Place(task, optimizer, stage, number, repeat), run, outcome or finished


def lost():
    """A run that raised at once."""
    return Outcome("failed", 0, reason="ArithmeticError: too tired")


# --- jsonl ---


def test_a_line_holds_all_of_a_run(tmp_path):
    logger = Jsonl(tmp_path / "not there yet")
    logger.run_finished(*case(settings={"lr": 0.5, "floor": float("-inf")}))
    logger.run_finished(*case(outcome=lost(), stage="choice", number=3, repeat=2))
    logger.race_finished(RACE, SUMMARY)
    first, second = map(json.loads, (tmp_path / "not there yet" / "log.jsonl").read_text().splitlines())
    expected = {
        "race": "0123abcd",
        "task": "digits",
        "optimizer": "sgd",
        "stage": "seed",
        "number": 1,
        "repeat": 0,
        "seed": 7,
        "settings": {"lr": 0.5, "floor": "-inf"},  # JSON has no infinity
        "status": "finished",
        "score": 0.5,
        "result": {"loss": 0.75, "accuracy": 0.875},
        "curve": CURVE,
    }
    assert expected.items() <= {name: first.get(name) for name in expected}.items()
    assert first.keys() == second.keys(), "every line has the same columns"
    assert (second["status"], second["reason"], second["score"]) == ("failed", "ArithmeticError: too tired", None)
    assert (second["stage"], second["number"], second["repeat"]) == ("choice", 3, 2)


def test_no_line_holds_what_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Jsonl(tmp_path).run_finished(*case(outcome=Outcome("finished", 20, result={"loss": float("inf")})))
    assert not (tmp_path / "log.jsonl").exists()


# --- TensorBoard ---


def scalars(folder):
    """The scalars in a folder of events: name -> [(step, value)]."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_curve_at_its_steps(tmp_path):
    Events(tmp_path).run_finished(*case())
    assert scalars(tmp_path / "tensorboard/0123abcd/digits-sgd-seed-1") == {
        "train loss": [(10, 0.5), (20, 0.25)],  # what was not measured is not there
        "validation loss": [(0, 2.0), (10, 1.0), (20, 0.5)],
        "lost": [(20, 0.0)],
        "score": [(20, 0.5)],
        "result/loss": [(20, 0.75)],
        "result/accuracy": [(20, 0.875)],
    }


def test_the_hparams_tab_has_a_column_for_each_optimizer_s_settings(tmp_path):
    logger = Events(tmp_path)
    logger.run_finished(*case(optimizer="adam", settings={"lr": 0.5, "eps": None, "floor": float("inf")}))
    logger.run_finished(*case(optimizer="sgd", settings={"lr": 0.25, "momentum": 0.875, "nesterov": True}))
    logger.run_finished(*case(optimizer="wild", settings={"wildness": "high"}, outcome=lost()))
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "tensorboard")).Reload()
    tab = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(tmp_path))))
    request = RequestContext()
    experiment = tab.experiment_from_metadata(request, "", True, tab.hparams_metadata(request, ""), [])
    columns = {info.name for info in experiment.hparam_infos}
    assert columns == {"task", "optimizer", "stage", "lr", "floor", "momentum", "nesterov", "wildness"}
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics == {"train loss", "validation loss", "lost", "score", "result/loss", "result/accuracy"}


def test_a_run_that_is_tried_again_replaces_its_events(tmp_path):
    logger = Events(tmp_path)
    logger.run_finished(*case(outcome=Outcome("diverged", 10, curve={"step": [0.0, 10.0], "train loss": [None, 99.0]})))
    logger.run_finished(*case())
    assert scalars(tmp_path / "tensorboard/0123abcd/digits-sgd-seed-1")["train loss"] == [(10, 0.5), (20, 0.25)]


def test_every_run_has_a_folder_of_its_own_whatever_its_names(tmp_path):
    logger = Events(tmp_path)
    cases = [
        case(),
        case(number=2),
        case(stage="choice"),
        case(stage="choice", repeat=1),
        case(task="../my tasks/spiral.py"),
        case(task="my.tasks:Spiral", optimizer="my.optimizers:Mine"),
        case(task="my.tasks/Spiral", optimizer="my.optimizers:Mine"),
    ]
    for told in cases:
        logger.run_finished(*told)
    folders = list((tmp_path / "tensorboard/0123abcd").iterdir())
    assert len(folders) == len(cases)
    for folder in folders:
        assert [path.name.startswith("events.") for path in folder.iterdir()] == [True]
        assert not set(folder.name) & set('<>:"/\\|?* ')
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]


def test_the_means_are_a_table_under_text(tmp_path):
    logger = Events(tmp_path)
    logger.race_finished(RACE, {"digits": {"SGD": 9.0}})
    logger.race_finished(RACE, SUMMARY)  # the command was given again
    events = EventAccumulator(str(tmp_path / "tensorboard/0123abcd")).Reload()
    (event,) = events.Tensors("mean loss/text_summary")
    table = event.tensor_proto.string_val[0].decode()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert rows == [["digits", "SGD", "0.125"], ["digits", "KOALA-M", "0.25"], ["bowl", "SGD", "7.5"]]


# --- Weights & Biases, trackio: modules that take the arguments of the real ones, and note what they are told ---


class Tracked:
    """A run, as both libraries have it."""

    def __init__(self, about):
        self.about = about
        self.logged = []
        self.finished = False

    def log(self, values, step=None):
        assert not self.finished
        assert step >= max((at for at, _ in self.logged), default=0), "the libraries drop what goes back in time"
        assert values
        self.logged.append((step, values))

    def finish(self):
        print("* Run finished. Uploading logs ...")
        self.finished = True


class FakeWandb(types.ModuleType):
    """wandb 0.31."""

    def __init__(self, mode):
        super().__init__("wandb")
        self.runs, self.logins, self.mode = [], 0, mode

    def setup(self, settings=None):
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode=self.mode))

    def login(self, key=None, relogin=None, host=None, force=None, timeout=None, verify=True):
        self.logins += 1
        return True

    def init(
        self,
        entity=None,
        project=None,
        dir=None,
        id=None,
        name=None,
        notes=None,
        tags=None,
        config=None,
        config_exclude_keys=None,
        config_include_keys=None,
        allow_val_change=None,
        group=None,
        job_type=None,
        mode=None,
        force=None,
        reinit=None,
        resume=None,
        resume_from=None,
        fork_from=None,
        save_code=None,
        tensorboard=None,
        sync_tensorboard=None,
        monitor_gym=None,
        settings=None,
    ):
        assert reinit in (None, "default", "return_previous", "finish_previous", "create_new")
        assert Path(dir).is_dir(), "wandb would take a temporary folder"
        about = {"project": project, "dir": dir, "name": name, "config": config, "group": group, "job_type": job_type}
        self.runs.append(Tracked({**about, "settings": settings}))
        return self.runs[-1]


class FakeTrackio(types.ModuleType):
    """trackio 0.43."""

    def __init__(self):
        super().__init__("trackio")
        self.runs, self.current = [], None

    def init(
        self,
        project,
        name=None,
        group=None,
        space_id=None,
        server_url=None,
        dataset_id=None,
        bucket_id=None,
        config=None,
        resume="never",
        settings=None,
        private=None,
        embed=True,
        auto_log_gpu=None,
        gpu_log_interval=10.0,
        auto_log_cpu=None,
        cpu_log_interval=10.0,
        webhook_url=None,
        webhook_min_level=None,
    ):
        assert not any(key.startswith("_") for key in config), "trackio reserves them"
        print(f"* Created new run: {name}")
        self.current = Tracked({"project": project, "name": name, "config": config, "group": group})
        self.runs.append(self.current)
        return self.current

    def log(self, metrics, step=None):
        self.current.log(metrics, step)

    def finish(self):
        self.current.finish()
        self.current = None


@pytest.fixture
def wandb(monkeypatch):
    """A wandb that is offline and has no settings of this machine's user."""
    for name in ("WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeWandb("offline")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def trackio(monkeypatch):
    """A trackio."""
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return fake


@pytest.fixture(params=["wandb", "trackio"])
def tracker(request):
    """Each of the two."""
    return request.getfixturevalue(request.param)


def test_each_run_is_tracked_from_beginning_to_end(tracker, tmp_path, capsys):
    (logger,) = open_loggers(tracker.__name__, tmp_path)
    logger.run_finished(*case())
    logger.run_finished(*case(optimizer="my.optimizers:Mine", settings={"floor": float("-inf")}, outcome=lost()))
    finished, failed = tracker.runs
    assert finished.logged == [
        (0, {"validation loss": 2.0}),
        (10, {"train loss": 0.5, "validation loss": 1.0}),
        (20, {"train loss": 0.25, "validation loss": 0.5}),
        (20, {"lost": 0.0, "score": 0.5, "result/loss": 0.75, "result/accuracy": 0.875}),
    ]
    assert (finished.about["project"], finished.about["group"]) == ("fallline", "0123abcd")
    assert finished.about["name"] == "digits-sgd-seed-1"
    place = {"task": "digits", "optimizer": "sgd", "stage": "seed", "number": 1, "repeat": 0, "seed": 7}
    ending = {"status": "finished", "reason": ""}
    assert finished.about["config"] == {"lr": 0.5, "betas": "0.9 0.99", **place, **ending}
    assert failed.logged == [(0, {"lost": 1.0})]
    assert failed.about["config"]["floor"] == "-inf"
    assert failed.about["config"]["reason"] == "ArithmeticError: too tired"
    assert finished.finished
    assert failed.finished
    if tracker.__name__ == "trackio":  # it prints on every run; wandb is silenced by a setting
        assert tracker.current is None
        assert capsys.readouterr().out == ""


def test_a_diverged_run_is_logged_up_to_where_that_was_seen(tracker, tmp_path):
    curve = {"step": [0.0, 10.0, 20.0], "train loss": [None, 0.5, None]}
    (logger,) = open_loggers(tracker.__name__, tmp_path)
    logger.run_finished(*case(outcome=Outcome("diverged", 13, reason="not finite", curve=curve)))
    logger.run_finished(*case(outcome=Outcome("diverged", 13, curve=curve | {"train loss": [None, 0.5, 1e9]})))
    blank, huge = tracker.runs
    assert blank.logged == [(10, {"train loss": 0.5}), (13, {"lost": 1.0})]
    assert huge.logged == [(10, {"train loss": 0.5}), (20, {"train loss": 1e9}), (20, {"lost": 1.0})]


def test_the_means_are_a_run_of_their_own(tracker, tmp_path):
    (logger,) = open_loggers(tracker.__name__, tmp_path)
    logger.race_finished(RACE, {"digits": {}})  # nobody reached the end
    assert tracker.runs == []
    logger.race_finished(RACE, SUMMARY)
    (run,) = tracker.runs
    assert run.logged == [(0, {"digits/SGD": 0.125, "digits/KOALA-M": 0.25, "bowl/SGD": 7.5})]
    assert run.about["config"] == RACE.design
    assert run.about["name"] == "summary"
    assert run.finished


def test_a_run_whose_logging_fails_is_finished_all_the_same(tracker, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(Tracked, "log", fail)
    (logger,) = open_loggers(tracker.__name__, tmp_path)
    with pytest.raises(ConnectionError):
        logger.run_finished(*case())
    assert tracker.runs[0].finished


def test_wandb_keeps_out_of_the_terminal_and_its_files_in_the_folder(wandb, tmp_path):
    Wandb(tmp_path / "runs").run_finished(*case())
    about = wandb.runs[0].about
    assert about["settings"] == {"silent": True, "console": "off"}
    assert about["dir"] == tmp_path / "runs"
    assert about["job_type"] == "seed"


def test_wandb_s_own_variables_have_the_last_word(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    Wandb(tmp_path / "runs").run_finished(*case())
    about = wandb.runs[0].about
    assert (about["project"], about["dir"]) == ("elsewhere", str(tmp_path))


@pytest.mark.parametrize(("mode", "logins"), [("online", 1), ("offline", 0)])
def test_wandb_asks_for_its_key_before_the_race_if_it_needs_one(wandb, tmp_path, mode, logins):
    wandb.mode = mode
    logger = Wandb(tmp_path)
    logger.run_finished(*case())
    assert wandb.logins == logins


# --- several at once, and what goes wrong ---


class Diary:
    """A logger of somebody's own; at the given call it raises."""

    def __init__(self, folder, fails_at=None):
        self.folder, self.fails_at = folder, fails_at
        self.calls = []

    def run_finished(self, race, entry, run, outcome):
        self.note("run")

    def race_finished(self, race, summary):
        self.note("race")

    def close(self):
        self.note("close")

    def note(self, call):
        self.calls.append(call)
        if call == self.fails_at:
            raise OSError("the disk is full")


@pytest.mark.parametrize(
    ("fails_at", "calls"),
    [("run", ["run", "close"]), ("race", ["run", "run", "race", "close"])],
)
def test_a_logger_that_fails_is_dropped_with_one_warning(fails_at, calls):
    good, bad, also_good = Diary(None), Diary(None, fails_at), Diary(None)
    with warnings.catch_warnings(record=True, action="always") as caught, Logging([good, bad, also_good]) as logging:
        logging.run_finished(*case())
        logging.run_finished(*case(number=2))
        logging.race_finished(RACE, SUMMARY)
    assert [str(warning.message) for warning in caught] == [
        "the logger Diary has failed and logs no more; the race goes on (OSError: the disk is full)"
    ]
    assert good.calls == also_good.calls == ["run", "run", "race", "close"]
    assert bad.calls == calls


def test_whoever_asks_hears_the_complaint_instead_of_a_warning():
    complaints = []
    good = Diary(None)
    logging = Logging([Diary(None, "close"), good], complaints.append)
    logging.close()
    logging.close()
    assert good.calls == ["close"]
    assert len(complaints) == 1
    assert "the disk is full" in complaints[0]


def test_an_interrupt_passes_through_and_closes_the_loggers():
    class Interrupted(Diary):
        def run_finished(self, race, entry, run, outcome):
            raise KeyboardInterrupt

    logger = Interrupted(None)
    with warnings.catch_warnings(action="error"), pytest.raises(KeyboardInterrupt), Logging([logger]) as logging:
        logging.run_finished(*case())
    assert logger.calls == ["close"]


def test_no_loggers_are_no_work():
    with Logging() as logging:
        logging.run_finished(*case())
        logging.race_finished(RACE, SUMMARY)


def test_names_open_loggers_once_each(wandb, trackio, tmp_path):
    opened = open_loggers(" jsonl,TensorBoard,wandb, trackio,,jsonl,JSONL", tmp_path)
    assert [type(logger) for logger in opened] == [Jsonl, Events, Wandb, Trackio]
    assert len(LOGGERS) == len(opened)
    assert all(isinstance(logger, Logger) for logger in opened)
    assert open_loggers("", tmp_path) == []


def test_a_class_of_one_s_own_is_called_with_the_folder(monkeypatch, tmp_path):
    module = types.ModuleType("mine")
    module.Diary = Diary
    monkeypatch.setitem(sys.modules, "mine", module)
    (logger,) = open_loggers("mine:Diary", tmp_path)
    assert isinstance(logger, Diary)
    assert logger.folder == tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tensorbord", "there is no logger 'tensorbord'; did you mean tensorboard"),
        ("mlflow", "there is no logger 'mlflow'"),
        ("no_such_module:Logger", "'no_such_module:Logger' cannot start: .*no_such_module"),
        ("json:Logger", "'json:Logger' cannot start: .*no attribute 'Logger'"),
        ("pathlib:Path", "'pathlib:Path' is no logger"),
    ],
)
def test_a_name_that_is_no_logger_says_so(tmp_path, name, words):
    with pytest.raises(ValueError, match=words):
        open_loggers(name, tmp_path)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_library_that_is_missing_is_named_with_its_remedy(tmp_path, monkeypatch, name):
    for module in [key for key in sys.modules if key.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ValueError, match=f"pip install {name}"):
        open_loggers(name, tmp_path)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_folder_of_its_name_does_not_pass_for_a_library(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(ValueError, match=f"pip install {name}"):
        open_loggers(name, tmp_path)


def test_a_library_that_cannot_start_is_no_reason_to_install_it(wandb, tmp_path, monkeypatch):
    def login():
        raise RuntimeError("No API key configured")

    wandb.mode = "online"
    monkeypatch.setattr(wandb, "login", login)
    with pytest.raises(ValueError, match=r"'wandb' cannot start: RuntimeError: No API key configured$"):
        open_loggers("wandb", tmp_path)
