"""Metrics of the machine that a rank runs on."""

import torch


def device_metrics(device: torch.device) -> dict[str, float]:
    """GPU memory in use [GiB] and utilisation [%] where there is a GPU; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    metrics = {"gpu_memory": torch.cuda.memory_allocated(device) / 2**30}
    try:
        metrics["gpu_utilization"] = float(torch.cuda.utilization(device))
    except (ModuleNotFoundError, RuntimeError):  # NVML's bindings are an extra of torch's
        return metrics
    return metrics
