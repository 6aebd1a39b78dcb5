"""Data sets: readers, crops and augmentation, procedurally drawn figures."""

from __future__ import annotations

from fastpose.data.augmentation import AUGMENTATIONS, Augmentation
from fastpose.data.coco import read_coco
from fastpose.data.crop_settings import CROPS, CropSettings
from fastpose.data.crops import PoseDataset, PoseSample
from fastpose.data.datasets import DATASETS, PoseData, read
from fastpose.data.flic import read_flic
from fastpose.data.lsp import read_lsp
from fastpose.data.mpii import read_mpii, write_mpii, write_mpii_predictions
from fastpose.data.records import Person

__all__ = [
    "AUGMENTATIONS",
    "CROPS",
    "DATASETS",
    "Augmentation",
    "CropSettings",
    "Person",
    "PoseData",
    "PoseDataset",
    "PoseSample",
    "read",
    "read_coco",
    "read_flic",
    "read_lsp",
    "read_mpii",
    "write_mpii",
    "write_mpii_predictions",
]
