"""Synchronisation strategies, one a file; `strategy` says what they have in common."""

from collections.abc import Mapping

from trimtab.workers.sync.allreduce import AllReduce
from trimtab.workers.sync.strategy import Ranks, Strategy

STRATEGIES: Mapping[str, type[Strategy]] = {cls.name: cls for cls in (AllReduce,)}

__all__ = ["STRATEGIES", "Ranks", "Strategy"]
