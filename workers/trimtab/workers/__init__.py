"""The workers: what a training script imports."""

from trimtab.workers.attach import attach
from trimtab.workers.hosted import HostedSession
from trimtab.workers.launch import launch
from trimtab.workers.session import Session
from trimtab.workers.trainable import Trainable, trainable

__all__ = ["HostedSession", "Session", "Trainable", "attach", "launch", "trainable"]
