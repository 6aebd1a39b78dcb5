"""Trees of springs against all configurations, one by one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fastpose.nn import TreeMaxSum, tree_parents
from fastpose.skeletons import LSP, MPII

pytestmark = pytest.mark.usefixtures("one_thread")

CHAIN = (-1, 0, 1, 2)
STAR = (1, -1, 1, 1)
BRANCHED = (2, 2, -1, 0)


def random_tree(parents: tuple[int, ...], types: int, seed: int = 0) -> TreeMaxSum:
    """Springs between about 0.1 and 1 a square cell, anchors of up to two cells, not whole ones, biases about as large."""
    generator = torch.Generator().manual_seed(seed)
    tree = TreeMaxSum(parents, types).double()
    for name, parameter in tree.named_parameters():
        scale = 1.5 if name == "anchors" else 0.7
        parameter.data = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return tree


def random_scores(tree: TreeMaxSum, height: int, width: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    shape = (batch, len(tree.parents), *([tree.types] if tree.types > 1 else []), height, width)
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_sums(tree: TreeMaxSum, unary: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int, int]]]:
    """The definition: scores of one image's configurations (N, ..., N), an axis a joint, and its N states (type, y, x)."""
    joints, types, height, width = len(tree.parents), tree.types, *unary.shape[-2:]
    maps = unary.reshape(joints, types, height, width)
    states = list(itertools.product(range(types), range(height), range(width)))
    t, y, x = torch.tensor(states).unbind(1)
    place = torch.stack((x, y), -1).double()
    stiffness = tree.raw_stiffness.exp().log1p()
    total = torch.zeros([len(states)] * joints, dtype=torch.float64)
    for joint, parent in enumerate(tree.parents):
        own = maps[joint, t, y, x] + tree.type_bias[joint, t]
        total = total + own.view([-1 if axis == joint else 1 for axis in range(joints)])
        if parent < 0:
            continue
        pair = joint, t[:, None], t  # types of the joint, of the parent
        d = place[:, None] - place - tree.anchors[pair]
        spring = (stiffness[pair] * d.square()).sum(-1)
        terms = (tree.pair_bias[pair] - spring).masked_fill(tree.forbidden[pair], -math.inf)
        if parent < joint:
            terms = terms.T
        total = total + terms.reshape([len(states) if axis in (joint, parent) else 1 for axis in range(joints)])
    return total, states


@pytest.mark.parametrize("parents", [CHAIN, STAR, BRANCHED, (-1,)])
@pytest.mark.parametrize(("types", "size"), [(1, (4, 5)), (2, (2, 3))])
def test_best_configuration_and_beliefs_are_those_of_all_configurations(
    parents: tuple[int, ...], types: int, size: tuple[int, int]
) -> None:
    tree = random_tree(parents, types)
    if types == 2:
        tree.forbidden[:, 0, 1] = True
    unary = random_scores(tree, *size)
    unary[0, 0, ..., 0, 1] = -math.inf
    poses = tree(unary)
    assert poses.beliefs.shape == unary.shape
    for image in range(2):
        total, states = all_sums(tree, unary[image])
        torch.testing.assert_close(poses.scores[image], total.max())
        best = torch.unravel_index(total.argmax(), total.shape)
        for joint, state in enumerate(best):
            kind, y, x = states[state]
            assert poses.coordinates[image, joint].tolist() == [x, y]
            assert poses.types[image, joint] == kind
            others = [axis for axis in range(len(parents)) if axis != joint]
            beliefs = total.amax(others) if others else total
            torch.testing.assert_close(poses.beliefs[image, joint].flatten(), beliefs)


def test_without_beliefs_the_rest_is_the_same() -> None:
    tree = random_tree(BRANCHED, 3)
    unary = random_scores(tree, 5, 4)
    full, short = tree(unary), tree(unary, beliefs=False)
    assert short.beliefs is None
    assert all(torch.equal(a, b) for a, b in zip(full[:3], short[:3], strict=True))


@pytest.mark.parametrize("types", [1, 2])
def test_gradients(types: int) -> None:
    """Of scores and beliefs, in maps and in all parameters."""
    tree = random_tree(STAR, types)
    unary = random_scores(tree, 3, 4, batch=1).requires_grad_()
    names = [name for name, _ in tree.named_parameters()]

    def scores(unary: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        poses = torch.func.functional_call(tree, dict(zip(names, parameters, strict=True)), (unary,))
        return poses.scores, poses.beliefs.logsumexp((-1, -2))

    assert torch.autograd.gradcheck(scores, (unary, *tree.parameters()))


def test_gradient_of_a_score_goes_to_the_best_configuration() -> None:
    tree = random_tree(CHAIN, 2)
    unary = random_scores(tree, 4, 4).requires_grad_()
    poses = tree(unary)
    poses.scores.sum().backward()
    assert unary.grad.sum() == 2 * 4
    for image, joint in itertools.product(range(2), range(4)):
        x, y = poses.coordinates[image, joint].long()
        assert unary.grad[image, joint, poses.types[image, joint], y, x] == 1


def test_springs_draw_an_implausible_maximum_back() -> None:
    """The wrist's map has a higher peak by the other person's arm; its elbow is sure."""
    tree = TreeMaxSum((-1, 0, 1))  # shoulder, elbow, wrist
    poses = torch.tensor([[[10.0, 8.0], [10.0, 14.0], [10.0, 20.0]]]) + torch.randn(
        200, 3, 2, generator=torch.Generator().manual_seed(0)
    )
    tree.fit(poses)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")

    def peak(column: float, row: float, height: float) -> torch.Tensor:
        return height * torch.exp(-((x - column) ** 2 + (y - row) ** 2) / 8)

    maps = torch.stack((peak(12, 6, 1.0), peak(12, 12, 1.0), peak(13, 17, 0.6) + peak(33, 20, 0.9)))
    unary = (maps + 0.01).log().unsqueeze(0)
    assert unary[0, 2].argmax() == 20 * 40 + 33
    found = tree(unary).coordinates[0]
    assert found[:2].tolist() == [[12, 6], [12, 12]]
    torch.testing.assert_close(found[2], torch.tensor([13.0, 17.0]), rtol=0, atol=1.0)
    # A much better peak is believed in spite of the springs.
    unary[0, 2, 20, 33] += 1000
    assert tree(unary).coordinates[0, 2].tolist() == [33, 20]


def test_types_choose_among_springs() -> None:
    """A forearm points up or down: two types of the wrist with opposite anchors."""
    tree = TreeMaxSum((-1, 0), types=2, stiffness=1.0)
    with torch.no_grad():
        tree.anchors[1, 0, :, 1] = -5.0
        tree.anchors[1, 1, :, 1] = 5.0
    unary = torch.zeros(1, 2, 2, 15, 9)
    unary[:, 0, 0, 7, 4] = 20
    unary[:, 0, 1, 7, 4] = 21
    unary[:, 1, :, 12, 4] = 5  # down
    unary[:, 1, :, 2, 4] = 2.5  # up
    poses = tree(unary)
    assert poses.types.tolist() == [[1, 1]]
    assert poses.scores.tolist() == [26]
    tree.forbidden[1, 1, 1] = True  # the elbow's better type goes with arms that point up alone
    poses = tree(unary)
    assert poses.types.tolist() == [[0, 1]]
    assert poses.coordinates.tolist() == [[[4, 7], [4, 12]]]
    assert poses.scores.tolist() == [25]
    unary[:, 0, 1, 7, 4] = 23
    poses = tree(unary)
    assert poses.types.tolist() == [[1, 0]]
    assert poses.coordinates.tolist() == [[[4, 7], [4, 2]]]


def test_fit_takes_mean_and_variance_of_displacements() -> None:
    generator = torch.Generator().manual_seed(0)
    poses = torch.rand(500, 3, 2, generator=generator) * 40
    poses[:, 2] = poses[:, 0] + torch.tensor([3.0, -7.0]) + torch.randn(500, 2, generator=generator) * torch.tensor([2.0, 0.5])
    poses[:100, 0] = torch.nan
    tree = TreeMaxSum((-1, 0, 0))
    tree.fit(poses)
    torch.testing.assert_close(tree.anchors[2, 0, 0], torch.tensor([3.0, -7.0]), rtol=0, atol=0.2)
    torch.testing.assert_close(tree.stiffness[2, 0, 0], torch.tensor([1 / 8, 2.0]), rtol=0.15, atol=0)
    displacements = (poses[:, 1] - poses[:, 0])[100:]
    torch.testing.assert_close(tree.stiffness[1, 0, 0], 0.5 / displacements.var(0), rtol=1e-4, atol=0)
    assert not tree.forbidden.any()


def test_fit_by_types() -> None:
    generator = torch.Generator().manual_seed(0)
    poses = torch.rand(60, 2, 2, generator=generator) * 40
    types = torch.randint(0, 2, (60, 2), generator=generator)
    types[:, 1] = torch.where(types[:, 0] == 1, 0, types[:, 1])  # never both 1
    tree = TreeMaxSum((-1, 0), types=2)
    tree.fit(poses, types)
    assert tree.forbidden[1].tolist() == [[False, False], [False, True]]
    pair = (types[:, 1] == 1) & (types[:, 0] == 0)
    torch.testing.assert_close(tree.anchors[1, 1, 0], (poses[pair, 1] - poses[pair, 0]).mean(0))
    before = tree.anchors.clone()
    with pytest.raises(ValueError, match=r"poses: joints \[1\] and their parents have labels together in fewer than two"):
        tree.fit(torch.full((9, 2, 2), torch.nan))
    assert torch.equal(tree.anchors, before)
    with pytest.raises(ValueError, match=r"poses: got shape \(60, 3, 2\), allowed is \(N, 2, 2\)"):
        tree.fit(torch.zeros(60, 3, 2))
    with pytest.raises(ValueError, match=r"types: allowed are \(60, 2\) integers from 0 to 1"):
        tree.fit(poses, types + 1)


def test_fixed_displacements_have_a_finite_spring() -> None:
    tree = TreeMaxSum((-1, 0))
    tree.fit(torch.tensor([[[1.0, 1.0], [4.0, 5.0]]]).expand(5, 2, 2))
    torch.testing.assert_close(tree.stiffness[1, 0, 0], torch.tensor([6.0, 6.0]))
    torch.testing.assert_close(TreeMaxSum((-1, 0), stiffness=0.25).stiffness[1, 0, 0], torch.tensor([0.25, 0.25]))


def test_layer_is_saved_with_its_forbidden_pairs() -> None:
    tree, other = random_tree(CHAIN, 2), random_tree(CHAIN, 2, seed=5)
    tree.forbidden[1, 0, 1] = True
    other.load_state_dict(tree.state_dict())
    unary = random_scores(tree, 3, 3)
    assert torch.equal(other(unary).beliefs, tree(unary).beliefs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_maps_are_summed_up_in_single(dtype: torch.dtype) -> None:
    tree = random_tree(CHAIN, 1).float()
    unary = random_scores(tree, 6, 5).to(dtype)
    poses = tree(unary)
    assert poses.scores.dtype == poses.beliefs.dtype == torch.float32
    torch.testing.assert_close(poses.scores, tree.double()(unary.double()).scores.float())


# ---- trees ----------------------------------------------------------------------------------------------------------


def test_tree_of_a_skeleton() -> None:
    parents = tree_parents(MPII.edges, MPII.index("thorax"))
    assert parents[MPII.index("thorax")] == -1
    assert parents[MPII.index("left_wrist")] == MPII.index("left_elbow")
    assert parents[MPII.index("right_knee")] == MPII.index("right_hip")
    assert TreeMaxSum(parents)(torch.zeros(1, 16, 4, 4)).coordinates.shape == (1, 16, 2)


@pytest.mark.parametrize(
    ("edges", "root"), [(LSP.edges, 0), ([(0, 1), (0, 1)], 0), ([(0, 1), (2, 3), (2, 3)], 0), ([(0, 1)], 2), ([(0, 0)], 0)]
)
def test_what_is_no_tree_is_refused(edges: list[tuple[int, int]], root: int) -> None:
    """LSP's torso is a cycle."""
    with pytest.raises(ValueError, match=r"edges: got .*, allowed is a tree"):
        tree_parents(edges, root)


@pytest.mark.parametrize("parents", [(), (0,), (-1, -1), (1, 0), (-1, 2, 1), (-1, 5)])
def test_wrong_parents_are_refused(parents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"parents: got .*, allowed is one tree"):
        TreeMaxSum(parents)


def test_wrong_maps_and_options_are_refused() -> None:
    for shape in ((1, 3, 4, 4), (1, 4, 2, 4, 4), (1, 4, 0, 4), (4, 4)):
        with pytest.raises(ValueError, match=r"unary: got shape .*, allowed is \(B, 4, H, W\)"):
            TreeMaxSum(CHAIN)(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"unary: got shape .*, allowed is \(B, 4, 2, H, W\)"):
        TreeMaxSum(CHAIN, 2)(torch.zeros(1, 4, 5, 5))
    with pytest.raises(TypeError, match=r"unary: got dtype torch\.int64"):
        TreeMaxSum(CHAIN)(torch.zeros(1, 4, 5, 5).long())
    with pytest.raises(ValueError, match="types: got 0"):
        TreeMaxSum(CHAIN, 0)
    with pytest.raises(ValueError, match="stiffness: got 0"):
        TreeMaxSum(CHAIN, stiffness=0)
