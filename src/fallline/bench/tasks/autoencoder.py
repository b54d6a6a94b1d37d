"""Images that are to be told from a few numbers: the deep autoencoder on MNIST and Fashion-MNIST."""

from torch import Tensor, nn
from torch.nn import functional as F

from fallline.bench.tasks._task import Split
from fallline.bench.tasks.images import EVALUATED, Images


class Autoencoder(Images):
    """Binary cross-entropy of the pixels, which are taken for probabilities in [0, 1], from `DATA-autoencoder`.

    The loss of an image is the mean over its pixels, in nats. It does not come near zero even for a perfect network: a
    grey pixel has an entropy.
    """

    def losses(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Of every image, in nats per pixel."""
        pixels, _ = self._on(batch.device)["train"]
        return per_image(model, self._normalised(pixels[batch[:, 0]], model))

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean loss, in nats per pixel."""
        pixels, _ = self._on(next(model.parameters()).device)[split]
        total = 0.0
        for images in pixels.split(EVALUATED):
            total += per_image(model, self._normalised(images, model)).sum().item()
        return {"loss": total / len(pixels)}


def per_image(model: nn.Module, images: Tensor) -> Tensor:
    """Mean binary cross-entropy over the pixels of each image, in nats, shape (n,)."""
    logits = model(images).float()
    return F.binary_cross_entropy_with_logits(logits, images.flatten(1).to(logits), reduction="none").mean(1)
