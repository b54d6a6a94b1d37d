"""A task and an optimizer of one's own: files as tasks, the template, the mistakes of newcomers, and the page on it."""

import importlib
import inspect
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fallline.bench.cli.new import new_task
from fallline.bench.common.spaces import Choice, Range, read_spaces, trials
from fallline.bench.runs.loop import train
from fallline.bench.runs.run import Run
from fallline.bench.tasks import TASKS, Task, check, get_task
from fallline.bench.tasks.digits import Digits

PAGE = Path(__file__).parents[3] / "docs" / "own.md"

SMALL = '''
import torch
from fallline.bench.tasks import Task
from fallline.bench.tasks.digits import Digits

class Small(Task):
    """A line through three points.

    With a second paragraph.
    """
    steps = 12
    held_out = False

    def model(self):
        return torch.nn.Linear(1, 1)

    def batches(self, order):
        while True:
            yield torch.randn(3, 1, generator=order)

    def losses(self, model, batch):
        return (model(batch) - batch).square().mean(1)
'''


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder to work in; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def blocks() -> dict[str, str]:
    """The page's files, by name."""
    text = PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- ([\w.]+) -->\n\n```\w+\n(.*?)```", text, flags=re.DOTALL))


def edited(*changes: tuple[str, str]) -> Task:
    """The template's task with some of its text replaced."""
    path = Path("my_task.py")
    path.unlink(missing_ok=True)
    new_task(path)
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return get_task("my_task.py")


# --- a file as a task ---


def test_a_file_is_a_task_under_its_own_name():
    Path("small.py").write_text(SMALL)
    task = get_task("small.py")
    assert (task.name, task.summary, task.steps) == ("small", "A line through three points", 12)
    assert type(task).__name__ == "Small"  # and not Digits, which the file imports
    check(task)


def test_the_same_file_is_the_same_task_however_it_is_named():
    Path("small.py").write_text(SMALL)
    task = get_task("small.py")
    assert get_task("small.py") is task
    for name in ("./small.py", str(Path("small.py").resolve()), "small.py:Small", f"../{Path.cwd().name}/small.py"):
        assert type(get_task(name)) is type(task)


def test_a_changed_file_is_a_new_task():
    Path("small.py").write_text(SMALL)
    assert get_task("small.py").steps == 12
    Path("small.py").write_text(SMALL.replace("12", "13"))  # within the same second, and of the same length
    assert get_task("small.py").steps == 13
    assert "steps = 13" in inspect.getsource(inspect.getmodule(type(get_task("small.py"))))


def test_two_files_of_one_name_are_two_tasks():
    for folder, steps in (("a", "12"), ("b", "34")):
        Path(folder).mkdir()
        Path(folder, "small.py").write_text(SMALL.replace("12", steps))
    assert [get_task(f"{folder}/small.py").steps for folder in ("a", "b")] == [12, 34]
    assert pickle.loads(pickle.dumps(get_task("a/small.py"))).steps == 12


def test_another_process_that_has_loaded_the_file_unpickles_its_task():
    Path("small.py").write_text(SMALL)
    code = (
        "import pickle, sys; from fallline.bench.tasks import get_task; get_task('small.py'); "
        "print(pickle.load(sys.stdin.buffer).steps)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(get_task("small.py")),
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == b"12", done.stderr.decode()


def test_a_file_imports_its_neighbours():
    Path("folder").mkdir()
    Path("folder/neighbour_of_small.py").write_text("STEPS = 21\n")
    Path("folder/small.py").write_text(
        SMALL.replace("import torch\n", "import torch\nfrom neighbour_of_small import STEPS\n").replace("12", "STEPS")
    )
    assert get_task("folder/small.py").steps == 21


def test_what_a_class_says_of_itself_stands_and_what_it_inherits_from_elsewhere_does_not():
    Path("mine.py").write_text(
        "from fallline.bench.tasks.digits import Digits\nclass Mine(Digits):\n    'Half as long.'\n    steps = 240\n"
    )
    assert (get_task("mine.py").name, get_task("mine.py").summary) == ("mine", "Half as long")
    assert Digits.name == "digits"
    named = SMALL.replace("    steps", "    name = 'line'\n    summary = 'a line'\n    steps")
    Path("small.py").write_text(f"{named}\nclass Longer(Small):\n    steps = 99\n")
    assert (get_task("small.py:Longer").name, get_task("small.py:Longer").summary) == ("line", "a line")


def test_a_file_with_several_tasks_asks_which():
    Path("small.py").write_text(f"{SMALL}\nclass Longer(Small):\n    steps = 99\n")
    with pytest.raises(ValueError, match=r"several tasks; say which: small\.py:Small or small\.py:Longer"):
        get_task("small.py")
    assert get_task("small.py:Longer").steps == 99
    assert get_task("small.py:Longer").name == "small:Longer"
    with pytest.raises(ValueError, match=r"small\.py has no task 'Shorter'; it has Small, Longer"):
        get_task("small.py:Shorter")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"own\.py has no task: a task is a subclass of .*`fallline new task`"),
        ("from fallline.bench.tasks.digits import Digits\n", r"own\.py has no task"),
        ("import torch\n\nclass Mine(torch.nn.Module:\n    pass\n", r"own\.py, line 3: invalid syntax"),
        ("import torch\nimport nowhere_at_all\n", r"own\.py, line 2: ModuleNotFoundError: No module named 'nowhere"),
        ("def f():\n    return 1 / 0\n\nf()\n", r"own\.py, line 2: ZeroDivisionError: division by zero"),
        ("raise SystemExit('usage: own')\n", r"own\.py, line 1: SystemExit: usage: own"),
        ("import broken_neighbour\n", r"broken_neighbour\.py, line 2: invalid syntax"),
        (SMALL.replace("def losses", "def loss"), r"own\.py: the class Small lacks losses; a task is"),
        (
            SMALL.replace("    steps", "    def __init__(self, x):\n        pass\n    steps"),
            r"own\.py: TypeError: .*'x'",
        ),
        (
            SMALL.replace("    steps", "    def __init__(self):\n        open('no.csv')\n    steps"),
            r"own\.py, line 12: F",
        ),
        ("x = 1\0\n", r"^own\.py: source code (string )?cannot contain null bytes|^own\.py: ValueError: .* null bytes"),
        ("x = 'caf\udce9'\n", r"^own\.py(, line 1)?: .*'utf-8' codec can't decode byte 0xe9"),
    ],
    ids=range(12),
)
def test_a_file_that_is_no_task_says_why_in_a_sentence(text, message):
    Path("broken_neighbour.py").write_text("x = 1\nx = = 2\n")
    Path("own.py").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message) as error:
        get_task("own.py")
    assert "\n" not in str(error.value)


def test_a_file_that_failed_is_read_again_when_it_is_mended():
    Path("small.py").write_text(f"{SMALL}\nimport data_of_small\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="No module named 'data_of_small'"):
            get_task("small.py")
    Path("data_of_small.py").touch()
    importlib.invalidate_caches()
    assert get_task("small.py").steps == 12


def test_a_name_that_is_nearly_a_file_leads_to_it():
    with pytest.raises(ValueError, match=r"no task 'small\.py': No such file .*`fallline new task small\.py`"):
        get_task("small.py")
    Path("small.py").write_text(SMALL)
    with pytest.raises(ValueError, match=r"did you mean small\.py\?"):
        get_task("small")
    Path("folder.py").mkdir()
    with pytest.raises(ValueError, match=r"no task 'folder\.py'"):
        get_task("folder.py")


def test_a_module_that_breaks_on_import_is_told_in_a_sentence():
    Path("breaks_on_import.py").write_text("1 / 0\n")
    sys.path.insert(0, str(Path.cwd()))
    with pytest.raises(ValueError, match="cannot be imported: ZeroDivisionError: division by zero"):
        get_task("breaks_on_import:Mine")


# --- the check ---


@pytest.mark.parametrize("name", TASKS)
def test_the_built_in_tasks_pass_the_check(name):
    state = torch.get_rng_state()
    check(get_task(name))
    assert torch.equal(torch.get_rng_state(), state)


MODEL = "return nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))"
LOSS = 'return F.cross_entropy(model(x), y, reduction="none")'
ORDER = "torch.randperm(len(y), generator=order)"
STEPS = "    steps = 200 "
LAST = "    # @property"
LOOP = "        while True:\n    "
YIELD = "                yield x[batch], y[batch]"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (STEPS, "    stepz = 200 ", "steps must be a positive whole number, as in `steps = 500`; it is missing"),
        (STEPS, "    steps = 0 ", "steps must be a positive whole number, .*got 0"),
        (STEPS, "    steps = 2e3 ", r"steps must be a positive whole number, .*got 2000\.0"),
        (STEPS, "    steps = True ", "steps must be a positive whole number, .*got True"),
        (STEPS, "    evaluations = 0; steps = 5", "evaluations must be a positive whole number"),
        (STEPS, "    schedule = 'cosin'; steps = 5", "schedule must be 'cosine' or 'constant', got 'cosin'"),
        (STEPS, "    schedule = 'linear'; steps = 5", "schedule must be 'cosine' or 'constant', got 'linear'"),
        (STEPS, "    reference = 0.1; steps = 5", r"reference must be a loss and its source, .*, got 0\.1"),
        (STEPS, "    equivalence = -1; steps = 5", "equivalence must be a difference of losses, 0 or more, got -1"),
        (STEPS, "    held_out = 'no'; steps = 5", "held_out must be True or False"),
        (STEPS, "    name = 5; steps = 5", "name must be a text"),
        ("def evaluate", "def evaluated", "`evaluate` is missing; write it, or `held_out = False`"),
        (MODEL, MODEL.removeprefix("return "), r"model must return a torch\.nn\.Module, got None \(is a `return`"),
        (MODEL, "return nn.Linear", r"model must return a torch\.nn\.Module, got the class Linear itself"),
        (MODEL, "return nn.Sequential(nn.Flatten())", "model must have parameters to train"),
        (MODEL, "return self.__dict__.setdefault('net', nn.Linear(30, 2))", "model must return a new module each time"),
        (
            MODEL,
            "m = nn.Linear(30, 2); m.weight.data.normal_(generator=self.__dict__.setdefault('g', torch.Generator()));"
            " return m",
            "torch's global generator: two calls .* different weights",
        ),
        (MODEL, "return nn.Linear(31, 2)", r"^my_task\.py, line \d+: RuntimeError: mat1 and mat2 shapes cannot"),
        (LOSS, "F.cross_entropy(model(x), y)", "losses must return a tensor, one loss per example, got None"),
        (LOSS, "return F.cross_entropy(model(x), y).item()", "losses must return a tensor, .*got float"),
        (LOSS, "return model(x)", r"shape \(examples,\), got \(32, 2\); average over the rest, \.mean\(1\)"),
        (LOSS, "return model(x)[:, :, None]", r"got \(32, 2, 1\); average over the rest, \.mean\(\(1, 2\)\)"),
        (LOSS, "return model(x)[:0, 0]", r"losses must return one loss per example, shape \(examples,\), got \(0,\)"),
        (LOSS, "return model(x).argmax(1)", r"losses must be floating-point numbers, got torch\.int64"),
        (LOSS, "return F.cross_entropy(model(x), y).detach()", "losses must carry their graph"),
        (LOSS, "return x.requires_grad_().sum(1)", "losses do not depend on the model's parameters"),
        (LOSS, "return model(x).sum(1).log()", "losses must be finite at the start"),
        (LOOP, "        if True:\n    ", "batches ended after 11, and a run takes 200: .*`while True:`"),
        (LOOP, "        if False:\n    ", "batches ended after 0"),
        (YIELD, "                return [x, y]", "batches must return an iterator.*list"),
        (ORDER, "torch.randperm(len(y))", "batches must draw from `order` and nothing else"),
        (ORDER, "torch.tensor(__import__('numpy').random.permutation(341))", "draw from `order` and nothing else"),
        (
            "F.cross_entropy(scores, y).item(),",
            "F.cross_entropy(scores, y, reduction='none'),",
            r"evaluate must return numbers, got a tensor of shape \(\d+,\) for 'loss': \.mean\(\)\.item\(\)",
        ),
        ('"loss": F', '"Loss": F', "evaluate must return a dict with \"loss\", got a dict with 'Loss', 'accuracy'"),
        ("F.cross_entropy(scores, y).item()", "float('nan')", "evaluate gave the validation loss nan"),
        ("= self.parts[split]", "= self.parts[split + '!']", r"^my_task\.py, line \d+: KeyError: 'validation!'"),
        ("return [part for", "return [parts for", r"^my_task\.py, line \d+: NameError"),
        (LAST, '    spaces = {"sgd": {"lr": [1e-3, 1]}}\n    #', r"spaces: sgd, lr: a Range, .*got \[0\.001, 1\]"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_task_is_told_in_a_sentence(old, new, message):
    task = edited((old, new))
    with pytest.raises(ValueError, match=message) as error:
        check(task)
    assert str(error.value).startswith("my_task.py")
    assert "\n" not in str(error.value)


def test_a_mean_is_as_good_as_losses_and_a_space_may_hold_numbers():
    check(edited((LOSS, "return F.cross_entropy(model(x), y)")))
    check(edited((STEPS, "    reference = (0.1, 'a paper'); equivalence = 0.01; steps = 5  ")))
    task = edited((LAST, '    spaces = {"sgd": {"lr": 1, "nesterov": True, "momentum": 0.9}}\n    #'))
    check(task)
    assert task.spaces["sgd"]["lr"] == 1


# --- the template ---


def test_the_template_is_a_task_and_its_run_learns():
    task = edited()
    check(task)
    assert task.name == "my_task"
    assert task.summary.startswith("569 tumours")
    outcome = train(Run("my_task.py", "adamw", {"lr": 0.01, "beta1": 0.9, "beta2": 0.999}, seed=1, test=True))
    assert outcome.status == "finished"
    assert outcome.result["loss"] < 0.3 * outcome.curve["validation loss"][0]
    assert outcome.result["accuracy"] > 0.9


def test_the_template_says_what_holds_without_its_comments():
    edited()
    told = re.findall(r"^    # (\w+) = (\S+) +# ", Path("my_task.py").read_text(), flags=re.MULTILINE)
    values = {name: value for name, value in told if name != "name"}  # whose default is the file's
    assert values == {name: repr(getattr(Task, name)).replace("'", '"') for name in values}
    assert len(values) == 5


def test_the_template_is_commented_python_throughout():
    edited()
    text = Path("my_task.py").read_text()
    assert "fallline race my_task.py" in text.splitlines()[0]
    switched_on = re.sub(r"^    # (@property|def spaces|    return)", r"    \1", text, flags=re.MULTILINE)
    switched_on = "from fallline.bench.common.spaces import Range\n" + re.sub(
        r"^    # (\w+ = )", r"    \1", switched_on, flags=re.MULTILINE
    )
    Path("on.py").write_text(switched_on)
    task = get_task("on.py")
    check(task)
    assert task.name == "my-task"
    assert task.spaces == {"sgd": {"lr": Range(1e-3, 10.0), "momentum": 0.9}}


def test_a_template_overwrites_nothing():
    Path("my_task.py").write_text("precious")
    with pytest.raises(ValueError, match=r"my_task\.py is there already"):
        new_task(Path("my_task.py"))
    assert Path("my_task.py").read_text() == "precious"
    with pytest.raises(ValueError, match=r"a Python file, as my_task\.py; got my_task$"):
        new_task(Path("my_task"))
    with pytest.raises(ValueError, match="cannot be written: No such file or directory"):
        new_task(Path("nowhere/my_task.py"))


# --- the page ---


def test_the_page_s_task_and_optimizer_run():
    for name, text in blocks().items():
        Path(name).write_text(text, encoding="utf-8")
    task = get_task("my_task.py")
    check(task)
    spaces = read_spaces(Path("spaces.toml"))
    space = spaces.pop("my_module:MyOptimizer")
    assert space == {
        "lr": Range(1e-4, 0.1),
        "momentum": Range(0.01, 0.5, "one minus log"),
        "nesterov": Choice((True, False)),
        "weight_decay": 0.01,
    }
    assert spaces == {"adamw": {"weight_decay": Range(1e-4, 1.0)}}
    tuned = {name: dimension for name, dimension in space.items() if isinstance(dimension, Range | Choice)}
    outcomes = [
        train(Run("my_task.py", "my_module:MyOptimizer", {"weight_decay": 0.01, **settings}, seed=1))
        for settings in trials(tuned, 4, seed=1)
    ]
    assert all(outcome.status == "finished" for outcome in outcomes)
    assert min(outcome.score for outcome in outcomes) < 0.3 * outcomes[0].curve["validation loss"][0]


def test_the_page_names_all_that_a_task_has():
    text = PAGE.read_text(encoding="utf-8").partition("## An optimizer")[0]
    told = set(re.findall(r"`(\w+)(?:\([\w, ]*\))?`", "".join(re.findall(r"^\|([^|]*)\|", text, flags=re.MULTILINE))))
    has = {name for base in (Task, Task.__base__) for name in (*vars(base), *inspect.get_annotations(base))}
    has = {name for name in has if not name.startswith("_")}
    assert told == has - {"floor", "floor_name", "horizon", "describe"}  # rarely known; made from others


def test_the_page_s_message_is_the_one_that_comes():
    Path("my_task.py").write_text(
        blocks()["my_task.py"].replace('return F.cross_entropy(model(x), y, reduction="none")', "return model(x)")
    )
    with pytest.raises(ValueError, match="one loss per example") as error:
        check(get_task("my_task.py"))
    assert str(error.value) in PAGE.read_text(encoding="utf-8").replace("\n", " ")


def test_the_page_s_model_from_transformers_trains():
    pytest.importorskip("transformers", reason="transformers is not installed: the page's GPT-2 is not tried")
    Path("gpt2_task.py").write_text(blocks()["gpt2_task.py"], encoding="utf-8")
    task = get_task("gpt2_task.py")
    check(task)
    settings = trials({"lr": Range(0.1, 3.0), "qv": Range(1e-3, 10.0)}, 1, seed=1)[0]
    outcome = train(Run("gpt2_task.py", "koala-m", settings, seed=1))
    assert outcome.status == "finished"
    assert outcome.score < outcome.curve["validation loss"][0] - 0.5
