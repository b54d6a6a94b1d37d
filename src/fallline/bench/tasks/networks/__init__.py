"""The networks: of the four papers' experiments, to be read beside the paper, and small ones; one file each.

Imports nothing of ours.
"""

from fallline.bench.tasks.networks.autoencoder import autoencoder
from fallline.bench.tasks.networks.autoregressor import Autoregressor
from fallline.bench.tasks.networks.bn_cnn import bn_cnn
from fallline.bench.tasks.networks.cnn import CNN, cifar_cnn, fashion_cnn
from fallline.bench.tasks.networks.efficientnet import EfficientNet, efficientnet_b0
from fallline.bench.tasks.networks.gpt import GPT, transformer
from fallline.bench.tasks.networks.initialisations import INITIALISATIONS, initialise
from fallline.bench.tasks.networks.lstm import LSTM
from fallline.bench.tasks.networks.mlp import mlp
from fallline.bench.tasks.networks.resnet import (
    ResNet,
    resnet8,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    wide_resnet50_2,
)
from fallline.bench.tasks.networks.row_lstm import RowLSTM

__all__ = [
    "CNN",
    "GPT",
    "INITIALISATIONS",
    "LSTM",
    "Autoregressor",
    "EfficientNet",
    "ResNet",
    "RowLSTM",
    "autoencoder",
    "bn_cnn",
    "cifar_cnn",
    "efficientnet_b0",
    "fashion_cnn",
    "initialise",
    "mlp",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "transformer",
    "wide_resnet50_2",
]
