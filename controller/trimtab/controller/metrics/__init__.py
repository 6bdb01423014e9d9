"""The metrics of a run at rest: an append-only file of chunks of float32 columns."""

from trimtab.controller.metrics.block import Block
from trimtab.controller.metrics.reader import MetricReader, Row
from trimtab.controller.metrics.series import Axis, Series
from trimtab.controller.metrics.writer import MetricWriter

__all__ = ["Axis", "Block", "MetricReader", "MetricWriter", "Row", "Series"]
