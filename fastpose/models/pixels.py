"""The forms in which networks see pixels. Every model takes RGB in [0, 1] and changes it first."""

from __future__ import annotations

import torch
from torch import nn

from fastpose import _check

_IEF_MEAN = (117.3785, 117.6438, 110.1771)  # of its RGB images, 0 to 255

# (mean, standard deviation, whether the channels are reversed to BGR): a pixel becomes (pixel - mean) / deviation.
_FORMS: dict[str, tuple[tuple[float, ...], tuple[float, ...], bool]] = {
    # Whatever weights of ImageNet in PyTorch were trained on.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False),
    # x / 256 - 1/2 of 0 to 255, by Caffe's channels.
    "cpm": ((0.5 * 256 / 255,) * 3, (256 / 255,) * 3, True),
    # x - mean of 0 to 255.
    "ief": (tuple(value / 255 for value in _IEF_MEAN), (1 / 255,) * 3, False),
}
PIXELS = (*_FORMS, "standardized")

_SMALLEST_DEVIATION = 1e-3  # of an image without contrast, in [0, 1]; a quarter of a grey level of 255


class Pixels(nn.Module):
    """Brings RGB images in [0, 1] into the form that a network was trained on. Without parameters or state.

    Args:
        form: ``"imagenet"``: mean 0 and variance 1 over ImageNet; ``"cpm"``: BGR, x / 256 - 1/2 of 0 to 255; ``"ief"``:
            0 to 255 minus a mean; ``"standardized"``: mean 0 and variance 1 in every channel of every image.

    Raises:
        ValueError: unknown form.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, form: str) -> None:
        super().__init__()
        _check.option("pixels", form, PIXELS)
        self.form = form
        mean, deviation, self.reversed = _FORMS.get(form, ((0.0,) * 3, (1.0,) * 3, False))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1), persistent=False)

    def extra_repr(self) -> str:
        return repr(self.form)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, H, W) to the same shape."""
        if self.form == "standardized":
            deviation, mean = torch.std_mean(images, (-2, -1), correction=0, keepdim=True)
            return (images - mean) / deviation.clamp(min=_SMALLEST_DEVIATION)
        if self.reversed:
            images = images.flip(-3)
        return (images - self.mean) / self.deviation
