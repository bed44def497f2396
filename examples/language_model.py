"""A small transformer language model, with its embedding tied to its output layer, or with a sparse embedding.

The text is Python's own language reference, which every Python carries (pydoc_data.topics, what `help("topics")`
shows): 114,000 words in Python 3.11. Two ways to train it:

    python language_model.py            the output layer shares the embedding's weight (one AdamW)
    python language_model.py --sparse   an embedding of its own, with sparse gradients (SparseAdam, and AdamW for
                                        all else, stepped by hand)

Either way the embedding is centralized too, unless --exclude-embedding is given. Look at the means that are printed: the
sparse embedding has nothing to remove. All that it does passes through a LayerNorm, which takes no notice of the mean of
its input, so the gradient has none. The tied weight is an output layer as well, and there it has.
"""

from __future__ import annotations

import argparse
import math
import pydoc_data.topics
import re
from collections import Counter
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from lightning_gc import GradientCentralization, select

CONTEXT = 32


class LanguageModel(LightningModule):
    """A transformer that predicts the next word.

    Args:
        vocabulary: How many words there are.
        width: Of the embedding and the layers.
        sparse: The embedding is not tied, and its gradients are sparse.
    """

    def __init__(self, vocabulary: int, width: int = 64, sparse: bool = False, lr: float = 3e-3) -> None:
        super().__init__()
        self.sparse, self.lr = sparse, lr
        self.automatic_optimization = not sparse  # two optimizers at each step are stepped by hand
        self.embedding = nn.Embedding(vocabulary, width, sparse=sparse)
        self.positions = nn.Embedding(CONTEXT, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.output = nn.Linear(width, vocabulary, bias=False)
        if not sparse:
            self.output.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        length = words.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=words.device)
        x = self.embedding(words) + self.positions.weight[:length]
        return self.output(self.layers(x, mask=mask, is_causal=True))

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch[0])
        self.log("train_loss", loss, prog_bar=True)
        if self.sparse:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def validation_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch[0]), prog_bar=True)

    def _loss(self, words: Tensor) -> Tensor:
        return F.cross_entropy(self(words[:, :-1]).flatten(0, 1), words[:, 1:].flatten())

    def configure_optimizers(self) -> Any:
        if not self.sparse:
            return torch.optim.AdamW(self.parameters(), self.lr)
        others = [p for p in self.parameters() if p is not self.embedding.weight]
        return [torch.optim.AdamW(others, self.lr), torch.optim.SparseAdam([self.embedding.weight], self.lr)]


def load_text(size: int) -> tuple[Tensor, list[str]]:
    """The text as word numbers, and the `size` commonest words; number 0 stands for all others."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    vocabulary = ["<other>", *(word for word, _ in Counter(words).most_common(size - 1))]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    return torch.tensor([numbers.get(word, 0) for word in words]), vocabulary


def loaders(words: Tensor, batch_size: int = 32) -> tuple[DataLoader, DataLoader]:
    """Pieces of CONTEXT words and the next; every tenth piece is for validation."""
    pieces = words[: len(words) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    held_back = torch.arange(len(pieces)) % 10 == 9
    return (
        DataLoader(TensorDataset(pieces[~held_back]), batch_size, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(pieces[held_back]), batch_size),
    )


@torch.no_grad()
def write_on(model: LanguageModel, start: list[str], vocabulary: list[str], count: int) -> str:
    """Go on from `start` by `count` words, each drawn from the five likeliest."""
    model.eval()
    words = [vocabulary.index(word) for word in start]
    for _ in range(count):
        scores = model(torch.tensor([words[-CONTEXT:]]))[0, -1]
        scores[0] = -torch.inf
        values, likeliest = scores.topk(5)
        words.append(int(likeliest[torch.multinomial(values.softmax(0), 1)]))
    return " ".join(vocabulary[word] for word in words)


def main(argv: list[str] | None = None) -> None:
    """Train, and print what was removed, the perplexity, and a text that the model writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparse", action="store_true", help="an untied embedding with sparse gradients")
    parser.add_argument("--exclude-embedding", action="store_true", help="centralize everything but the embedding")
    parser.add_argument("--no-gc", action="store_true", help="for comparison: without Gradient Centralization")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=1000, help="how many words are known")
    parser.add_argument("--batches", type=int, help="how many batches in an epoch; default: all (about 100)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    seed_everything(args.seed)
    words, vocabulary = load_text(args.vocabulary)
    print(f"Python's language reference: {len(words):,} words, of which {(words > 0).float().mean():.1%} are known")
    model = LanguageModel(len(vocabulary), sparse=args.sparse)
    exclude = ("embedding",) if args.exclude_embedding else ()
    print(select(model, exclude=exclude))
    callback = GradientCentralization(exclude=exclude)
    trainer = Trainer(
        max_epochs=args.epochs,
        limit_train_batches=args.batches,
        limit_val_batches=args.batches,
        callbacks=[] if args.no_gc else [callback],
        accelerator="cpu",
        logger=False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    means = model.embedding.weight.detach().mean(1)
    trainer.fit(model, *loaders(words))

    print("\nThe last logged values:")
    for name, value in sorted(trainer.callback_metrics.items()):
        print(f"  {name:<32} {value:.3e}")
    moved = (model.embedding.weight.detach().mean(1) - means).abs().max()
    print(f"the mean of a word's vector moved by at most {moved:.1e}")
    print(f"perplexity on text that was held back: {math.exp(trainer.callback_metrics['val_loss']):.1f}")
    print(f"it writes: {write_on(model, ['the'], vocabulary, 25)}")


if __name__ == "__main__":
    main()
