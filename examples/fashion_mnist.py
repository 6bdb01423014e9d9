"""Fashion-MNIST with a small convolutional net; takes the folder that holds the data set's four .gz files.

trimtab run examples/fashion_mnist.py --workers 2 --policy noise_scale --policy warmup -- path/to/fashion_mnist
"""

import gzip
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.workers import Session, trainable


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images, (n, 1, 28, 28), in [-0.5, 0.5], and labels, (n,). The files begin with 16 and 8 bytes of header."""
    images, labels = (
        torch.frombuffer(
            bytearray(gzip.decompress((folder / f"{part}-{name}-ubyte.gz").read_bytes()))[skip:], dtype=torch.uint8
        )
        for name, skip in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return images.view(-1, 1, 28, 28).float() / 255 - 0.5, labels.long()


def small_cnn() -> nn.Module:
    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *layer(1, 16), *layer(16, 32), nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, 10)
    )


@trainable(epochs=5, batch_size=64, lr=0.05)
def train(session: Session) -> None:
    if len(session.arguments) != 1:
        raise ValueError("say where the data is: … -- path/to/fashion_mnist")
    folder = Path(session.arguments[0])
    test_x, test_y = read(folder, "t10k")
    net = small_cnn()
    model, _ = session.prepare(net, torch.optim.SGD(net.parameters(), lr=session.hp.lr, momentum=0.9))
    for x, y in session.batches(read(folder, "train")):
        session.step(F.cross_entropy(model(x), y))
        if session.every(samples=20_000):
            with torch.no_grad():
                scores = torch.cat([model(part) for part in test_x.split(500)])
            session.log(val_loss=F.cross_entropy(scores, test_y), val_acc=(scores.argmax(1) == test_y).float().mean())
