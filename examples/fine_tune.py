"""Fine-tune a language model with KOALA-M: it has read Python's manual for seconds, and learns to read Python."""

import argparse
import inspect
from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR
from transformers import LlamaConfig, LlamaForCausalLM

from fallline import MomentumKOALA

LENGTH = 32


def pieces(text: str) -> Tensor:
    """The bytes of a text, in pieces of LENGTH: [pieces, LENGTH]."""
    ids = torch.tensor(list(text.encode()))
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def pretrained(steps: int = 200) -> LlamaForCausalLM:
    """Stands for a model from a hub: a Llama with 2 layers of width 32, trained on Python's manual."""
    torch.manual_seed(0)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **size))
    manual = pieces("".join(topics[name] for name in sorted(topics)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = manual[torch.randint(len(manual), (16,))]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def measure(model: LlamaForCausalLM, batch: Tensor) -> float:
    """Loss a letter, in nats, without dropout."""
    model.eval()
    loss = model(input_ids=batch, labels=batch).loss.item()
    model.train()
    return loss


def fine_tune(model: LlamaForCausalLM, steps: int = 100, folder: str = "runs/fine-tuned") -> list[tuple[float, float]]:
    """Held-out loss at the predicted and at the filtered point, before and after each quarter; saves the filtered."""
    source = pieces(inspect.getsource(argparse))
    training, held_out = source[:-128], source[-128:]

    optimizer = MomentumKOALA(model.parameters(), lr=0.5)
    optimizer.attach()  # the loss to filter is what backward is called on
    schedule = LinearLR(optimizer, 1.0, 0.0, steps)  # of how much of the loss is to go at once

    losses = [(measure(model, held_out),) * 2]
    for step in range(1, steps + 1):
        batch = training[torch.randint(len(training), (16,))]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
        if step % (steps // 4) == 0:
            predicted = measure(model, held_out)  # where the next gradient will be taken
            with optimizer.posterior():  # the estimate that all losses so far support
                losses.append((predicted, measure(model, held_out)))

    with optimizer.posterior():
        model.save_pretrained(folder)
    return losses


if __name__ == "__main__":
    for predicted, filtered in fine_tune(pretrained()):
        print(f"predicted {predicted:.3f}, filtered {filtered:.3f}")
