"""Structure over heatmaps: the best configuration of parts in a tree of springs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from fastpose import _check
from fastpose.ops.distance_transform2d import distance_transform2d

_LEAST_VARIANCE = 1 / 12  # of a displacement that is always the same, measured in whole cells


class TreePoses(NamedTuple):
    """What :class:`TreeMaxSum` returns."""

    scores: torch.Tensor
    """(B,): what the best configuration scores. Differentiable."""
    coordinates: torch.Tensor
    """(B, K, 2), (x, y) in cells: where it has the joints."""
    types: torch.Tensor
    """(B, K), int64: and of which types."""
    beliefs: torch.Tensor | None
    """As the unary scores: what the best configuration scores that has the joint there, of that type. Differentiable."""


class _Messages(NamedTuple):
    """From all children of one depth to their parents, or back."""

    values: torch.Tensor  # (B, n, types of the receiver, H, W)
    types: torch.Tensor  # likewise: the sender's best type
    cells: torch.Tensor  # (B, n, types of the sender, types of the receiver, H, W): its best cell, given its type


class TreeMaxSum(nn.Module):
    r"""Finds the configuration of joints that scores best in heatmaps and in the springs of a tree between them.

    .. math:: S(l, t) = \sum_i U_i(l_i, t_i) + b_i^{t_i}
              + \sum_{(i, p)} b_{ip}^{t_i t_p} - w_x d_x^2 - w_y d_y^2, \qquad d = l_i - l_p - a_{ip}^{t_i t_p}

    over the cells l and the types t of all joints i with their parents p. Springs have positive weights, the softplus of
    parameters. With one type these are pictorial structures, with several Yang and Ramanan's mixtures of parts, whose springs
    depend on the types of both ends. Max-sum from the leaves to the root by distance transforms is exact, and so are the
    joints found on the way back.

    Args:
        parents: for each of the K joints the one that it hangs on, -1 for the root; see :func:`tree_parents`.
        types: number of types of a joint, M.
        stiffness: weight of all springs at first, on both axes, in units of the scores for a square cell. :meth:`fit` sets
            springs from poses.

    Raises:
        TypeError, ValueError: an argument is not as above, or ``parents`` is not one tree.

    Source: Felzenszwalb and Huttenlocher 2005, "Pictorial Structures for Object Recognition"; Yang and Ramanan 2011,
    "Articulated Pose Estimation with Flexible Mixtures-of-Parts".
    """

    forbidden: torch.Tensor

    def __init__(self, parents: Sequence[int], types: int = 1, *, stiffness: float = 0.01) -> None:
        super().__init__()
        self.parents = tuple(parents)
        self.levels = _levels(self.parents)
        self.types = _check.positive_int("types", types)
        _check.number("stiffness", stiffness, positive=True)
        # One row for each joint; that of the root is not used. Types are those of the joint and of its parent.
        pairs = (len(self.parents), types, types)
        self.anchors = nn.Parameter(torch.zeros(*pairs, 2))
        self.raw_stiffness = nn.Parameter(torch.full((*pairs, 2), _softplus_inverse(torch.tensor(float(stiffness))).item()))
        self.type_bias = nn.Parameter(torch.zeros(len(self.parents), types))
        self.pair_bias = nn.Parameter(torch.zeros(pairs))
        self.register_buffer("forbidden", torch.zeros(pairs, dtype=torch.bool))

    def extra_repr(self) -> str:
        return f"parents={self.parents}, types={self.types}"

    @property
    def stiffness(self) -> torch.Tensor:
        """(K, M, M, 2): weights of the springs, on x and y, for each type of the joint and of its parent."""
        return functional.softplus(self.raw_stiffness)

    @torch.no_grad()
    def fit(self, poses: torch.Tensor, types: torch.Tensor | None = None) -> None:
        """Set springs to what poses show: anchors are mean displacements from the parent, weights 1 / (2 variance).

        These are the log-densities of normal distributions, to go with log-probabilities as unary scores. Pairs of types that
        fewer than two poses show become forbidden.

        Args:
            poses: (N, K, 2), (x, y) in cells; NaN: no label.
            types: (N, K), integers from 0 to M - 1; None: all are 0.

        Raises:
            ValueError: an argument is not as above, or a joint and its parent have labels together in fewer than two poses.
        """
        joints = len(self.parents)
        if poses.dim() != 3 or poses.shape[1:] != (joints, 2):
            raise ValueError(f"poses: got shape {_check.shape(poses)}, allowed is (N, {joints}, 2)")
        if types is None:
            types = torch.zeros_like(poses[..., 0], dtype=torch.int64)
        if types.shape != poses.shape[:2] or bool(((types < 0) | (types >= self.types)).any()):
            raise ValueError(f"types: allowed are {_check.shape(poses[..., 0])} integers from 0 to {self.types - 1}")
        means, weights = torch.zeros_like(self.anchors), self.stiffness.clone()
        forbidden = torch.ones_like(self.forbidden)
        forbidden[self.levels[0][0]] = False
        for joint, own, other in itertools.product(range(joints), range(self.types), range(self.types)):
            parent = self.parents[joint]
            if parent < 0:
                continue
            displacements = poses[:, joint] - poses[:, parent]
            pair = displacements.isfinite().all(-1) & (types[:, joint] == own) & (types[:, parent] == other)
            if int(pair.sum()) >= 2:
                variance, means[joint, own, other] = torch.var_mean(displacements[pair].to(means), 0)
                weights[joint, own, other] = 0.5 / variance.clamp(min=_LEAST_VARIANCE)
                forbidden[joint, own, other] = False
        loose = forbidden.flatten(1).all(1).nonzero().flatten().tolist()
        if loose:
            raise ValueError(f"poses: joints {loose} and their parents have labels together in fewer than two poses")
        self.anchors.copy_(means)
        self.raw_stiffness.copy_(_softplus_inverse(weights))
        self.forbidden.copy_(forbidden)

    def forward(self, unary: torch.Tensor, *, beliefs: bool = True) -> TreePoses:
        """Find the best configuration.

        Args:
            unary: (B, K, H, W), with several types (B, K, M, H, W): scores, such as logarithms of heatmaps. -infinity: not
                there.
            beliefs: whether to compute the beliefs too, for as much time again.

        Returns:
            Scores, coordinates, types and perhaps beliefs.

        Raises:
            TypeError, ValueError: ``unary`` is not as above.
        """
        maps = self._maps(unary)
        height, width = maps.shape[-2:]
        sums = list((maps + self.type_bias[:, :, None, None]).unbind(1))  # joint by joint (B, M, H, W)
        sent: list[torch.Tensor] = [sums[0]] * len(sums)  # to the parent
        arrived: list[_Messages] = []
        for joints in self.levels[:0:-1]:
            messages = self._send(torch.stack([sums[joint] for joint in joints], 1), joints, up=True)
            arrived.insert(0, messages)
            for joint, message in zip(joints, messages.values.unbind(1), strict=True):
                sent[joint] = message
                sums[self.parents[joint]] = sums[self.parents[joint]] + message
        root = self.levels[0][0]
        scores, best = sums[root].flatten(1).max(1)
        cells, types = self._backtrack(best, arrived, height * width)
        coordinates = torch.stack((cells % width, cells // width), -1).to(scores.dtype)
        return TreePoses(scores, coordinates, types, self._beliefs(sums, sent, maps).view_as(unary) if beliefs else None)

    def _maps(self, unary: torch.Tensor) -> torch.Tensor:
        """(B, K, M, H, W)."""
        _check.floating("unary", unary)
        joints = len(self.parents)
        maps = unary.unsqueeze(2) if unary.dim() == 4 and self.types == 1 else unary
        if maps.dim() != 5 or maps.shape[1:3] != (joints, self.types) or 0 in maps.shape[3:]:
            allowed = f"(B, {joints}, {self.types}, H, W)" if self.types > 1 else f"(B, {joints}, H, W)"
            raise ValueError(f"unary: got shape {_check.shape(unary)}, allowed is {allowed}, H and W at least 1")
        return maps.to(torch.promote_types(maps.dtype, torch.float32))

    def _send(self, sums: torch.Tensor, joints: Sequence[int], *, up: bool) -> _Messages:
        """The messages along the springs of some joints, from maps (B, n, M, H, W) of the joints or else of their parents."""
        at = list(joints)
        stiffness, anchors = self.stiffness[at], self.anchors[at]
        bias = self.pair_bias[at].masked_fill(self.forbidden[at], -math.inf)
        if not up:  # the sender's types first
            stiffness, anchors, bias = stiffness.transpose(1, 2), -anchors.transpose(1, 2), bias.transpose(1, 2)
        batch, count, own = sums.shape[:3]
        other, (height, width) = bias.shape[2], sums.shape[3:]
        spread = sums.unsqueeze(3).expand(batch, count, own, other, height, width)
        linear = torch.zeros_like(stiffness[..., 0])
        springs = torch.stack((stiffness[..., 0], linear, stiffness[..., 1], linear), -1)
        values, cells = distance_transform2d(spread.flatten(1, 3), springs.flatten(0, 2).to(sums), anchors.flatten(0, 2).to(sums))
        pairs = values.view_as(spread) + bias[..., None, None]
        best, types = pairs.max(2)
        return _Messages(best, types, cells.view_as(spread))

    def _backtrack(self, best: torch.Tensor, arrived: Sequence[_Messages], area: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cells and types (B, K), from the root's (B,): a cell of its M maps."""
        cells = best.new_zeros(len(best), len(self.parents))
        types = torch.zeros_like(cells)
        cells[:, self.levels[0][0]], types[:, self.levels[0][0]] = best % area, best // area
        for joints, messages in zip(self.levels[1:], arrived, strict=True):
            above = [self.parents[joint] for joint in joints]
            place = (types[:, above] * area + cells[:, above]).unsqueeze(-1)  # in the parent's M maps
            own = messages.types.flatten(2).gather(2, place)
            flat = messages.cells.flatten(3).flatten(2)  # (B, n, M M area), the joint's types first
            found = flat.gather(2, own * self.types * area + place)
            cells[:, list(joints)], types[:, list(joints)] = found.squeeze(-1).to(cells.dtype), own.squeeze(-1)
        return cells, types

    def _beliefs(self, sums: Sequence[torch.Tensor], sent: Sequence[torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
        """(B, K, M, H, W): what comes from below, and what comes from above and beside."""
        beliefs = list(sums)
        from_above = [torch.zeros_like(maps[:, 0])] * len(sums)
        for joints in self.levels[1:]:
            rest = []
            for joint in joints:
                # Summed up anew rather than subtracted, as -infinity less itself is not a number.
                parent = self.parents[joint]
                total = maps[:, parent] + self.type_bias[parent, :, None, None] + from_above[parent]
                siblings = [s for s, p in enumerate(self.parents) if p == parent and s != joint]
                rest.append(sum((sent[sibling] for sibling in siblings), total))
            messages = self._send(torch.stack(rest, 1), joints, up=False).values
            for joint, message in zip(joints, messages.unbind(1), strict=True):
                from_above[joint] = message
                beliefs[joint] = sums[joint] + message
        return torch.stack(beliefs, 1)


def tree_parents(edges: Sequence[tuple[int, int]], root: int) -> tuple[int, ...]:
    """The parent of every joint in a tree, -1 for the root, such as of the edges of a `Skeleton`.

    Args:
        edges: pairs of joints, which connect them all without a cycle.
        root: joint that all others hang on.

    Raises:
        ValueError: the edges are not a tree, or there is no such joint.
    """
    count = len(edges) + 1
    parents = {root: -1}
    reached = [root]
    for joint in reached:
        for first, second in edges:
            for near, far in ((first, second), (second, first)):
                if near == joint and far not in parents:
                    parents[far] = joint
                    reached.append(far)
    if sorted(parents) != list(range(count)):
        raise ValueError(f"edges: got {list(edges)}, allowed is a tree of the joints 0 to {count - 1}, root {root} among them")
    return tuple(parents[joint] for joint in range(count))


def _levels(parents: Sequence[int]) -> list[tuple[int, ...]]:
    """The joints by their depth, the root alone at first."""
    joints = range(len(parents))
    levels = [tuple(joint for joint in joints if parents[joint] == -1)]
    while levels[-1]:
        levels.append(tuple(joint for joint in joints if parents[joint] in levels[-1]))
    if len(levels[0]) != 1 or sum(map(len, levels)) != len(parents):
        raise ValueError(
            f"parents: got {tuple(parents)}, allowed is one tree: for each joint another one, and -1 for one of them"
        )
    return levels[:-1]


def _softplus_inverse(values: torch.Tensor) -> torch.Tensor:
    return values + torch.log(-torch.expm1(-values))
