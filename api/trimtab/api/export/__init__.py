"""Runs written elsewhere, where people look at all their runs: TensorBoard, MLflow, a table."""
