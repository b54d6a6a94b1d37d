"""The networks: of the four papers' experiments, to be read beside the paper, and small ones; one file each."""

from fallline.bench.models.autoencoder import autoencoder
from fallline.bench.models.autoregressor import Autoregressor
from fallline.bench.models.bn_cnn import bn_cnn
from fallline.bench.models.cnn import CNN, cifar_cnn, fashion_cnn
from fallline.bench.models.efficientnet import EfficientNet, efficientnet_b0
from fallline.bench.models.gpt import GPT, transformer
from fallline.bench.models.initialisations import INITIALISATIONS, initialise
from fallline.bench.models.lstm import LSTM
from fallline.bench.models.mlp import mlp
from fallline.bench.models.resnet import ResNet, resnet8, resnet18, resnet20, resnet34, resnet50, wide_resnet50_2
from fallline.bench.models.row_lstm import RowLSTM

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
