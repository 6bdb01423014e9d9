"""A small run to see that all is in place: a line through points, on two workers. Put your own script here."""

import torch

from trimtab.workers import launch, trainable


@trainable(epochs=3, batch_size=32, lr=0.05)
def train(session):
    points = torch.randn(20_000, 8)
    data = torch.utils.data.TensorDataset(points, points.sum(dim=1, keepdim=True))
    net = torch.nn.Linear(8, 1)
    model, _ = session.prepare(net, torch.optim.SGD(net.parameters(), lr=session.hp.lr))
    for x, y in session.batches(data):
        session.step(torch.nn.functional.mse_loss(model(x), y))


if __name__ == "__main__":
    launch(train, workers=2, policies=["noise_scale"], checkpoints="/var/lib/trimtab/checkpoints")
