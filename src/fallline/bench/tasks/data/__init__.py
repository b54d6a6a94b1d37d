"""Real data: what sets there are, where they lie, how they are read, how to get them.

Imports `common` alone.
"""

from fallline.bench.tasks.data._download import Bar, fetch, verified
from fallline.bench.tasks.data._find import DataError, MissingData, find, folders, get_dataset, locate
from fallline.bench.tasks.data._folder import Files, centre_crop, decode, image_folder, random_resized_crop
from fallline.bench.tasks.data._load import Corpus, Images, Labelled, load_images, load_text
from fallline.bench.tasks.data._sets import DATASETS, Archive, DataSet, File

__all__ = [
    "DATASETS",
    "Archive",
    "Bar",
    "Corpus",
    "DataError",
    "DataSet",
    "File",
    "Files",
    "Images",
    "Labelled",
    "MissingData",
    "centre_crop",
    "decode",
    "fetch",
    "find",
    "folders",
    "get_dataset",
    "image_folder",
    "load_images",
    "load_text",
    "locate",
    "random_resized_crop",
    "verified",
]
