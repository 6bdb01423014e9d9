"""The strategies' tests run their ranks in threads of one process, as the benchmarks do."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
