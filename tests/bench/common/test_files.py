"""Files: their names, and that no half of one is ever seen, on a full disk neither."""

import ast
import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recorded import race_database
from terminal import call, environment

import fallline
from fallline.bench.cli.new import new_task
from fallline.bench.common.files import append, complaint, put, replacing, stem
from fallline.bench.runs.checkpoint import save as save_run
from fallline.bench.runs.loggers import keep_until
from fallline.bench.runs.processes import Processes
from fallline.papers.claims.examine import keep
from fallline.papers.experiments.listing import listed

PACKAGE = Path(fallline.__file__).parent
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no disk that is always full")


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "page.html"
    put(path, "old – and UTF-8")
    assert path.read_bytes() == "old – and UTF-8".encode()

    def write_half(self, content):
        with self.open("wb") as file:
            file.write(content[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(KeyboardInterrupt):
        put(path, b"new and longer")
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
    assert path.read_text(encoding="utf-8") == "old – and UTF-8"


@pytest.fixture
def full_disk(monkeypatch):
    """From now on there is room for three bytes a file."""

    def write_half(self, content):
        with self.open("wb") as file:
            file.write(content[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `write` does: it does not know the name

    monkeypatch.setattr(Path, "write_bytes", write_half)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, full_disk):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left") as caught:
        put(path, "new and longer")
    assert caught.value.filename == str(path)
    assert complaint(caught.value) == (
        f"the disk is full: {path} cannot be written, and what was there is left as it was"
    )
    assert (os.listdir(tmp_path), path.read_text()) == (["page.html"], "old")


def test_an_error_is_told_with_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file") as caught:
        put(tmp_path / "file" / "page.html", "text")
    assert complaint(caught.value) == f"{tmp_path / 'file'}: {os.strerror(caught.value.errno)}"
    with pytest.raises(IsADirectoryError) as caught:
        put(tmp_path, "text")
    assert complaint(caught.value) == f"{tmp_path}: {os.strerror(errno.EISDIR)}"
    assert complaint(OSError("in words of its own")) == "in words of its own"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_goes_on_pointing_to_its_file(tmp_path):
    real, link = tmp_path / "folder" / "real.html", tmp_path / "link.html"
    real.parent.mkdir()
    link.symlink_to(real)
    for text in ("first", "second"):
        assert put(link, text) == link
        assert link.is_symlink()
        assert real.read_text() == text
    assert os.listdir(real.parent) == ["real.html"]


@needs_full
def test_what_is_no_file_is_written_to_and_stays_what_it_is():
    kind = os.stat(FULL).st_mode
    put(Path(os.devnull), "text")
    with pytest.raises(OSError, match="No space left"):
        put(FULL, "text")
    with pytest.raises(OSError, match="No space left") as caught:
        append(FULL, "text")
    assert caught.value.filename == str(FULL)
    assert os.stat(FULL).st_mode == kind


def test_a_line_is_added_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    append(path, "first")
    append(path, "second – in UTF-8")
    assert path.read_text(encoding="utf-8") == "first\nsecond – in UTF-8\n"
    before = path.read_bytes()

    class Full:
        """A file on a disk that has room for three more bytes."""

        def __init__(self, file):
            self.file, self.room = file, 3

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            count, self.room = self.file.write(content[: self.room]), 0
            return count

    opened = Path.open

    @contextlib.contextmanager
    def full(self, *how, **more):
        with opened(self, *how, **more) as file:
            yield Full(file)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        append(path, "third and longer")
    monkeypatch.undo()
    assert path.read_bytes() == before
    path.write_bytes(before + b"cut sho")  # by a power cut
    append(path, "third")
    assert path.read_bytes() == before + b"cut sho\nthird\n"


def test_a_file_that_somebody_else_writes_appears_whole_too(tmp_path):
    path = tmp_path / "state.pt"

    def write(end):
        with replacing(path) as unfinished:
            unfinished.write_text("half")
            if end:
                raise end
            assert not path.exists()

    for end in (KeyboardInterrupt(), RuntimeError("torch has its own words")):
        with pytest.raises(type(end)):
            write(end)
        assert os.listdir(tmp_path) == []
    write(None)
    assert os.listdir(tmp_path) == ["state.pt"]


@needs_full
def test_a_checkpoint_on_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    optimizer, path = torch.optim.SGD(model.parameters(), 0.1), tmp_path / "run.pt"
    assert save_run(path, Processes(), model, optimizer, {}) is None
    before = path.read_bytes()
    save = torch.save

    def full(state, file):
        file.write(b"half of it")
        save(state, FULL)

    monkeypatch.setattr(torch, "save", full)
    assert save_run(path, Processes(), model, optimizer, {"more": torch.zeros(100_000)})
    assert os.listdir(tmp_path) == ["run.pt"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("form", ["html", "md", "csv", "parquet", "png"])
def test_a_report_on_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch, request, form):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    race_database(Path("runs/fallline.sqlite"))
    assert call("report", "--format", form)[0] == 0
    before = {path.name: path.read_bytes() for path in Path("runs").iterdir()}
    assert len(before) > 1
    request.getfixturevalue("full_disk")
    code, output = call("report", "--format", form)
    assert code == 1, output
    assert (
        f"Error: the disk is full: runs/{sorted(set(before) - {'fallline.sqlite'})[-1 if form == 'csv' else 0][:6]}"
        in output
    )
    assert {path.name: path.read_bytes() for path in Path("runs").iterdir()} == before


def test_a_race_on_a_full_disk_keeps_its_runs_and_says_that_there_is_no_report(tmp_path, monkeypatch, full_disk):
    monkeypatch.chdir(tmp_path)
    small = ("--optimizers", "sgd", "--trials", "2", "--finalists", "1", "--seeds", "2", "--jobs", "1")
    code, output = call("race", "bowl", *small)
    assert (code, "the disk is full: runs/bowl.html cannot be written" in output) == (1, True), output
    assert os.listdir("runs") == ["fallline.sqlite"]
    code, output = call("race", "bowl", *small, "--no-report")
    assert code == 0, output


def test_a_template_on_a_full_disk_leaves_nothing_in_its_place(tmp_path, monkeypatch, full_disk):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"my_task.py cannot be written: No space left"):
        new_task(Path("my_task.py"))
    assert os.listdir() == []


def test_the_page_of_a_check_on_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch, full_disk):
    monkeypatch.chdir(tmp_path)
    Path("found.json").write_text("old")
    code, output = call("check", "sgd", "--only", "state/pickles", "--json", "found.json")
    assert code != 0
    assert "the disk is full" in output
    assert (os.listdir(), Path("found.json").read_text()) == (["found.json"], "old")


@needs_full
def test_what_cannot_be_printed_is_told_in_a_sentence():
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fallline.bench.cli.app", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "Error: the disk is full: what this command prints cannot be written\n"


WRITES = {
    # Into `kept`, which moves it; switches of the kernel's; under a name of its own, and then moved.
    "write_text": {"_engine/triton.py", "bench/check/child.py", "bench/tasks/_file.py"},
    "write_bytes": {"bench/common/files.py"},
    "write_image": set(),
    "savefig": {"bench/report/prints.py"},  # into memory
    "save": {
        "bench/runs/checkpoint.py",
        "bench/check/promises/state.py",
    },  # `replacing`, memory
}
OPENS = {
    "bench/common/files.py",
    "bench/runs/checkpoint.py",  # what `replacing` gives
    "bench/tasks/data/_download.py",  # in a folder that is moved when it is whole
    "bench/check/child.py",  # a pipe
    "bench/race/workers.py",  # what workers print
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_written_but_by_what_leaves_it_whole(path):
    name = path.relative_to(PACKAGE).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in WRITES and (called != "save" or ast.unparse(node.func) == "torch.save"):
            assert name in WRITES[called], ast.unparse(node)
        if called in ("open", "fdopen"):
            modes = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            if any(set(mode) & set("wxa") and len(mode) < 4 for mode in modes):
                assert name in OPENS, ast.unparse(node)


# Reading what somebody has spoiled


def test_lines_that_are_none_go_when_a_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n[1]\n{"step": "2"}\n{"stop": 2}\n\xff\n{"step": 2}\n{"step": 9}\n{"step": 2')
    keep_until(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_record_of_an_experiment_that_cannot_be_read_is_left_out_of_the_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = []
    whole = [(one.name, one.ran) for one in listed(tmp_path, told.append)]
    assert told == []
    spoiled = Path("repro-lodo-bowl.json")
    for text, why in (("{", "is not JSON"), ("[]", "is a list, and not a mapping"), ('{"seconds": 1}', "has no ")):
        told.clear()
        spoiled.write_text(text)
        assert [(one.name, one.ran) for one in listed(tmp_path, told.append)] == whole
        assert len(told) == 1
        assert str(spoiled) in told[0]
        assert why in told[0]


def test_claims_that_were_measured_are_kept_beside_a_record_that_cannot_be_read(tmp_path):
    old = tmp_path / "claims.json"
    old.write_text('{"quick": tr')
    assert keep({"quick": True, "claims": []}, tmp_path) == old
    assert json.loads(old.read_text()) == {"quick": True, "claims": []}
    assert (tmp_path / "claims.unread.json").read_text() == '{"quick": tr'


@pytest.mark.parametrize(
    ("tasks", "name"),
    [
        (("digits",), "digits"),
        (("digits", "bowl"), "digits+bowl"),
        (("package.module:Task",), "package.module.Task"),
        (("../../etc/my_task.py",), "my_task"),
        (("folder/my task.py:Small",), "my.task.Small"),
        (("...",), "task"),
    ],
)
def test_names_are_such_as_a_file_system_takes(tasks, name):
    assert stem(tasks) == name


def test_long_names_are_cut_and_stay_apart():
    one, other = stem(["a" * 200]), stem(["a" * 201])
    assert max(len(one), len(other)) < 80
    assert one != other
