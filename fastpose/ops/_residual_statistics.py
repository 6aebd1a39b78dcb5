"""Statistics of a batch normalisation once a rank's pixels are summed up: running averages, and the other ranks' share."""

from __future__ import annotations

import torch

from fastpose.ops._residual_steps import Norm, Running, Sums, pixels


def finish(mean: torch.Tensor, squares: torch.Tensor, count: int, norm: Norm, running: Running) -> None:
    """Fills in ``norm`` from the mean and the sum of squared deviations of this rank's ``count`` pixels; moves ``running`` on."""
    total: int | torch.Tensor = count
    if norm.group:
        mean, squares, total = _over_ranks(mean, squares, count, norm.group)
    norm.mean.copy_(mean)
    norm.rstd.copy_(torch.rsqrt(squares / total + running.eps))
    torch.mul(norm.rstd, norm.weight, out=norm.scale)
    if running.mean is None or running.variance is None:
        return
    factor: float | torch.Tensor = running.momentum
    if running.cumulative:
        factor = 0.0 if running.batches is None else running.batches.to(mean.dtype).reciprocal()
    if running.offset is not None:
        mean = mean + running.offset.to(mean.dtype)
    for statistic, new in ((running.mean, mean), (running.variance, squares / (total - 1))):
        statistic.copy_(factor * new + (1 - factor) * statistic.to(new.dtype))


def _over_ranks(
    mean: torch.Tensor, squares: torch.Tensor, count: int, group: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same of all ranks' pixels, merged in the order of the ranks. A rank may have none."""
    mine = torch.cat((mean, squares, mean.new_tensor([count])))
    process_group = _group(group)
    of_ranks = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(process_group))]
    torch.distributed.all_gather(of_ranks, mine, group=process_group)
    gathered = torch.stack(of_ranks)
    counts, (means, squared) = gathered[:, -1:], gathered[:, :-1].chunk(2, 1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    return mean, (squared + counts * (means - mean).square()).sum(0), total


def _group(name: str) -> torch.distributed.ProcessGroup:
    return torch.distributed.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def means(sums: Sums, g: torch.Tensor, norm: Norm) -> tuple[Sums | None, int]:
    """The sums over all pixels that the statistics are of, and a number to divide them by."""
    count = pixels(g)
    if not norm.batch:
        return None, 1
    if not norm.group:
        return sums, count
    joint = torch.cat((*sums, sums[0].new_tensor([count])))
    torch.distributed.all_reduce(joint, group=_group(norm.group))
    joint = joint[:-1] / joint[-1]
    return (joint[: len(sums[0])], joint[len(sums[0]) :]), 1
