"""The metrics of a run at rest: append-only files of chunks of float32 columns, with a pyramid of summaries."""

from trimtab.controller.metrics.block import Block
from trimtab.controller.metrics.ranks import RankReader
from trimtab.controller.metrics.reader import MetricReader, Row
from trimtab.controller.metrics.series import Axis, Series
from trimtab.controller.metrics.store import MetricStore
from trimtab.controller.metrics.writer import MetricWriter

__all__ = ["Axis", "Block", "MetricReader", "MetricStore", "MetricWriter", "RankReader", "Row", "Series"]
