"""Sets in memory. They are read once in a process, and shared: do not write to the tensors."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fallline.bench.tasks.data._find import DataError, find, get_dataset
from fallline.bench.tasks.data._folder import decode, list_images, pixels
from fallline.bench.tasks.data._read import read_cifar, read_idx, read_text, words
from fallline.bench.tasks.data._sets import DataSet, File

UNKNOWN = "<unk>"
"""The word that stands for those which a vocabulary lacks."""


class Labelled(NamedTuple):
    """Images and their classes."""

    images: Tensor
    """uint8, shape (images, channels, height, width)."""

    labels: Tensor
    """int64, shape (images,)."""


@dataclass(frozen=True, eq=False)
class Images:
    """A set of images."""

    train: Labelled
    test: Labelled
    classes: tuple[str, ...]
    """Names by label."""

    mean: tuple[float, ...]
    """Of x/255 over the training images, per channel, as people use it."""

    std: tuple[float, ...]
    """The standard deviation, likewise."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text: tokens as their places in the vocabulary."""

    train: Tensor
    """int64, shape (tokens,), as the other two."""

    validation: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]
    """Words in the order in which they come first in the training split; characters sorted."""


def load_images(name: str) -> Images:
    """A set of images of one size, all of it; the same object each time.

    Raises:
        MissingData: when it is not there.
        DataError: when a file is truncated, corrupt, or has other counts than published.
    """
    dataset = get_dataset(name)
    if dataset.shape is None:
        what = "is too large for memory: read it by image_folder" if dataset.kind == "folder" else "is no set of images"
        raise DataError(f"{dataset.title} {what}")
    return _images(dataset, tuple(find(name)))


def load_text(name: str) -> Corpus:
    """A text, all of it; the same object each time.

    Words are split at blanks, with `<eos>` after every line, and the vocabulary is that of the training split. A text
    of characters is cut 90 / 5 / 5 %.

    Raises:
        MissingData: when it is not there.
        DataError: when a file is truncated, corrupt, or has other counts than published.
    """
    dataset = get_dataset(name)
    if dataset.kind not in ("words", "characters"):
        raise DataError(f"{dataset.title} is no text")
    paths = tuple(find(name))
    return _words(dataset, paths) if dataset.kind == "words" else _characters(dataset, paths)


@cache
def _images(dataset: DataSet, paths: tuple[Path, ...]) -> Images:
    shape = dataset.shape
    assert shape is not None
    classes = dataset.classes
    parts: dict[str, list[Labelled]] = {"train": [], "test": []}
    files = list(zip(dataset.files, paths, strict=True))
    if dataset.kind == "idx":
        for (file, path), (labels_file, labels_path) in zip(files[::2], files[1::2], strict=True):
            images = read_idx(path, shape[1:])[:, None]
            labels = read_idx(labels_path, ()).long()
            _counted(file, path, len(images), "images")
            _counted(labels_file, labels_path, len(labels), "labels")
            _in_range(labels_path, labels, len(classes))
            parts[file.split].append(Labelled(images, labels))
    elif dataset.kind == "cifar":
        for file, path in files:
            part = Labelled(*read_cifar(path, shape, dataset.label_bytes))
            _counted(file, path, len(part.images), "images")
            _in_range(path, part.labels, len(classes))
            parts[file.split].append(part)
    else:
        classes = list_images(paths[0]).classes
        for (file, path), known in zip(files, (None, classes), strict=True):
            listed = list_images(path, known)
            images = torch.empty(len(listed.paths), *shape, dtype=torch.uint8)
            for i, one in enumerate(listed.paths):
                image = pixels(decode(one))
                if image.shape != shape:
                    raise DataError(f"{one} has {image.shape[2]}x{image.shape[1]} pixels, not {shape[2]}x{shape[1]}")
                images[i] = image
            parts[file.split].append(Labelled(images, listed.labels))
    return Images(_joined(parts["train"]), _joined(parts["test"]), classes, dataset.mean, dataset.std)


def _joined(parts: list[Labelled]) -> Labelled:
    if len(parts) == 1:  # no copy: ImageNet32 has 3.9 GB
        return parts[0]
    return Labelled(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


@cache
def _words(dataset: DataSet, paths: tuple[Path, ...]) -> Corpus:
    splits: dict[str, Tensor] = {}
    vocabulary: dict[str, int] = {}
    for file, path in zip(dataset.files, paths, strict=True):  # the training split is the first
        found = words(read_text(path))
        _counted(file, path, len(found), "tokens")
        if file.split == "train":
            vocabulary = {word: i for i, word in enumerate(dict.fromkeys(found))}
        for word in set(found) - vocabulary.keys():
            if UNKNOWN not in vocabulary:
                raise DataError(f"{path} has the word {word!r}, which the training split lacks, and so does {UNKNOWN}")
        unknown = vocabulary.get(UNKNOWN, -1)
        splits[file.split] = torch.tensor([vocabulary.get(word, unknown) for word in found])
    return Corpus(**splits, vocabulary=tuple(vocabulary))


@cache
def _characters(dataset: DataSet, paths: tuple[Path, ...]) -> Corpus:
    (path,), (file,) = paths, dataset.files
    text = read_text(path)
    _counted(file, path, len(text), "characters")
    cuts = [0, len(text) * 18 // 20, len(text) * 19 // 20, len(text)]
    vocabulary = {character: i for i, character in enumerate(sorted(set(text[: cuts[1]])))}
    if strange := sorted(set(text) - vocabulary.keys()):
        raise DataError(f"{path} has the character {strange[0]!r} in its last tenth only, where nothing can be learnt")
    tokens = torch.tensor([vocabulary[character] for character in text])
    train, validation, test = (tokens[start:end] for start, end in pairwise(cuts))
    return Corpus(train, validation, test, tuple(vocabulary))


def _counted(file: File, path: Path, found: int, what: str) -> None:
    if found != file.count:
        raise DataError(f"{path} has {found:,} {what}, not {file.count:,} as published")


def _in_range(path: Path, labels: Tensor, classes: int) -> None:
    if len(wrong := (labels >= classes).nonzero()):
        place = int(wrong[0])
        raise DataError(
            f"{path} is corrupt: its label {place:,} (from 0) is {int(labels[place])}, beyond {classes} classes"
        )
