"""A loop of your own under torchrun, steered by Trimtab: its processes, its data and its checkpoints stay as they are.

trimtab up        # in another terminal; it prints the address of the page
torchrun --nproc-per-node 2 examples/attach_torchrun.py
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from trimtab.workers import attach

MICRO = 16  # samples a rank and forward pass


def main() -> None:
    dist.init_process_group("gloo")
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    data = TensorDataset(images[:1500], labels[:1500])
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(data)
    loader = DataLoader(data, batch_size=MICRO, sampler=sampler, drop_last=True)

    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with attach(
        net,
        optimizer,
        name="digits",
        hp={"batch_size": 64, "lr": 0.1},
        policies=["noise_scale", "warmup"],
        epochs=30,
        dataset_size=len(data),
        micro_batch=MICRO,
    ) as session:
        epoch = 0
        while not session.ended:
            sampler.set_epoch(epoch)
            for x, y in loader:
                session.step(F.cross_entropy(session.model(x), y))
                if session.every(steps=100):
                    with torch.no_grad():
                        scores = session.model(images[1500:])
                    session.log(val_acc=(scores.argmax(1) == labels[1500:]).float().mean())
                if session.ended:
                    break
            epoch += 1
    print(f"rank {session.rank}: {session.run} ended after {session.progress.steps} steps")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
