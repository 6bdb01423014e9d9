"""A byte-level language model: a small GPT on the text of Python's own standard library, so on any machine.

trimtab run examples/bytes_lm.py --workers 2 --policy noise_scale --policy warmup --policy plateau
"""

import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.workers import Session, launch, trainable

CONTEXT, WIDTH, HEADS, LAYERS = 64, 96, 4, 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ByteLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.bytes(x) + self.places.weight[: x.shape[1]])))


def windows() -> tuple[Tensor, Tensor]:
    """Windows of bytes, (n, CONTEXT + 1), of the library's modules; each 20th window is held out."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in files)), dtype=torch.uint8)
    rows = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1).long()
    held_out = torch.arange(len(rows)) % 20 == 0
    return rows[~held_out], rows[held_out][:256]


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


@trainable(samples=100_000, batch_size=32, lr=2e-3)
def train(session: Session) -> None:
    rows, held_out = windows()
    net = ByteLM()
    model, _ = session.prepare(net, torch.optim.AdamW(net.parameters(), lr=session.hp.lr, weight_decay=0.01))
    for (batch,) in session.batches(rows):
        session.step(loss_of(model, batch))
        if session.every(samples=2_000):
            with torch.no_grad():
                session.log(val_loss=loss_of(model, held_out))


if __name__ == "__main__":
    print(launch(train, workers=2, policies=["noise_scale", "warmup", "plateau"])["metrics"])
