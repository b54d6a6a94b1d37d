"""Image folders, `SPLIT/CLASS/image.jpg`: which files, and their pixels."""

import math
import os
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fallline.bench.common.names import needed
from fallline.bench.tasks.data._find import DataError, find, get_dataset

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp"}
SCALE = (0.08, 1.0)
"""What a random crop takes of an image's area (Szegedy et al., 2015)."""

RATIO = (3 / 4, 4 / 3)
"""Its width by its height."""

MARGIN = 0.875
"""What the central crop takes of the shorter side."""


@dataclass(frozen=True, eq=False)
class Files:
    """The images of a split, by class and name."""

    paths: tuple[str, ...]
    """Text, not `Path`: of a million files these take an eighth of the memory."""

    labels: Tensor
    """int64, shape (images,)."""

    classes: tuple[str, ...]
    """The training split's folders, sorted."""


def image_folder(name: str, split: Literal["train", "val"]) -> Files:
    """The files of a split of a set that is an image folder; the same object each time.

    Raises:
        MissingData: when the set is not there.
        DataError: when a class has no images, or one of `val` is not in `train`.
    """
    dataset = get_dataset(name)
    if dataset.kind != "folder":
        raise DataError(f"{dataset.title} is no image folder")
    if split not in ("train", "val"):
        raise DataError(f"{dataset.title} has the splits train and val, and no {split!r}")
    train, val = find(name)
    return list_images(train) if split == "train" else list_images(val, list_images(train).classes)


@cache
def list_images(folder: Path, known: tuple[str, ...] | None = None) -> Files:
    """The images below a folder, one folder a class.

    Args:
        folder: what holds the classes' folders. Other files, and hidden folders, do not count.
        known: the classes by label; None for the folders themselves, sorted.

    Raises:
        DataError: when there are no classes, none of `known`, or a class without images.
    """
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise DataError(f"{folder} has no folders: an image folder has one for each class")
    classes = tuple(found) if known is None else known
    labels = {name: label for label, name in enumerate(classes)}
    paths: list[str] = []
    numbers: list[int] = []
    for name in found:
        if name not in labels:
            raise DataError(f"{folder / name} is a class that the training images lack")
        images = sorted(
            entry.path for entry in os.scandir(folder / name) if os.path.splitext(entry.name)[1].lower() in SUFFIXES
        )
        if not images:
            raise DataError(f"{folder / name} has no images ({', '.join(sorted(SUFFIXES))})")
        paths += images
        numbers += [labels[name]] * len(images)
    return Files(tuple(paths), torch.tensor(numbers), classes)


def decode(path: str | Path) -> "Image":
    """The image in a file, red, green and blue.

    Raises:
        DataError: when it cannot be read, or Pillow is missing.
    """
    pillow = needed("PIL.Image", "reading images", extra="images")
    try:
        with pillow.open(path) as image:
            rgb: Image = image.convert("RGB")
            return rgb
    except (OSError, SyntaxError, ValueError, struct.error, pillow.DecompressionBombError) as error:
        # Pillow raises each of these on broken files, and its message may name the file or not
        why = "it is no image" if type(error).__name__ == "UnidentifiedImageError" else str(error)
        raise DataError(f"{path} cannot be read: {why}") from error


def random_resized_crop(image: "Image", size: int, generator: torch.Generator) -> Tensor:
    """A random part of an image, at another size, flipped or not: how ImageNet is trained on.

    The part has 8 to 100 % of the area and 3/4 to 4/3 as ratio of its sides; bicubic.

    Args:
        image: any size.
        size: side of the result, in pixels.
        generator: what part, and whether flipped, is drawn from it.

    Returns:
        uint8, shape (3, size, size).
    """
    width, height = image.size
    low, high = (math.log(ratio) for ratio in RATIO)
    for _ in range(10):  # as a rule the first fits
        area, ratio, left, top = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
        ratio = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            break
    else:  # an image much longer than wide, or wider than long: the largest part of its middle
        w, h = min(width, max(1, round(height * RATIO[1]))), min(height, max(1, round(width / RATIO[0])))
        x, y = (width - w) // 2, (height - h) // 2
    part = image.resize((size, size), _bicubic(), box=(x, y, x + w, y + h))
    flipped = torch.rand((), generator=generator).item() < 0.5
    return pixels(part).flip(2) if flipped else pixels(part)


def centre_crop(image: "Image", size: int) -> Tensor:
    """The middle of an image: how ImageNet is measured on. The shorter side is made size / 0.875 long; bicubic.

    Args:
        image: any size.
        size: side of the result, in pixels.

    Returns:
        uint8, shape (3, size, size).
    """
    width, height = image.size
    factor = round(size / MARGIN) / min(width, height)
    wide, high = max(size, round(width * factor)), max(size, round(height * factor))
    x, y = (wide - size) // 2, (high - size) // 2
    return pixels(image.resize((wide, high), _bicubic()).crop((x, y, x + size, y + size)))


def pixels(image: "Image") -> Tensor:
    """An image in red, green and blue as uint8, shape (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _bicubic() -> Any:
    return needed("PIL.Image", "reading images", extra="images").Resampling.BICUBIC
