"""The workers: what a training script imports."""

from trimtab.workers.launch import launch
from trimtab.workers.session import Session
from trimtab.workers.trainable import Trainable, trainable

__all__ = ["Session", "Trainable", "launch", "trainable"]
