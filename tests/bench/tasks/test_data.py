"""Data sets: what is read from good files, and what is said of bad ones."""

import gzip
import os
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from fallline.bench.tasks.data import (
    DATASETS,
    DataError,
    MissingData,
    centre_crop,
    decode,
    find,
    folders,
    image_folder,
    load_images,
    load_text,
    random_resized_crop,
    verified,
)
from fallline.bench.tasks.data._read import words

REAL = os.environ.get("FALLLINE_DATA")
real = pytest.mark.skipif(not REAL, reason="FALLLINE_DATA is not set: no real data")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, empty as is the cache."""
    monkeypatch.setenv("FALLLINE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FALLLINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def shrink(monkeypatch: pytest.MonkeyPatch, name: str, *counts: int) -> None:
    """Make the table expect other counts in the files of a set."""
    files = tuple(replace(file, count=count) for file, count in zip(DATASETS[name].files, counts, strict=True))
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], files=files))


def put(path: Path, content: bytes | str) -> Path:
    """A file, packed if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def idx(items: np.ndarray) -> bytes:
    """An array of bytes in the form IDX."""
    return bytes([0, 0, 8, items.ndim]) + struct.pack(f">{items.ndim}I", *items.shape) + items.tobytes()


DIGITS = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
KINDS = np.array([3, 1, 4, 1, 9], dtype=np.uint8)


@pytest.fixture
def mnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five images to train on, and the first two of them to test on, in MNIST's files."""
    shrink(monkeypatch, "mnist", 5, 5, 2, 2)
    put(folder / "mnist/train-images-idx3-ubyte.gz", idx(DIGITS))
    put(folder / "mnist/train-labels-idx1-ubyte.gz", idx(KINDS))
    put(folder / "mnist/t10k-images-idx3-ubyte.gz", idx(DIGITS[:2]))
    put(folder / "mnist/t10k-labels-idx1-ubyte.gz", idx(KINDS[:2]))
    return folder / "mnist"


# --- where ---


def test_sets_are_looked_for_in_the_named_folder_then_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FALLLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FALLLINE_DATA", str(tmp_path / "own"))
    assert folders() == [tmp_path / "own", tmp_path / "cache/data"]
    text = put(tmp_path / "cache/data/tiny-shakespeare/input.txt", "")
    assert find("tiny-shakespeare") == [text]
    own = put(tmp_path / "own/tiny-shakespeare/input.txt.gz", "")
    assert find("tiny-shakespeare") == [own]
    monkeypatch.delenv("FALLLINE_DATA")
    assert folders() == [tmp_path / "cache/data"]


def test_a_set_that_is_absent_is_told_with_file_folders_and_command(folder: Path):
    with pytest.raises(MissingData) as told:
        load_images("cifar-10")
    for part in ("data_batch_1.bin", str(folder / "cifar-10/cifar-10-batches-bin"), "`fallline data get cifar-10`"):
        assert part in str(told.value)
    (folder / "imagenet/train").mkdir(parents=True)
    with pytest.raises(MissingData, match=r"val is missing in .*imagenet; `fallline data get imagenet` says"):
        image_folder("imagenet", "train")


def test_a_set_of_which_a_file_is_absent_is_told_with_that_file(mnist: Path):
    (mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MissingData, match=rf"t10k-labels-idx1-ubyte.gz is missing in {mnist}"):
        load_images("mnist")


def test_an_unknown_set_is_told_with_those_near_it():
    with pytest.raises(DataError, match="did you mean fashion-mnist"):
        load_images("fashion_mnist")


# --- IDX ---


def test_images_and_labels_are_those_that_were_written(mnist: Path):
    images = load_images("mnist")
    assert images.train.images.dtype == torch.uint8
    assert torch.equal(images.train.images[:, 0], torch.from_numpy(DIGITS))
    assert images.train.labels.tolist() == [3, 1, 4, 1, 9]
    assert images.train.labels.dtype == torch.int64
    assert torch.equal(images.test.images, images.train.images[:2])
    assert load_images("mnist") is images, "they are read once"


def test_the_layout_of_torchvision_is_read_too(mnist: Path, folder: Path):
    for path in sorted(mnist.iterdir()):
        put(folder / "MNIST/raw" / path.stem, gzip.decompress(path.read_bytes()))
        path.unlink()
    assert load_images("mnist").test.labels.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param(idx(DIGITS)[:10], "is truncated: it has 10 bytes, and the header alone 16", id="half a header"),
        pytest.param(idx(DIGITS)[:-1], "is truncated: 3,919 bytes follow its header, which tells 3,920", id="short"),
        pytest.param(idx(DIGITS) + b"\0", "is too long: 3,921 bytes follow", id="long"),
        pytest.param(b"\x1f\x8b" + idx(DIGITS)[2:], "is no IDX file: it begins with 1f8b0803", id="other magic"),
        pytest.param(b"\0\0\x0d" + idx(DIGITS)[3:], "holds numbers of type 0x0d, not unsigned bytes", id="floats"),
        pytest.param(idx(KINDS) + bytes(8), "has 1 dimensions, not 3", id="labels"),
        pytest.param(idx(DIGITS[:, :14]), "has items of 14x28, not 28x28", id="half images"),
        pytest.param(idx(DIGITS[:4]), "has 4 images, not 5 as published", id="too few"),
    ],
)
def test_a_wrong_idx_file_is_told_with_name_and_fault(mnist: Path, content: bytes, fault: str):
    path = put(mnist / "train-images-idx3-ubyte.gz", content)
    with pytest.raises(DataError) as told:
        load_images("mnist")
    assert str(told.value).startswith(f"{path} {fault}")


def test_a_label_beyond_the_classes_is_told_with_its_place(mnist: Path):
    put(mnist / "t10k-labels-idx1-ubyte.gz", idx(np.array([3, 10], dtype=np.uint8)))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz is corrupt: its label 1 \(from 0\) is 10, beyond"):
        load_images("mnist")


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        pytest.param(lambda packed: packed[:-50], "is truncated: its compressed data end early", id="truncated"),
        pytest.param(lambda packed: b"GIF8" + packed[4:], "is corrupt: Not a gzipped file", id="not gzip"),
        pytest.param(lambda packed: packed[:-8] + bytes(8), "is corrupt: CRC check failed", id="wrong sum"),
    ],
)
def test_a_broken_gzip_file_is_told_with_name_and_fault(mnist: Path, spoil, fault: str):
    path = mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError) as told:
        load_images("mnist")
    assert str(told.value).startswith(f"{path} {fault}")


# --- CIFAR ---


@pytest.mark.parametrize(("name", "files"), [("cifar-10", 6), ("cifar-100", 2)])
def test_cifar_records_are_label_then_planes(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: int):
    shrink(monkeypatch, name, *[2] * files)
    place = folder / DATASETS[name].places[1]
    drawn = np.random.default_rng(1).integers(0, 256, (files, 2, 3, 32, 32), dtype=np.uint8)
    first = [7] if name == "cifar-100" else []  # the superclass, which does not count
    for i, file in enumerate(DATASETS[name].files):
        content = b"".join(bytes([*first, i + j]) + image.tobytes() for j, image in enumerate(drawn[i]))
        put(place / file.name, content)
    images = load_images(name)
    assert torch.equal(images.train.images, torch.from_numpy(drawn[:-1].reshape(-1, 3, 32, 32)))
    assert images.train.labels.tolist() == [i + j for i in range(files - 1) for j in (0, 1)]
    assert images.test.labels.tolist() == [files - 1, files]

    path = place / DATASETS[name].files[-1].name
    whole = path.read_bytes()
    half = len(whole) // 2
    faults = {
        whole[:-1]: "is truncated: 6,1.. bytes are no whole number of records",
        whole[:half]: "has 1 images, not 2",
        whole[:half] + b"\xff\xff" + whole[half + 2 :]: "is corrupt: its label 1 .* is 255",
    }
    for i, (content, fault) in enumerate(faults.items()):
        path.write_bytes(content)
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], title=f"attempt {i}"))  # else it is remembered
        with pytest.raises(DataError, match=f"{path.name} {fault}"):
            load_images(name)


# --- text ---


def test_words_have_an_end_after_every_line_and_the_training_vocabulary(folder: Path, monkeypatch: pytest.MonkeyPatch):
    shrink(monkeypatch, "penn-treebank", 9, 4, 1)
    put(folder / "penn-treebank/ptb.train.txt", " the <unk> falls \n\n the line falls\n")
    put(folder / "penn-treebank/ptb.valid.txt.gz", "a line falls")
    put(folder / "penn-treebank/ptb.test.txt", "\n")
    text = load_text("penn-treebank")
    assert text.vocabulary == ("the", "<unk>", "falls", "<eos>", "line")
    assert text.train.tolist() == [0, 1, 2, 3, 3, 0, 4, 2, 3]
    assert text.validation.tolist() == [1, 4, 2, 3]
    assert text.test.tolist() == [3]
    assert load_text("penn-treebank") is text


def test_only_line_feeds_end_a_line():
    assert words("a\x85b\u2028c\n") == ["a", "b", "c", "<eos>"]
    assert words("") == []


def test_wrong_text_is_told_with_name_and_fault(folder: Path, monkeypatch: pytest.MonkeyPatch):
    shrink(monkeypatch, "penn-treebank", 3, 3, 3)
    train, valid, test = (folder / f"penn-treebank/ptb.{part}.txt" for part in ("train", "valid", "test"))
    put(train, "a line"), put(valid, "no line"), put(test, "a line")
    with pytest.raises(
        DataError, match=f"{valid} has the word 'no', which the training split lacks, and so does <unk>"
    ):
        load_text("penn-treebank")
    put(valid, "a line falls")
    with pytest.raises(DataError, match=f"{valid} has 4 tokens, not 3 as published"):
        load_text("penn-treebank")
    put(valid, b"a \xff")
    with pytest.raises(DataError, match=f"{valid} is not UTF-8 text: byte 2 is 0xff"):
        load_text("penn-treebank")
    valid.unlink()
    valid.mkdir()
    with pytest.raises(DataError, match=f"{valid} cannot be read: Is a directory"):
        load_text("penn-treebank")


def test_characters_are_cut_90_5_5_and_lose_none(folder: Path, monkeypatch: pytest.MonkeyPatch):
    text = "to be or not to be, that is the question\n" * 3
    shrink(monkeypatch, "tiny-shakespeare", len(text))
    path = put(folder / "tiny-shakespeare/input.txt", text)
    corpus = load_text("tiny-shakespeare")
    assert [len(part) for part in (corpus.train, corpus.validation, corpus.test)] == [110, 6, 7]
    tokens = torch.cat([corpus.train, corpus.validation, corpus.test])
    assert "".join(corpus.vocabulary[token] for token in tokens) == text
    assert list(corpus.vocabulary) == sorted(set(text))
    put(path, text[:-1] + "Z")
    monkeypatch.setitem(DATASETS, "tiny-shakespeare", replace(DATASETS["tiny-shakespeare"], title="again"))
    with pytest.raises(DataError, match="has the character 'Z' in its last tenth only"):
        load_text("tiny-shakespeare")


# --- image folders ---


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> None:
    """An image file of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folders_of_images(folder: Path) -> Path:
    """Two classes, two training images each, and one image to test on."""
    for i, name in enumerate(("n02", "n01")):
        for j in range(2):
            paint(folder / f"imagenet32/train/{name}/{j}.png", (100 * i, 100 * j, 7))
    paint(folder / "imagenet32/val/n02/a.JPEG", (9, 9, 9))
    put(folder / "imagenet32/train/n01/notes.txt", "no image")
    return folder / "imagenet32"


def test_classes_are_the_sorted_folders_of_the_training_split(folders_of_images: Path):
    train, val = (image_folder("imagenet32", split) for split in ("train", "val"))
    assert train.classes == val.classes == ("n01", "n02")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert val.labels.tolist() == [1], "the label of the training split, though it is the only class"
    assert [Path(path).relative_to(folders_of_images).as_posix() for path in train.paths] == [
        f"train/{name}/{j}.png" for name in train.classes for j in range(2)
    ]
    images = load_images("imagenet32")
    assert images.train.images[:, :, 5, 5].tolist() == [[100, 0, 7], [100, 100, 7], [0, 0, 7], [0, 100, 7]]
    assert images.test.images.shape == (1, 3, 32, 32)
    with pytest.raises(DataError, match="too large for memory"):
        load_images("imagenet")


def test_wrong_image_folders_are_told(folders_of_images: Path):
    image_folder("imagenet32", "train")
    with pytest.raises(DataError, match="'test'"):
        image_folder("imagenet32", "test")  # type: ignore[arg-type]
    (folders_of_images / "val/n03").mkdir()
    with pytest.raises(DataError, match="val/n03 is a class that the training images lack"):
        image_folder("imagenet32", "val")
    (folders_of_images / "val/n03").rename(folders_of_images / "val/n01")
    with pytest.raises(DataError, match="val/n01 has no images"):
        image_folder("imagenet32", "val")
    paint(folders_of_images / "val/n01/b.png", (1, 1, 1), (32, 31))
    with pytest.raises(DataError, match=r"val/n01/b.png has 32x31 pixels, not 32x32"):
        load_images("imagenet32")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_broken_image_is_told_with_its_file(tmp_path: Path, suffix: str):
    path = tmp_path / f"image.{suffix}"
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=rf"{path} cannot be read: ."):
        decode(path)
    path.write_bytes(b"<html>no such page</html>")
    with pytest.raises(DataError, match=f"{path} cannot be read: it is no image"):
        decode(path)


def test_a_grey_image_becomes_one_of_three_channels(tmp_path: Path):
    Image.new("L", (10, 10), 77).save(tmp_path / "grey.png")
    assert centre_crop(decode(tmp_path / "grey.png"), 7).unique().tolist() == [77]


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (50, 40)], ids=str)
def test_the_central_crop_is_torchs_bicubic_of_the_middle(size: tuple[int, int]):
    rough = torch.from_numpy(np.random.default_rng(3).uniform(40, 215, (1, 3, 6, 6)))
    smooth = F.interpolate(rough, size[::-1], mode="bicubic").clamp(0, 255).round()
    image = Image.fromarray(smooth[0].byte().permute(1, 2, 0).numpy())
    ours = centre_crop(image, 112)
    height, width = (round(side * 128 / min(size)) for side in size[::-1])
    theirs = F.interpolate(smooth, (height, width), mode="bicubic", antialias=True)
    y, x = (height - 112) // 2, (width - 112) // 2
    assert ours.shape == (3, 112, 112)
    assert (ours - theirs[0, :, y : y + 112, x : x + 112]).abs().max() <= 1.5  # Pillow rounds after each direction


def test_random_crops_keep_to_their_areas_and_ratios_and_every_other_is_flipped():
    """Red tells the column and green the row, so that the colours at the edges tell what was cut."""
    width, height = 240, 200
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = Image.fromarray(np.stack([columns, rows, rows * 0], axis=2))
    order = torch.Generator().manual_seed(0)
    areas, flips = [], 0
    for _ in range(400):
        crop = random_resized_crop(image, 64, order).double()
        left, right = crop[0, :, 8].mean().item(), crop[0, :, -9].mean().item()
        top, bottom = crop[1, 8].mean().item(), crop[1, -9].mean().item()
        flips += left > right
        w, h = (abs(end - start) * 64 / 47 for start, end in ((left, right), (top, bottom)))
        assert 0.72 < w / h < 1.39
        areas.append(w * h / (width * height))
    assert 0.075 < min(areas) < 0.11
    assert 0.8 < max(areas) < 1.02
    assert abs(np.mean(areas) - 0.52) < 0.06  # uniform up to 1, but that the largest seldom fit
    assert 160 < flips < 240
    again = random_resized_crop(image, 64, torch.Generator().manual_seed(0))
    assert torch.equal(again, random_resized_crop(image, 64, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("size", "extent"), [((300, 3), (4, 3)), ((3, 300), (3, 4))], ids=str)
def test_of_a_strip_the_middle_is_taken(size: tuple[int, int], extent: tuple[int, int]):
    rows, columns = np.mgrid[: size[1], : size[0]]
    inside = [abs(at - (side - 1) / 2) < cut / 2 for at, side, cut in zip((columns, rows), size, extent, strict=True)]
    image = Image.fromarray(np.where(inside[0] & inside[1], 200, 0).astype(np.uint8)).convert("RGB")
    assert random_resized_crop(image, 8, torch.Generator().manual_seed(0)).min() > 150


# --- the real sets ---


def real_or_skip(name: str) -> None:
    try:
        find(name)
    except MissingData as missing:
        pytest.skip(str(missing))


@real
@pytest.mark.parametrize(
    ("name", "first", "balanced"),
    [
        ("mnist", [5, 0, 4, 1, 9], False),
        ("fashion-mnist", [9, 0, 0, 3, 0], True),
        ("cifar-10", [6, 9, 9, 4, 1], True),
    ],
)
def test_the_real_images_have_the_published_counts_and_means(name: str, first: list[int], balanced: bool):
    real_or_skip(name)
    images = load_images(name)
    assert (len(images.train.images), len(images.test.images)) == (50_000 if name == "cifar-10" else 60_000, 10_000)
    assert images.train.labels[:5].tolist() == first
    assert (len(set(images.train.labels.bincount().tolist())) == 1) == balanced
    for channel, (mean, std) in enumerate(zip(images.mean, images.std, strict=True)):
        counts = images.train.images[:, channel].flatten().bincount(minlength=256).double()
        level = torch.arange(256).double() / 255
        found = (counts * level).sum() / counts.sum()
        assert found.item() == pytest.approx(mean, abs=6e-5)
        spread = ((counts * (level - found).square()).sum() / counts.sum()).sqrt()
        assert spread.item() == pytest.approx(std, abs=6e-5)


@real
@pytest.mark.parametrize(
    ("name", "size", "start"), [("penn-treebank", 10_000, "aer"), ("tiny-shakespeare", 65, "First")]
)
def test_the_real_texts_have_the_published_vocabularies_and_sums(name: str, size: int, start: str):
    real_or_skip(name)
    text = load_text(name)
    assert len(text.vocabulary) == size
    assert "".join(text.vocabulary[token] for token in text.train[:5]).startswith(start)
    assert all(verified(file, path) for file, path in zip(DATASETS[name].files, find(name), strict=True))


def test_the_table_tells_of_every_file_how_to_get_it_and_check_it():
    for dataset in DATASETS.values():
        if dataset.bring:
            continue
        assert dataset.archive or all(file.addresses for file in dataset.files), dataset.name
        for one in (*dataset.files, *([dataset.archive] if dataset.archive else [])):
            algorithm, _, sum_ = one.checksum.partition(":")
            assert len(sum_) == {"md5": 32, "sha1": 40, "sha256": 64}[algorithm]
    assert [len(DATASETS[name].classes) for name in ("mnist", "fashion-mnist", "cifar-10", "cifar-100")] == [10] * 3 + [
        100
    ]
    assert all(first < second for first, second in pairwise(DATASETS["cifar-100"].classes))
