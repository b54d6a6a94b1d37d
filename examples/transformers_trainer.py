"""The Trainer of transformers: attach; evaluation, and saving right after it, are at the filtered point."""

from pydoc_data.topics import topics

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from fallline import MomentumKOALA


def train(accumulate: int = 1, folder: str = "runs/llama", **options) -> tuple[LlamaForCausalLM, float]:
    """Sixty steps on the letters of Python's manual, 16 pieces of 32 a step: the model, and its loss on others."""
    set_seed(0)
    letters = torch.tensor(list("".join(topics.values()).encode()))[: 512 * 32]
    data = [{"input_ids": piece, "labels": piece} for piece in letters.split(32)]
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **size))
    optimizer = MomentumKOALA(model.parameters())
    optimizer.attach()  # the Trainer passes no loss on; it calls optimizer.eval() and train() by itself

    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=16 // accumulate,
        gradient_accumulation_steps=accumulate,
        max_steps=60,
        max_grad_norm=0,  # a clipped gradient is not that of the loss
        eval_strategy="steps",
        eval_steps=20,
        save_steps=20,
        use_cpu=True,
        report_to="none",
    )
    trainer = Trainer(model, arguments, train_dataset=data[:448], eval_dataset=data[448:], optimizers=(optimizer, None))
    trainer.train(**options)
    return model, trainer.evaluate()["eval_loss"]


if __name__ == "__main__":
    print(f"test loss {train()[1]:.3f}")
