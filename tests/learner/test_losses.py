"""The contrastive loss against its formula, closed forms, numeric gradients, and one process against two."""

import math
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from genray.learner.losses import contrastive_loss
from genray.probes.measures import alignment, uniformity

T, T0 = 0.1, 0.07
HUGE = 2**62


def formula(embeddings: Tensor, labels: Tensor, temperature: float = T, base: float = T0) -> float:
    """The loss as it is written, one row and one positive after the other."""
    unit = [row / row.norm() for row in embeddings.double()]
    losses = []
    for i in range(len(unit)):
        others = [a for a in range(len(unit)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue
        normaliser = math.log(sum(math.exp(float(unit[i] @ unit[a]) / temperature) for a in others))
        mean = sum(float(unit[i] @ unit[p]) / temperature - normaliser for p in positives) / len(positives)
        losses.append(-temperature / base * mean)
    return sum(losses) / len(losses) if losses else 0.0


LABELS = {
    "simclr": torch.arange(6).repeat(2),
    "three views": torch.arange(4).repeat(3),
    "huge anchor ids": (HUGE + torch.arange(6)).repeat(2),
    "supcon, uneven, two rows alone": torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 4]),
}


def rows(count: int = 12, dim: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("temperatures", [(0.1, 0.07), (0.5, 0.5)])
def test_equals_the_formula(labels: Tensor, temperatures: tuple[float, float]) -> None:
    expected = formula(rows(), labels, *temperatures)
    assert float(contrastive_loss(rows(), labels, *temperatures)) == pytest.approx(expected, rel=1e-5)
    assert float(contrastive_loss(7 * rows(), labels, *temperatures)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("views", [2, 3])
def test_equal_embeddings_give_the_log_of_the_number_of_others(views: int) -> None:
    same = torch.ones(views * 8, 4)
    loss = contrastive_loss(same, torch.arange(8).repeat(views), T, T0)
    assert float(loss) == pytest.approx(T / T0 * math.log(views * 8 - 1))


def test_rows_that_say_nothing_yet_are_close_to_that() -> None:
    # A random network maps all images to nearly one direction; 8.91 at 256 anchors.
    same_but_little = torch.ones(512, 128) + 0.05 * rows(512, 128)
    loss = contrastive_loss(same_but_little, torch.arange(256).repeat(2), T, T0)
    assert float(loss) == pytest.approx(T / T0 * math.log(511), abs=0.1)
    assert T / T0 * math.log(511) == pytest.approx(8.91, abs=0.005)


def test_perfect_views_of_orthogonal_anchors() -> None:
    loss = contrastive_loss(torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2), T, T0)
    expected = -T / T0 * (1 / T - math.log(math.exp(1 / T) + 6))
    assert float(loss) == pytest.approx(expected, abs=1e-5)


def test_no_positives_at_all_is_zero_with_zero_gradient() -> None:
    embeddings = rows(4).requires_grad_()
    loss = contrastive_loss(embeddings, torch.arange(4), T, T0)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_a_row_alone_still_repels_and_keeps_gradients_finite() -> None:
    embeddings = rows(5).requires_grad_()
    contrastive_loss(embeddings, torch.tensor([0, 1, 2, 0, 1]), T, T0).backward()
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad[2].abs().sum() > 0  # as a negative of the others


def test_small_temperature_is_stable() -> None:
    loss = contrastive_loss(rows(), LABELS["simclr"], 1e-3, 1e-3)
    assert float(loss) == pytest.approx(formula_in_log_space(rows(), LABELS["simclr"], 1e-3), rel=1e-4)


def formula_in_log_space(embeddings: Tensor, labels: Tensor, temperature: float) -> float:
    unit = F.normalize(embeddings.double(), dim=1)
    logits = unit @ unit.T / temperature
    logits.fill_diagonal_(-torch.inf)
    return float(F.cross_entropy(logits, torch.arange(len(labels)).roll(len(labels) // 2)))


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_gradient_is_numerically_right(labels: Tensor) -> None:
    embeddings = rows().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: contrastive_loss(e, labels, T, T0), embeddings)


def test_autocast_does_not_round_the_loss() -> None:
    labels = LABELS["simclr"]
    plain = contrastive_loss(rows(), labels, T, T0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(rows(), labels, T, T0), plain)
    rounded = rows().bfloat16()
    assert torch.equal(contrastive_loss(rounded, labels, T, T0), contrastive_loss(rounded.float(), labels, T, T0))


@pytest.mark.parametrize("views", [2, 3])
def test_alignment_and_uniformity_equal_their_definitions(views: int) -> None:
    embeddings = rows(views * 6).view(views, 6, 5)
    unit = F.normalize(embeddings.double(), dim=-1)
    aligned = [
        float((unit[v, b] - unit[w, b]).square().sum()) for b in range(6) for v in range(views) for w in range(v)
    ]
    spread = [
        math.exp(-2 * float((unit[v, a] - unit[v, b]).square().sum()))
        for v in range(views)
        for a in range(6)
        for b in range(a)
    ]
    assert float(alignment(embeddings)) == pytest.approx(sum(aligned) / len(aligned), rel=1e-5)
    assert float(uniformity(embeddings)) == pytest.approx(math.log(sum(spread) / len(spread)), rel=1e-4)


def test_collapse_is_aligned_and_not_uniform() -> None:
    collapsed = torch.ones(2, 8, 4, requires_grad=True)
    assert float(alignment(collapsed)) == pytest.approx(0, abs=1e-6)
    assert float(uniformity(collapsed)) == pytest.approx(0, abs=1e-5)
    assert not alignment(collapsed).requires_grad
    assert not uniformity(collapsed).requires_grad


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


SHARED = {
    "simclr": torch.tensor([[5, 6, 7, 5, 6, 7], [8, 9, HUGE, 8, 9, HUGE]]),  # anchors never cross learners
    "supcon": torch.tensor([[0, 1, 2, 0, 1, 2], [1, 1, 3, 1, 4, 5]]),  # three rows without a positive, all on learner 1
    "supcon, positives only across learners": torch.tensor([[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 0]]),
    "supcon, one learner has no positives": torch.tensor([[0, 0, 1, 1, 1, 0], [2, 3, 4, 5, 6, 7]]),
}


def learner(rank: int, meeting_point: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found = {}
    for name, labels in SHARED.items():
        network = DistributedDataParallel(small_network())
        images = rows(12, 6, seed=1).double().view(2, 6, 6)
        loss = contrastive_loss(network(images[rank]), labels[rank], T, T0)
        loss.backward()
        found[name] = loss.detach(), [p.grad for p in network.parameters()]
    torch.save(found, f"{results}/{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # one of torch's threads may abort a process that ends in the usual way


def test_two_learners_equal_one_process_on_the_whole_batch(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "meet"), str(tmp_path))
    torch.multiprocessing.start_processes(learner, arguments, nprocs=2, start_method="spawn")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, labels in SHARED.items():
        network = small_network()
        loss = contrastive_loss(network(rows(12, 6, seed=1).double()), labels.flatten(), T, T0)
        loss.backward()
        assert loss.item() > 0
        torch.testing.assert_close(torch.stack([f[name][0] for f in found]).mean(), loss.detach())
        for parameter, *theirs in zip(network.parameters(), *[f[name][1] for f in found], strict=True):
            torch.testing.assert_close(theirs[0], parameter.grad)
            torch.testing.assert_close(theirs[1], parameter.grad)
