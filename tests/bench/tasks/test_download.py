"""Getting data, from a server on this machine that does what servers do: answer, break off, lie, refuse."""

import errno
import hashlib
import io
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest
from typer.testing import CliRunner

from fallline.bench.cli.data import app
from fallline.bench.tasks.data import DATASETS, Archive, DataError, DataSet, fetch, find

WORDS = {
    "ptb.train.txt": b"the line falls\n" * 20_000,  # several of the pieces in which it is written
    "ptb.valid.txt": b"the line\n",
    "ptb.test.txt": b"falls\n",
}


class Server(ThreadingHTTPServer):
    """Serves `content` by path; of those in `short` only a half."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.short: set[str] = set()
        self.with_length = True
        self.asked: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server

    def do_GET(self) -> None:
        """Send what there is under that path."""
        path = self.path.removeprefix("/")
        self.server.asked.append(path)
        assert self.headers["Accept-Encoding"] == "identity"  # else no answer, and the test fails
        if path not in self.server.content:
            self.send_error(404)
            return
        content = self.server.content[path]
        self.send_response(200)
        if self.server.with_length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if path in self.server.short else content)

    def log_message(self, *args: object) -> None:
        """Be silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server in a thread."""
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that is not there yet, and no proxy before the server."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FALLLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FALLLINE_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def md5(content: bytes) -> str:
    """As the table writes it."""
    return f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"


@pytest.fixture
def treebank(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """The Penn Treebank, three files of some words, and the server that has them."""
    server.content |= WORDS
    files = tuple(
        replace(
            file,
            count=len(WORDS[file.name].split()) + WORDS[file.name].count(b"\n"),
            checksum=md5(WORDS[file.name]),
            size=len(WORDS[file.name]),
            addresses=(f"{server.address}/{file.name}",),
        )
        for file in DATASETS["penn-treebank"].files
    )
    small = replace(DATASETS["penn-treebank"], files=files)
    monkeypatch.setitem(DATASETS, "penn-treebank", small)
    return small


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_set_arrives_whole_and_once(treebank: DataSet, server: Server, folder: Path):
    paths = fetch("penn-treebank")
    assert contents(folder) == {f"penn-treebank/{name}": content for name, content in WORDS.items()}
    assert sorted(path.name for path in folder.iterdir()) == ["penn-treebank"], "no folder is left over"
    assert find("penn-treebank") == paths == fetch("penn-treebank")
    assert server.asked == list(WORDS)


def test_what_is_there_and_right_is_not_asked_for_again(treebank: DataSet, server: Server, folder: Path):
    fetch("penn-treebank")
    server.asked.clear()
    (folder / "penn-treebank/ptb.valid.txt").write_bytes(b"something else\n")
    (folder / "penn-treebank/ptb.test.txt").rename(folder / "penn-treebank/ptb.test.txt.gz")  # and so no gzip file
    fetch("penn-treebank")
    assert server.asked == ["ptb.valid.txt", "ptb.test.txt"]
    assert [path.read_bytes() for path in find("penn-treebank")] == list(WORDS.values())


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("breaks off", "broke off before the end"),
        ("ends early", "gave a file with another checksum than the published md5:"),
        ("lies", "gave a file with another checksum than the published md5:"),
        ("has nothing", r"answered 404 \(Not Found\)"),
        ("is gone", "could not be reached"),
    ],
)
def test_a_failed_download_is_told_and_changes_nothing(
    treebank: DataSet, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str, told: str
):
    (folder / "penn-treebank").mkdir(parents=True)
    (folder / "penn-treebank/ptb.train.txt").write_bytes(b"mine")
    match fault:
        case "breaks off":
            server.short.add("ptb.train.txt")
        case "ends early":
            server.short.add("ptb.train.txt")
            server.with_length = False
        case "lies":
            server.content["ptb.train.txt"] = WORDS["ptb.train.txt"].upper()
        case "has nothing":
            del server.content["ptb.train.txt"]
        case "is gone":
            first = replace(treebank.files[0], addresses=("http://127.0.0.1:9/ptb.train.txt",))  # the port of no one
            monkeypatch.setitem(DATASETS, "penn-treebank", replace(treebank, files=(first, *treebank.files[1:])))
    with pytest.raises(DataError, match=rf"^ptb.train.txt could not be downloaded: http://127.* {told}") as error:
        fetch("penn-treebank")
    assert "\n" not in str(error.value)
    assert contents(folder) == {"penn-treebank/ptb.train.txt": b"mine"}
    assert len(list(folder.iterdir())) == 1


def test_where_one_address_fails_the_next_is_asked(treebank: DataSet, server: Server, monkeypatch: pytest.MonkeyPatch):
    addresses = tuple(f"{server.address}/{name}" for name in ("gone.txt", "ptb.valid.txt", "ptb.train.txt"))
    first = replace(treebank.files[0], addresses=addresses)
    monkeypatch.setitem(DATASETS, "penn-treebank", replace(treebank, files=(first, *treebank.files[1:])))
    assert fetch("penn-treebank")[0].read_bytes() == WORDS["ptb.train.txt"]
    assert server.asked[:3] == ["gone.txt", "ptb.valid.txt", "ptb.train.txt"]


def test_a_disk_that_is_too_full_is_told_before_anything_is_asked(
    treebank: DataSet, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 2000, 2000))
    with pytest.raises(DataError, match=r"too full: Penn Treebank takes 300.0 kB, and .*data has room for 2.0 kB"):
        fetch("penn-treebank")
    assert server.asked == []
    assert contents(folder) == {}


def test_a_disk_that_fills_up_is_told_and_nothing_half_made_is_left(
    treebank: DataSet, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def fill_up(self: object, url: str, output_file: str, pooch: object, check_only: bool = False) -> None:
        Path(output_file).write_bytes(b"the first hal")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", fill_up)
    with pytest.raises(DataError, match=f"^the disk is full: {folder} has no room for Penn Treebank$"):
        fetch("penn-treebank")
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(treebank: DataSet, folder: Path):
    folder.write_text("a file")
    with pytest.raises(DataError, match=f"^{folder} cannot be written to: File exists"):
        fetch("penn-treebank")


class Interrupted:
    """A bar at which somebody presses Ctrl-C."""

    total = 0

    def update(self, count: int) -> None:
        """Press."""
        assert self.total == len(WORDS["ptb.train.txt"])
        raise KeyboardInterrupt

    def reset(self) -> None:
        """Never reached."""

    close = reset


def test_an_interrupt_leaves_nothing_half_made(treebank: DataSet, folder: Path):
    with pytest.raises(KeyboardInterrupt):
        fetch("penn-treebank", progress=lambda name: Interrupted())
    assert list(folder.iterdir()) == []


# --- archives ---


def tar(members: dict[str, bytes | str]) -> bytes:
    """A packed tar file of contents, and of links where a member is text."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def serve_archive(monkeypatch: pytest.MonkeyPatch, server: Server, name: str, packed: bytes) -> None:
    """Let the set's archive be this."""
    known = DATASETS[name].archive
    assert known
    server.content["packed"] = packed
    small = Archive((f"{server.address}/packed",), md5(packed), known.folder, len(packed))
    files = tuple(replace(file, checksum=md5(file.name.encode()), size=10) for file in DATASETS[name].files)
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], archive=small, files=files))


@pytest.mark.parametrize(("name", "pack"), [("cifar-10", tar), ("cifar-100", tar), ("wikitext-2", zipped)])
def test_of_an_archive_the_sets_files_are_taken_and_no_others(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, pack
):
    inner, names = DATASETS[name].archive.folder, [file.name for file in DATASETS[name].files]
    evil = {
        "../outside": b"x",
        "/tmp/outside-of-fallline": b"x",
        f"{inner}/../../outside": b"x",
        f"{inner}/readme": b"x",
    }
    serve_archive(monkeypatch, server, name, pack({**evil, **{f"{inner}/{one}": one.encode() for one in names[::-1]}}))
    paths = fetch(name)
    assert contents(folder.parent) == {f"data/{DATASETS[name].places[0]}/{one}": one.encode() for one in names}
    assert not Path("/tmp/outside-of-fallline").exists()
    assert find(name) == paths == fetch(name)
    assert server.asked == ["packed"], "what is there has the files' own checksums"


@pytest.mark.parametrize(
    ("packed", "told"),
    [
        pytest.param(tar({"cifar-100-binary/train.bin": b"train.bin"}), "has no file .*/test.bin", id="file missing"),
        pytest.param(
            tar({"cifar-100-binary/train.bin": "/etc/passwd", "cifar-100-binary/test.bin": b"test.bin"}),
            "has no file .*/train.bin",
            id="link instead",
        ),
        pytest.param(b"no archive at all", "is corrupt: ", id="no archive"),
        pytest.param(tar({"cifar-100-binary/train.bin": bytes(10**6)})[:-500], "is corrupt: ", id="truncated"),
    ],
)
def test_a_wrong_archive_is_told_and_leaves_nothing(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, packed: bytes, told: str
):
    serve_archive(monkeypatch, server, "cifar-100", packed)
    with pytest.raises(DataError, match=f"^packed {told}"):
        fetch("cifar-100")
    assert list(folder.iterdir()) == []


# --- the command ---


def test_the_command_gets_lists_and_checks(treebank: DataSet, server: Server, folder: Path):
    run = CliRunner().invoke
    listed = run(app, [])
    assert listed.exit_code == 0
    assert "fallline data get penn-treebank" in listed.stdout
    got = run(app, ["get", "penn-treebank"])
    assert (got.exit_code, got.stderr.strip()) == (0, "")
    assert str(folder / "penn-treebank") in got.stdout
    assert "Do not publish it" in got.stdout
    assert "fallline data get penn-treebank" not in run(app, []).stdout
    checked = run(app, ["check", "penn-treebank"])
    assert "80,000 training, 3 validation, 2 test words, 4 different. All files" in checked.stdout
    (folder / "penn-treebank/ptb.test.txt").write_bytes(b"line\n")
    checked = run(app, ["check", "all"])
    assert checked.exit_code == 0
    assert "Other than published, by checksum: ptb.test.txt" in checked.stdout


def test_the_command_says_what_is_wrong_and_goes_on(treebank: DataSet, server: Server, folder: Path):
    run = CliRunner().invoke
    got = run(app, ["get", "imagenet", "penn-treebank"])
    assert got.exit_code == 1
    assert "Error: ImageNet cannot be downloaded by this command" in got.stderr
    assert "imagenet/train/CLASS/" in got.stderr
    assert len(find("penn-treebank")) == 3, "the next had its turn"
    checked = run(app, ["check", "mnist"])
    assert checked.exit_code == 1
    assert "train-images-idx3-ubyte.gz is looked for" in checked.stderr
    assert run(app, ["get", "mnits"]).exit_code == 2
