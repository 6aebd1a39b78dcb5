"""Suite ``ops``, continued: what the five architectures need beyond heatmaps, each on the shapes that its architecture has."""

from __future__ import annotations

from collections.abc import Iterator

from fastpose.benchmarking.architecture_ops import contrast, crops, pose_convolution, springs
from fastpose.benchmarking.settings import Settings
from fastpose.benchmarking.workload import Workload

JOBS = (*crops.JOBS, *contrast.JOBS, *springs.JOBS, *pose_convolution.JOBS)
BATCH = {"cpu": 8, "cuda": 32}
QUICK_BATCH = {"cpu": 1, "cuda": 8}


def workloads(settings: Settings) -> Iterator[Workload]:
    """Every job in every batch size and dtype."""
    default = (QUICK_BATCH if settings.quick else BATCH)[settings.device]
    dtypes = settings.torch_dtypes(("float32",) if settings.device == "cpu" else ("bfloat16", "float32"))
    for batch in settings.batches or (default,):
        for dtype in dtypes:
            for job in JOBS:
                yield job.workload(batch, dtype, settings.device)
