"""The command line: what it says, and how it stops."""

import ast
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from terminal import call, environment

import fallline
from fallline.bench.cli import app as cli
from fallline.bench.cli.options import checked_names
from fallline.bench.cli.root import app
from fallline.bench.cli.terminal import DATABASE
from fallline.bench.contenders import CLASSES, CONTENDERS, TEAM, get_contender, spelled
from fallline.bench.race.results import results
from fallline.bench.race.store import Store

HERE = Path(__file__).parents[2] / "helpers"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("race", "digit"), "no task 'digit'; did you mean digits?"),
        (("race", "--optimizers", "sgd,adamv"), "no optimizer 'adamv'; did you mean"),
        (("race", "--optimizers", ","), "name at least one optimizer"),
        (("race", "--optimizers", "nowhere_at_all:Class"), "no module named 'nowhere_at_all'"),
        (("race", "--trials", "0"), "invalid value for '--trials'"),
        (("race", "--seeds", "-3"), "invalid value for '--seeds'"),
        (("race", "--jobs", "none"), "invalid value for '--jobs'"),
        (("race", "--size", "XL"), "'XL' is not one of"),
        (("race", "--size", "M", "--trials", "5"), "give --size or --trials, not both"),
        (("race", "--tracks", "tune"), "no track 'tune'; did you mean tuned?"),
        (("race", "--baseline", "adm", "--optimizers", "sgd,adam"), "did you mean adam?"),
        (("race", "--optimizers", "sgd@cosin"), "no schedule 'cosin'; did you mean cosine?"),
        (("race", "--device", "abacus"), "invalid value for --device"),
        (("race", "--schedules", "all"), "'all' is not one of"),
        (("race", "--spaces", "none.toml"), "none.toml"),
        (("race", "--log", "tensorbord", "--trials", "1"), "did you mean tensorboard?"),
        (("race", "no_such_task.py"), "no_such_task.py"),
        (("merge", "a.sqlite", "b.sqlite"), "there is no file a.sqlite"),
        (("report", "--out", "nowhere"), "no records in nowhere; fallline race makes some"),
        (("rase",), "No such command 'rase'"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = call(*arguments)
    assert code in (1, 2)
    assert message.lower() in output.lower()
    assert "Traceback" not in output


def test_help_has_examples_and_list_has_everything():
    for command in ("race", "report", "merge"):
        code, output = call(command, "--help")
        assert code == 0
        assert f"fallline {command}" in output
        assert "Examples" in output
    assert "fallline race" in call("--help")[1]
    code, output = call("list")
    assert code == 0
    for name in ("bowl", "digits", *CONTENDERS, "radam"):
        assert name in output
    assert re.findall(r"(\S+) \* ", output) == [name for name in CONTENDERS if name in TEAM]
    assert call("--version") == (0, f"fallline {fallline.__version__}")


def test_the_team_is_on_the_list_and_all_is_everyone():
    assert set(TEAM) < set(CONTENDERS)
    assert {get_contender(name).ours for name in TEAM} == {True, False}
    assert checked_names(",".join(TEAM)) == TEAM
    assert checked_names("radam,all,sgd") == ("radam", *CONTENDERS)


def test_classes_of_ours_go_by_their_entry_s_name():
    ours = {name for name in fallline.list_optimizers() if name.startswith("koala")}
    assert set(CLASSES.values()) == ours
    for spelling, name in CLASSES.items():
        made = fallline.create_optimizer(name, [torch.nn.Parameter(torch.zeros(2))])
        assert type(made).__name__.lower() == spelling
        assert type(fallline.create_optimizer(type(made).__name__, made.param_groups)) is type(made)
        assert spelled(f"{type(made).__name__}@linear#2") == f"{name}@linear#2"
    assert spelled("AdamW") == "adamw"
    assert spelled("my_module:Mine") == "my_module:Mine"
    assert checked_names("MomentumKOALA,koala-m") == ("koala-m",)


def test_the_entry_point_imports_the_standard_library_alone_and_names_the_extra(monkeypatch):
    tree = ast.parse(Path(cli.__file__).read_text(encoding="utf-8"))
    outside = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in outside if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in outside if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in modules} <= sys.stdlib_module_names
    monkeypatch.setattr(cli, "NEEDS", ("torch", "a_package_that_nobody_has"))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert 'pip install "fallline[bench]"' in str(stop.value.code)
    assert "a_package_that_nobody_has" in str(stop.value.code)


def race_command(out, *more):
    arguments = ["race", "sprint:Marathon", "--optimizers", "sgd,koala-v", "--trials", "12", "--seeds", "2"]
    return [sys.executable, "-m", "fallline.bench.cli.app", *arguments, "--jobs", "1", "--out", str(out), *more]


def is_gone(group):
    """Whether all processes of a group end within ten seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def finished(database):
    """Runs in the records of a race in another process."""
    if not database.exists():
        return 0
    with sqlite3.connect(database, timeout=30) as db:
        try:
            return db.execute("SELECT count(*) FROM runs").fetchone()[0]
        except sqlite3.OperationalError:  # not yet
            return 0
        finally:
            db.rollback()


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(tmp_path):
    database = tmp_path / DATABASE
    race = subprocess.Popen(
        race_command(tmp_path),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that puts us in the background has its children ignore the signal; and Python keeps to that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 100
    while finished(database) < 5 and race.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(race.pid, signal.SIGINT)  # as a terminal does: to the coordinator and its workers alike
    output, errors = race.communicate(timeout=60)
    assert race.returncode == 130, output + errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    kept = finished(database)
    assert 5 <= kept < 46
    assert is_gone(race.pid)  # no worker is left behind

    again = subprocess.run(
        race_command(tmp_path), env=environment(), capture_output=True, text=True, timeout=100, check=True
    )
    assert "46/46 runs" in again.stdout
    assert finished(database) == 46
    page = tmp_path / "sprint.Marathon.html"
    assert f"Report: {page}" in again.stdout
    assert page.exists()
    with Store(database) as store:
        found = results(store, store.last_race())
    assert found.missing == 0
    for entry in found.parts[0].entries:
        assert entry.label in again.stdout


def test_a_task_of_ones_own_from_the_template_to_the_paper(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Written: my_task.py" in call("new", "task")[1]
    Path("spaces.toml").write_text("[sgd]\nlr = [0.01, 0.1]\nmomentum = 0.5\n", encoding="utf-8")
    small = ["--trials", "2", "--finalists", "1", "--seeds", "2", "--jobs", "1", "--spaces", "spaces.toml"]
    race = ["race", "./my_task.py", "--optimizers", "sgd,adamw", *small, "--log", "jsonl"]
    code, output = call(*race, "--studies", "2")
    assert code == 0, output
    assert "Study 2, race seed 1" in output
    assert "over studies" in output
    assert len(Path("runs/log.jsonl").read_text(encoding="utf-8").splitlines()) == 2 * 8
    assert Path("runs/my_task.html").exists()
    with Store(Path("runs") / DATABASE) as store:
        (part,) = results(store, store.last_race("my_task.py")).parts
    assert part.get("sgd").chosen["momentum"] == 0.5
    assert 0.01 <= part.get("sgd").chosen["lr"] <= 0.1

    for form, names in {"md": ["my_task.md"], "csv": ["my_task-runs.csv", "my_task-curves.csv"]}.items():
        code, output = call("report", "--format", form)
        assert code == 0, output
        assert all(Path("runs", name).exists() for name in names)
    assert call("report", "--against", f"runs/{DATABASE}")[0] == 0
    assert "What changed" in Path("runs/my_task.html").read_text(encoding="utf-8")
    Store(Path("other.sqlite")).__exit__()
    code, output = call("merge", "other.sqlite", f"runs/{DATABASE}")
    assert (code, "16 new runs, 2 new races" in output) == (0, True)


def test_a_plan_is_a_command_that_fits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = call("plan", "sprint:Sprint", "--optimizers", "sgd,adamw", "--budget", "1h", "--jobs", "2")
    assert code == 0, output
    assert "fallline race sprint:Sprint --optimizers sgd,adamw --trials 75 --seeds 10" in output
    assert "a budget is a time" in call("plan", "--budget", "soon")[1]


def test_twins_are_raced_and_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--trials", "2", "--finalists", "1", "--seeds", "6", "--jobs", "1"]
    code, output = call("race", "sprint:Sprint", "--aa", "2", *small)
    assert code == 0, output
    assert "called different" in output
    assert len(json.loads(Path("runs/aa.json").read_text(encoding="utf-8"))["tasks"][0]["races"]) == 2


LIGHT = """
import sys
from fallline.bench.cli.root import app
try:
    app({arguments!r}, prog_name="fallline")
except SystemExit as stop:
    assert not stop.code, stop
print("loaded:", *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], {"torch", "numpy", "scipy", "sklearn", "plotly", "pooch"}),
        (["--version"], {"torch", "numpy", "scipy", "sklearn", "plotly", "pooch"}),
        (["list"], {"scipy", "sklearn", "plotly"}),
    ],
)
def test_what_is_listed_needs_no_heavy_import(arguments, heavy):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(arguments=arguments)],
        env={**environment(), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=True,
    )
    output, _, loaded = done.stdout.rpartition("loaded:")
    assert output.strip()
    assert not heavy & set(loaded.split())


def test_help_says_of_every_command_what_the_command_itself_says():
    shown = call("--help")[1]
    group = typer.main.get_command(app)
    assert {"race", "repro", "gallery", "data"} < set(group.commands)
    for name in group.commands:
        described = " ".join(group.get_command(None, name).help.split("\n\n")[0].split())
        assert f"{name} {described.replace('[b]', '').replace('[/b]', '')}" in shown
