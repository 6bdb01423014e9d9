"""Handwritten digits: scikit-learn's bundled 8x8 images and a small perceptron. Seconds to train.

trimtab run examples/digits.py --workers 2 --policy noise_scale --policy warmup --policy plateau
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from trimtab.workers import Session, launch, trainable


@trainable(epochs=30, batch_size=32, lr=0.1)
def train(session: Session) -> None:
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    train_x, train_y, val_x, val_y = images[:1500], labels[:1500], images[1500:], labels[1500:]

    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model, _ = session.prepare(net, torch.optim.SGD(net.parameters(), lr=session.hp.lr, momentum=0.9))
    for x, y in session.batches((train_x, train_y)):
        session.step(F.cross_entropy(model(x), y))
        if session.every(samples=1500):
            with torch.no_grad():
                scores = model(val_x)
            session.log(val_loss=F.cross_entropy(scores, val_y), val_acc=(scores.argmax(1) == val_y).float().mean())


if __name__ == "__main__":
    print(launch(train, workers=2, policies=["noise_scale", "warmup", "plateau"])["metrics"])
