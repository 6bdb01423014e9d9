"""Tests of the workers may use one another's scripts, and train on one thread, as workers do."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `test_session`, which is a script too
torch.set_num_threads(1)
