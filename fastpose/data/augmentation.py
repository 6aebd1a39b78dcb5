"""The random changes of crops that the papers and their codes train with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Normal:
    """A normal distribution around 0, clipped.

    Attributes:
        sigma: standard deviation.
        limit: largest absolute value.
    """

    sigma: float
    limit: float

    def draw(self, rng: np.random.Generator) -> float:
        """Draw one number."""
        return float(np.clip(rng.normal(0.0, self.sigma), -self.limit, self.limit))


@dataclass(frozen=True)
class Uniform:
    """A uniform distribution.

    Attributes:
        low: smallest value.
        high: largest value.
    """

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """Draw one number."""
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class ColorJitter:
    """Distributions of a change of hue, saturation, brightness and contrast, applied in this order.

    Attributes:
        hue: degrees added to the hue.
        saturation: factor of the saturation in HSV, which is clipped to 0 to 1.
        brightness: added to all channels.
        contrast: factor of each channel's distance from the mean of the pixel's channels.
    """

    hue: Uniform
    saturation: Uniform
    brightness: Uniform
    contrast: Uniform


class CropChange(NamedTuple):
    """One random change of a crop.

    Attributes:
        scale_factor: factor of the box's side; above 1 the person gets smaller in the crop.
        rotation: degrees by which the content turns anticlockwise.
        flip: whether the crop is mirrored.
        shift: (x, y) by which the box moves, in sides of the box (2,).
        gains: factor of each of the R, G and B channels (3,).
        jitter: hue, saturation, brightness and contrast, see `ColorJitter` (4,); None: no change.
    """

    scale_factor: float
    rotation: float
    flip: bool
    shift: NDArray[np.float64]
    gains: NDArray[np.float64]
    jitter: NDArray[np.float64] | None


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Distributions of scale, rotation, mirroring, place and colour.

    Attributes:
        scale_law: how a number g, drawn from ``scale``, changes the side of the box: ``"exponential"`` by a factor of
            2^g, ``"linear"`` of 1 + g, ``"zoom"`` of 1 / (1 + g), so that it is the person who becomes 1 + g times as
            large.
        scale: distribution of g.
        rotation: distribution of the rotation in degrees.
        rotation_probability: share of the crops that are rotated.
        flip_probability: share of the crops that are mirrored.
        shift: distribution of each coordinate of the shift in sides of the box; None: none.
        gains: distribution of the factor of each colour channel; None: 1.
        jitter: of the colours; None: none.
        jitter_flipped_only: whether only mirrored crops change their colours.
    """

    scale_law: Literal["exponential", "linear", "zoom"] = "linear"
    scale: Normal | Uniform = Uniform(0.0, 0.0)
    rotation: Normal | Uniform = Uniform(0.0, 0.0)
    rotation_probability: float = 1.0
    flip_probability: float = 0.5
    shift: Normal | Uniform | None = None
    gains: Uniform | None = None
    jitter: ColorJitter | None = None
    jitter_flipped_only: bool = False

    def draw(self, rng: np.random.Generator) -> CropChange:
        """Draw one change."""
        g = self.scale.draw(rng)
        rotation = self.rotation.draw(rng)
        rotate, flip = rng.random(2) < (self.rotation_probability, self.flip_probability)
        factors = {"exponential": 2.0**g, "linear": 1.0 + g, "zoom": 1.0 / (1.0 + g)}
        gains = np.ones(3) if self.gains is None else np.array([self.gains.draw(rng) for _ in range(3)])
        shift = np.zeros(2) if self.shift is None else np.array([self.shift.draw(rng) for _ in range(2)])
        jitter = None
        if self.jitter is not None and (flip or not self.jitter_flipped_only):
            laws = (self.jitter.hue, self.jitter.saturation, self.jitter.brightness, self.jitter.contrast)
            jitter = np.array([law.draw(rng) for law in laws])
        return CropChange(factors[self.scale_law], rotation if rotate else 0.0, bool(flip), shift, gains, jitter)


AUGMENTATIONS = {
    # The code released with Newell et al., ECCV 2016; the paper itself names only ±30° and 0.75 to 1.25.
    "torch7_hourglass": Augmentation(
        scale_law="exponential",
        scale=Normal(0.25, 0.5),
        rotation=Normal(30.0, 60.0),
        rotation_probability=0.4,
        gains=Uniform(0.6, 1.4),
    ),
    "pytorch_pose": Augmentation(
        scale_law="linear",
        scale=Normal(0.25, 0.25),
        rotation=Normal(30.0, 60.0),
        rotation_probability=0.6,
        gains=Uniform(0.8, 1.2),
    ),
    # The hourglass authors' later code, pytorch_stacked_hourglass; colours change in mirrored crops alone.
    "princeton": Augmentation(
        scale_law="linear",
        scale=Uniform(-0.25, 0.25),
        rotation=Uniform(-30.0, 30.0),
        jitter=ColorJitter(Uniform(-72.0, 72.0), Uniform(0.5, 1.5), Uniform(-0.3, 0.3), Uniform(0.5, 1.5)),
        jitter_flipped_only=True,
    ),
    # Wei et al., CVPR 2016.
    "cpm": Augmentation(scale_law="zoom", scale=Uniform(-0.3, 0.3), rotation=Uniform(-40.0, 40.0)),
    # Tompson et al., CVPR 2015.
    "tompson": Augmentation(scale_law="zoom", scale=Uniform(-0.5, 0.5), rotation=Uniform(-20.0, 20.0)),
    # Toshev and Szegedy, CVPR 2014, shift and mirror. How far, they do not say: the numbers are those of the TensorFlow
    # re-implementation, boxes of 1.2 to 2 times the labels', here around the crop's 1.5, shifted by up to a tenth.
    "deeppose": Augmentation(scale_law="linear", scale=Uniform(1.2 / 1.5 - 1.0, 2.0 / 1.5 - 1.0), shift=Uniform(-0.1, 0.1)),
    # Carreira et al., CVPR 2016, change size and place and mirror. The numbers are not published; here the size moves by
    # half a step of their ten sizes, 2^(1/4) apart, and the place by a twentieth.
    "ief": Augmentation(scale_law="exponential", scale=Uniform(-0.125, 0.125), shift=Uniform(-0.05, 0.05)),
}
"""Published augmentations by name."""


def recolor(image: torch.Tensor, change: CropChange) -> torch.Tensor:
    """Apply a change of colours.

    Args:
        image: RGB in [0, 1], float32 (3, H, W); may be overwritten.
        change: of which the gains and the jitter are used.

    Returns:
        The image with the change, float32 (3, H, W), clipped to [0, 1].
    """
    if change.jitter is not None:
        image = _jitter(image, *change.jitter.tolist())
    return image.mul_(torch.from_numpy(change.gains).float()[:, None, None]).clamp_(0, 1)


def _jitter(image: torch.Tensor, hue: float, saturation: float, brightness: float, contrast: float) -> torch.Tensor:
    pixels = cv2.cvtColor(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2HSV)
    pixels[..., 0] = (pixels[..., 0] + hue) % 360
    pixels[..., 1] = np.clip(pixels[..., 1] * saturation, 0, 1)
    jittered = torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_HSV2RGB)).permute(2, 0, 1).contiguous() + brightness
    mean = jittered.mean(dim=0)
    return mean + contrast * (jittered - mean)
