"""Lightning: attach and follow in configure_optimizers; evaluation and checkpoints are then at the filtered point."""

import torch
from lightning import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

from fallline import MomentumKOALA


class Digits(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        self.criterion = torch.nn.CrossEntropyLoss()

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.criterion(self.net(batch[0].float() / 16), batch[1])

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("loss", self.training_step(batch, index))

    def configure_optimizers(self) -> MomentumKOALA:
        optimizer = MomentumKOALA(self.parameters())
        optimizer.attach()  # lightning's closure knows the last micro-batch only
        optimizer.follow(self.net)  # evaluation at the filtered point
        return optimizer


def train(accumulate: int = 1, **options) -> tuple[Digits, float]:
    """Three epochs of handwritten digits in batches of 64: the model, and its loss on the test set."""
    train_set, test_set = random_split(TensorDataset(*map(torch.tensor, load_digits(return_X_y=True))), [1536, 261])
    trainer = Trainer(max_epochs=3, accumulate_grad_batches=accumulate, accelerator="cpu", **options)
    trainer.fit(Digits(), DataLoader(train_set, 64 // accumulate, shuffle=True), DataLoader(test_set, 261))
    return trainer.lightning_module, trainer.callback_metrics["loss"].item()


if __name__ == "__main__":
    print(f"test loss {train(default_root_dir='runs')[1]:.3f}")
