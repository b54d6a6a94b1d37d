"""Files: their names, and that no half of one is ever seen."""

from pathlib import Path

import pytest

from fallline.bench.files import put, stem


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
