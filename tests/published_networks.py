"""The published hourglass networks, written anew from their description, with the names of their published weights.

Two code bases, three kinds of file: `PytorchPose` in a dictionary beside its optimizer (bearpaw) or bare (anibali), and
`Princeton`, which keeps the network two attributes deep. Widths and depths are free, so that tests stay quick.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def add_layers(block: nn.Module, inputs: int, outputs: int, conv: type[nn.Module] = nn.Conv2d) -> None:
    middle = outputs // 2
    for index, (before, after, kernel) in enumerate(((inputs, middle, 1), (middle, middle, 3), (middle, outputs, 1)), 1):
        setattr(block, f"bn{index}", nn.BatchNorm2d(before))
        setattr(block, f"conv{index}", conv(before, after, kernel, padding=kernel // 2))
    block.relu = nn.ReLU(inplace=True)


class Bottleneck(nn.Module):
    """pytorch-pose's residual: a projection if the widths differ, called ``downsample``, else None."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        add_layers(self, inputs, outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1)) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for bn, conv in ((self.bn1, self.conv1), (self.bn2, self.conv2), (self.bn3, self.conv3)):
            y = conv(self.relu(bn(y)))
        return y + (x if self.downsample is None else self.downsample(x))


class WrappedConv(nn.Module):
    """princeton-vl's convolution, with a batch normalisation and ReLU behind it if ``active``."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, active: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.bn = nn.BatchNorm2d(outputs) if active else None
        self.relu = nn.ReLU() if active else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x if self.bn is None else self.relu(self.bn(x))


class Residual(nn.Module):
    """princeton-vl's residual: always with a projection, which it does not use if the widths are equal."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        add_layers(self, inputs, outputs, WrappedConv)
        self.skip_layer = WrappedConv(inputs, outputs, 1)
        self.need_skip = inputs != outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(functional.relu(self.bn1(x)))
        y = self.conv2(functional.relu(self.bn2(y)))
        y = self.conv3(functional.relu(self.bn3(y)))
        return (self.skip_layer(x) if self.need_skip else x) + y


class PytorchPose(nn.Module):
    """Of normalised images (B, 3, H, W). With ``stem="torch7"`` it widens as late as the authors' Torch7 network."""

    def __init__(
        self,
        stacks: int = 2,
        joints: int = 16,
        features: int = 16,
        depth: int = 2,
        blocks: int = 1,
        stem: str = "pytorch_pose",
    ) -> None:
        super().__init__()
        quarter, half = features // 4, features // 2
        middle = features if stem == "pytorch_pose" else half

        def residuals() -> nn.Sequential:
            return nn.Sequential(*(Bottleneck(features, features) for _ in range(blocks)))

        self.conv1 = nn.Conv2d(3, quarter, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(quarter)
        self.layer1 = nn.Sequential(Bottleneck(quarter, half))
        self.layer2 = nn.Sequential(Bottleneck(half, middle))
        self.layer3 = nn.Sequential(Bottleneck(middle, features))
        self.hg = nn.ModuleList()
        for _ in range(stacks):
            levels = [nn.ModuleList(residuals() for _ in range(3 + (level == 0))) for level in range(depth)]
            hourglass = nn.Module()
            hourglass.hg = nn.ModuleList(levels)
            self.hg.append(hourglass)
        self.res = nn.ModuleList(residuals() for _ in range(stacks))
        self.fc = nn.ModuleList(nn.Sequential(nn.Conv2d(features, features, 1), nn.BatchNorm2d(features)) for _ in self.res)
        self.score = nn.ModuleList(nn.Conv2d(features, joints, 1) for _ in self.res)
        self.fc_ = nn.ModuleList(nn.Conv2d(features, features, 1) for _ in range(stacks - 1))
        self.score_ = nn.ModuleList(nn.Conv2d(joints, features, 1) for _ in range(stacks - 1))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = self.layer1(self.bn1(self.conv1(images)).relu())
        x = self.layer3(self.layer2(functional.max_pool2d(x, 2)))
        outputs = []
        for s, (res, fc, score) in enumerate(zip(self.res, self.fc, self.score, strict=True)):
            y = fc(res(self._hourglass(self.hg[s].hg, x))).relu()
            outputs.append(score(y))
            if s < len(self.fc_):
                x = x + self.fc_[s](y) + self.score_[s](outputs[-1])
        return outputs

    def _hourglass(self, levels: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        up1, low1, low3, *innermost = levels[-1]
        low = low1(functional.max_pool2d(x, 2))
        low = innermost[0](low) if innermost else self._hourglass(levels[:-1], low)
        return up1(x) + functional.interpolate(low3(low), scale_factor=2)


class PrincetonHourglass(nn.Module):
    def __init__(self, depth: int, features: int) -> None:
        super().__init__()
        self.up1 = Residual(features, features)
        self.low1 = Residual(features, features)
        self.low2 = PrincetonHourglass(depth - 1, features) if depth > 1 else Residual(features, features)
        self.low3 = Residual(features, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.low3(self.low2(self.low1(functional.max_pool2d(x, 2))))
        return self.up1(x) + functional.interpolate(low, scale_factor=2)


class Princeton(nn.Module):
    """Of images (B, H, W, 3)."""

    def __init__(self, stacks: int = 2, joints: int = 16, features: int = 16, depth: int = 2) -> None:
        super().__init__()
        quarter, half = features // 4, features // 2
        self.pre = nn.Sequential(
            WrappedConv(3, quarter, 7, stride=2, padding=3, active=True),
            Residual(quarter, half),
            nn.MaxPool2d(2),
            Residual(half, half),
            Residual(half, features),
        )
        self.hgs = nn.ModuleList(nn.Sequential(PrincetonHourglass(depth, features)) for _ in range(stacks))
        self.features = nn.ModuleList(
            nn.Sequential(Residual(features, features), WrappedConv(features, features, 1, active=True)) for _ in range(stacks)
        )
        self.outs = nn.ModuleList(WrappedConv(features, joints, 1) for _ in range(stacks))
        self.merge_features, self.merge_preds = nn.ModuleList(), nn.ModuleList()
        for merges, width in ((self.merge_features, features), (self.merge_preds, joints)):
            for _ in range(stacks - 1):
                merges.append(nn.ModuleDict({"conv": WrappedConv(width, features, 1)}))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = self.pre(images.permute(0, 3, 1, 2))
        outputs = []
        for s, (hourglass, features, out) in enumerate(zip(self.hgs, self.features, self.outs, strict=True)):
            y = features(hourglass(x))
            outputs.append(out(y))
            if s < len(self.merge_preds):
                x = x + self.merge_preds[s]["conv"](outputs[-1]) + self.merge_features[s]["conv"](y)
        return outputs


def with_random_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random affine maps and running statistics in all batch normalisations, as if the network had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for bn in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (bn.weight, bn.bias, bn.running_mean):
            nn.init.normal_(tensor, std=0.5, generator=generator)
        nn.init.uniform_(bn.running_var, 0.5, 2.0, generator=generator)
        bn.num_batches_tracked.fill_(1000)
    return model.eval()
