"""Synchronisation strategies, one a file; `strategy` says what they have in common."""

from collections.abc import Mapping

from trimtab.workers.sync.allreduce import AllReduce
from trimtab.workers.sync.local import LocalSteps
from trimtab.workers.sync.pair import PairAveraging
from trimtab.workers.sync.sma import ModelAveraging
from trimtab.workers.sync.strategy import Ranks, Strategy

STRATEGIES: Mapping[str, type[Strategy]] = {
    cls.name: cls for cls in (AllReduce, ModelAveraging, PairAveraging, LocalSteps)
}

__all__ = ["STRATEGIES", "Ranks", "Strategy"]
