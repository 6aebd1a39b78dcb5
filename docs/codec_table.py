"""Measures what encoding and decoding random keypoints loses; run without arguments, writes the tables of codec.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastpose.codec import PRESETS, HeatmapCodec
from fastpose.skeletons import MPII

INPUT_SIZES = {"cpm": 368, "ief": 224}  # as published; 256 for the others
COUNT = 10_000
NOISE = 1e-3
UNBIASED: dict[str, Any] = {"mapping": "centre", "rounding": "nearest", "decode_offset": 0.0, "flip_shift": 0}
_BORDER = 10  # cells, further than any window reaches
_PAGE = Path(__file__).with_name("codec.md")


def codec_of(preset: str) -> HeatmapCodec:
    """The preset at its published input size."""
    return HeatmapCodec.preset(preset, INPUT_SIZES.get(preset, 256))


def round_trip(codec: HeatmapCodec, *, flip: bool = False, noise: float = 0.0, count: int = COUNT, seed: int = 0) -> torch.Tensor:
    """Encodes and decodes keypoints away from the border.

    Args:
        codec: what to measure.
        flip: whether decoding takes the mean with the maps of mirrored keypoints, as a flip test does.
        noise: standard deviation of what is added to the maps, so that no two maxima are equal.
        count: number of keypoints, rounded up to whole people.
        seed: of the keypoints and the noise.

    Returns:
        Errors (count, 2), decoded minus true (x, y), in heatmap pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    people = -(-count // MPII.num_joints)
    height, width = codec.heatmap_size
    low, high = torch.tensor(_BORDER), torch.tensor((width, height)) - 1 - _BORDER
    points = low + (high - low) * torch.rand(people, MPII.num_joints, 2, generator=generator)
    keypoints = codec.to_input(points)
    decoded = []
    for part in keypoints.split(32):
        maps, flipped = codec.encode(part), codec.encode(_mirrored(codec, part)) if flip else None
        for drawn in (maps, flipped):
            if noise and drawn is not None:
                drawn += noise * torch.randn(drawn.shape, generator=generator)
        permutation = MPII.flip_permutation if flip else None
        decoded.append(codec.decode(maps, flipped=flipped, flip_permutation=permutation).coordinates)
    return (codec.to_heatmap(torch.cat(decoded)) - codec.to_heatmap(keypoints)).flatten(0, 1)


def _mirrored(codec: HeatmapCodec, keypoints: torch.Tensor) -> torch.Tensor:
    mirrored = keypoints[:, MPII.flip_permutation].clone()
    mirrored[..., 0] = codec.input_size[1] - 1 - mirrored[..., 0]
    return mirrored


def round_trip_table() -> str:
    """The table of all presets, without and with the flip test."""
    lines = [
        "| codec | flip test | mean error x, y (cells) | mean distance (cells) "
        "| mean error x, y (input px) | mean distance (input px) |",
        "|---|---|---|---|---|---|",
    ]
    rows = [(f"`{name}`", codec_of(name), 0.0) for name in PRESETS]
    for name in ("torch7_hourglass", "msra"):
        rows.append((f"`{name}`, noise {NOISE}", codec_of(name), NOISE))
        rows.append((f"`{name}`, unbiased", HeatmapCodec.preset(name, 256, **UNBIASED), 0.0))
    rows.append(("`msra`, `flip_shift=0`", HeatmapCodec.preset("msra", 256, flip_shift=0), 0.0))
    for name, codec, noise in rows:
        cell = codec.to_input(torch.tensor([[1.0, 1.0]])) - codec.to_input(torch.tensor([[0.0, 0.0]]))
        for flip in (False, True):
            cells = round_trip(codec, flip=flip, noise=noise).double()
            measured = [
                f"{x:+.3f}, {y:+.3f} | {distance:.3f}"
                for errors in (cells, cells * cell)
                for (x, y), distance in [(errors.mean(0).tolist(), errors.norm(dim=1).mean().item())]
            ]
            lines.append(f"| {name} | {'yes' if flip else 'no'} | {' | '.join(measured)} |")
    return "\n".join(lines)


def preset_table() -> str:
    """The numbers of all presets at their published sizes."""
    columns = {
        "stride": lambda name, codec: PRESETS[name].stride,
        "mapping": lambda name, codec: codec.mapping,
        "σ (cells)": lambda name, codec: f"{codec.sigma:.4g}",
        "centre": lambda name, codec: {"none": "sub-pixel"}.get(codec.rounding, codec.rounding),
        "cut": lambda name, codec: "none" if codec.radius is None else f"{codec.window} {codec.radius:.4g}",
        "no label": lambda name, codec: codec.unlabelled,
        "loss": lambda name, codec: f"{codec.loss_scale:g} · " * (codec.loss_scale != 1) + codec.reduction,
        "decode": lambda name, codec: codec.method + f" + {codec.decode_offset:g}" * bool(codec.decode_offset),
        "flip shift": lambda name, codec: codec.flip_shift,
    }
    lines = [f"| preset | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name in PRESETS:
        codec = codec_of(name)
        lines.append(f"| `{name}` | {' | '.join(str(column(name, codec)) for column in columns.values())} |")
    return "\n".join(lines)


def main() -> None:
    page = _PAGE.read_text(encoding="utf-8")
    for title, table in (("presets", preset_table()), ("round trip", round_trip_table())):
        before, _, rest = page.partition(f"<!-- {title} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"{_PAGE.name} has no section between '<!-- {title} -->' and '<!-- end -->'")
        page = f"{before}<!-- {title} -->\n\n{table}\n\n{end}{after}"
    unfinished = _PAGE.with_suffix(".tmp")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(_PAGE)


if __name__ == "__main__":
    main()
