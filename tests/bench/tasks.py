"""What the benchmarks of policies train: a small CNN on Fashion-MNIST and a byte-level language model.

The data lies in the folder that TRIMTAB_BENCH_DATA names: Fashion-MNIST's four .gz files in `fashion_mnist`, and a text
in `tinyshakespeare/input.txt`. `digits`, on which the policies of the sensitivity benchmark were chosen, comes with
scikit-learn.
"""

import gzip
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from lockstep import Data, Task
from torch import Tensor, nn

CONTEXT, WIDTH, HELD = 16, 48, 64


def file(name: str) -> bytes:
    path = Path(os.environ.get("TRIMTAB_BENCH_DATA", "data")) / name
    if not path.is_file():
        raise SystemExit(f"there is no {path}: put it there, or set TRIMTAB_BENCH_DATA to the folder that has {name}")
    return path.read_bytes()


def images(part: str) -> tuple[Tensor, Tensor]:
    def read(name: str, skip: int) -> Tensor:
        data = gzip.decompress(file(f"fashion_mnist/{part}-{name}-ubyte.gz"))
        return torch.frombuffer(bytearray(data)[skip:], dtype=torch.uint8)

    x, y = read("images-idx3", 16).view(-1, 1, 28, 28).float() / 255 - 0.5, read("labels-idx1", 8).long()
    return x, y


def fashion_mnist() -> Data:
    return *images("train"), *images("t10k")


def small_cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 49, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def mistakes(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share that is classified wrongly; NaN where the model is not finite any more."""
    scores = torch.cat([model(part) for part in x.split(1000)])
    if not torch.isfinite(scores).all():
        return float("nan")
    return int((scores.argmax(1) != y).sum()) / len(y)


def text() -> Data:
    """Windows of CONTEXT bytes and the bytes that follow each; each HELD-th window is held out."""
    raw = torch.frombuffer(bytearray(file("tinyshakespeare/input.txt")), dtype=torch.uint8)
    rows = raw[: len(raw) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1).long()
    held = torch.arange(len(rows)) % HELD == 0
    return rows[~held, :-1], rows[~held, 1:], rows[held, :-1], rows[held, 1:]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ByteLM(nn.Module):
    """A GPT of two layers over bytes, 0.07M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(128, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(Attention(), Attention())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.blocks(self.bytes(x) + self.places.weight)))
        return out


def predict(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def mean_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Nats a byte."""
    losses = [predict(model, a, b) * len(a) for a, b in zip(x.split(256), y.split(256), strict=True)]
    return float(torch.stack(losses).sum()) / len(x)


def digits() -> Data:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    bunch = load_digits()
    x, y = torch.tensor(bunch.data, dtype=torch.float32) / 16 - 0.5, torch.tensor(bunch.target)
    held = torch.arange(len(x)) % 5 == 0
    return x[~held], y[~held], x[held], y[held]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


TASKS = {
    task.name: task
    for task in (
        Task("fashion_mnist", fashion_mnist, small_cnn, classify, mistakes, 0.15, False, 300_000, 2_500),
        Task("bytes_lm", text, ByteLM, predict, mean_loss, 1.95, True, 140_000, 2_000),
        Task("digits", digits, mlp, classify, mistakes, 0.04, False, 200_000, 2_000),
    )
}
