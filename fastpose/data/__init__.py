"""Data sets: readers, crops and augmentation, procedurally drawn figures."""

from __future__ import annotations

from fastpose.data.crops import CropSettings, PoseDataset, PoseSample
from fastpose.data.mpii import read_mpii
from fastpose.data.records import Person

__all__ = ["CropSettings", "Person", "PoseDataset", "PoseSample", "read_mpii"]
