"""The random changes of crops that the hourglass papers train with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray


class CropChange(NamedTuple):
    """One random change of a crop.

    Attributes:
        scale_factor: factor of the box's side; above 1 the person gets smaller in the crop.
        rotation: degrees by which the content turns anticlockwise.
        flip: whether the crop is mirrored.
        gains: factor of each of the R, G and B channels (3,).
    """

    scale_factor: float
    rotation: float
    flip: bool
    gains: NDArray[np.float64]


@dataclass(frozen=True)
class Augmentation:
    """Distributions of scale, rotation, mirroring and colour.

    Attributes:
        scale_law: how g, normal with ``scale_sigma`` and clipped to ±``scale_limit``, changes the scale:
            ``"exponential"`` by a factor of 2^g, ``"linear"`` by a factor of 1 + g.
        scale_sigma: standard deviation of g.
        scale_limit: largest |g|.
        rotation_probability: share of the crops that are rotated.
        rotation_sigma: standard deviation of the rotation in degrees.
        rotation_limit: largest rotation in degrees.
        flip_probability: share of the crops that are mirrored.
        gain_range: bounds of the uniformly distributed factors of the colour channels.
    """

    scale_law: Literal["exponential", "linear"]
    scale_sigma: float
    scale_limit: float
    rotation_probability: float
    rotation_sigma: float
    rotation_limit: float
    flip_probability: float
    gain_range: tuple[float, float]

    def draw(self, rng: np.random.Generator) -> CropChange:
        """Draw one change."""
        scale = _clipped_normal(rng, self.scale_sigma, self.scale_limit)
        rotation = _clipped_normal(rng, self.rotation_sigma, self.rotation_limit)
        rotate, flip = rng.random(2) < (self.rotation_probability, self.flip_probability)
        return CropChange(
            scale_factor=2.0**scale if self.scale_law == "exponential" else 1.0 + scale,
            rotation=rotation if rotate else 0.0,
            flip=bool(flip),
            gains=rng.uniform(*self.gain_range, size=3),
        )


AUGMENTATIONS = {
    # The code released with Newell et al., ECCV 2016; the paper itself names only ±30° and 0.75 to 1.25.
    "torch7_hourglass": Augmentation(
        scale_law="exponential",
        scale_sigma=0.25,
        scale_limit=0.5,
        rotation_probability=0.4,
        rotation_sigma=30.0,
        rotation_limit=60.0,
        flip_probability=0.5,
        gain_range=(0.6, 1.4),
    ),
    "pytorch_pose": Augmentation(
        scale_law="linear",
        scale_sigma=0.25,
        scale_limit=0.25,
        rotation_probability=0.6,
        rotation_sigma=30.0,
        rotation_limit=60.0,
        flip_probability=0.5,
        gain_range=(0.8, 1.2),
    ),
}
"""Published augmentations by name."""


def _clipped_normal(rng: np.random.Generator, sigma: float, limit: float) -> float:
    return float(np.clip(rng.normal(0.0, sigma), -limit, limit))
