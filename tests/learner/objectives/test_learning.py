"""Learners with every objective: the loss falls, a stop leaves no trace, two learn what one does."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from encoders import KINDS, columns_of, config_of, encoder_of, images_of
from learners import CPU, portions, rendered
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from genray.config import load
from genray.config.run import Config
from genray.learner.encoder import Encoder
from genray.learner.learner import Learner, Request
from genray.stream.run import Run
from genray.views.types import Block

STEPS = 10
OWN = {
    "inverter": ("latent_error", "class_accuracy"),
    "classifier": ("class_accuracy",),
    "simsiam": ("spread",),
    "byol": ("spread",),
}


def demo(kind: str) -> Config:
    """The demo with this objective, a few short steps of it, which show the same images again and again."""
    short = f"--name x --stream.batch_size 32 --training.steps {STEPS} --training.warmup_steps 2 --training.log_every 1"
    again = "--stream.num_anchors 32 --stream.num_neighbors 1 --augment.policy none"
    return load.load("demo", f"{short} {again} --objective.kind {kind}".split())


@pytest.fixture(scope="module")
def demo_blocks() -> list[Block]:
    """What such a run sees, whatever its objective."""
    return rendered(demo("simclr"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_the_demo_falls(kind: str, demo_blocks: list[Block]) -> None:
    config = demo(kind)
    assert config.objective.kind == kind
    run = Run.of(config)
    assert run.plan.lines(config)
    made = Learner(run, 0, CPU)
    records = [report.record for report in made.train(portions(demo_blocks, made)) if report.record]
    found = [record["loss"] for record in records]
    assert np.isfinite(found).all()
    assert np.mean(found[-3:]) < found[0] - 0.1 * abs(found[0])
    for record in records:
        assert set(record) == {
            *("step", "anchors", "loss", "measured", "batches", "alignment", "uniformity", "lr"),
            *OWN.get(kind, ()),
        }


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_in_the_middle_goes_on_bit_by_bit(kind: str, tmp_path: Path) -> None:
    config = config_of(kind, training={"steps": 9, "log_every": 1}, optimizer={"kind": "adamw", "lr": 1e-2})
    run, blocks = Run.of(config), rendered(config)
    whole, found = Learner(run, 0, CPU), []
    expected = [report.record for report in whole.train(iter(blocks)) if report.record]
    until: list[Callable[[int], Request]] = [lambda step: "stop" if step == 4 else "continue", lambda step: "continue"]
    for asked in until:
        made = Learner(run, 0, CPU)
        if found:
            made.restore(tmp_path)
        for report in made.train(portions(blocks, made), asked):
            found += [report.record] if report.record else []
        made.save(tmp_path)
    keys = ("step", "loss", "alignment", "uniformity", *OWN.get(kind, ()))
    assert [[record[key] for key in keys] for record in found] == [[record[key] for key in keys] for record in expected]
    state, reached = whole.encoder.state_dict(), made.encoder.state_dict()
    assert list(state) == list(reached)
    assert all(torch.equal(state[name], reached[name]) for name in state)
    untrained = encoder_of(kind).state_dict()
    assert not any(torch.equal(state[name], untrained[name]) for name in state if name.endswith("conv1.weight"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_is_told_what_it_asks_for(kind: str) -> None:
    made, (block, *_) = Learner(Run.of(config_of(kind)), 0, CPU), rendered(config_of(kind, training={"steps": 2}))
    found = made.columns(block)
    assert tuple(found) == {
        "simclr": ("anchor",),
        "supcon": ("anchor", "label"),
        "inverter": ("latent", "label"),
        "classifier": ("label",),
    }.get(kind, ())
    for name, column in found.items():
        np.testing.assert_array_equal(column.numpy(), block[name])


def test_the_momentum_follows_the_anchors_and_not_the_learners(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("byol", training={"steps": 4}, learners={"num_workers": [1, 2]})
    made, told = Learner(Run.of(config).with_learners(1), 0, CPU), list[float]()
    monkeypatch.setattr(made.encoder, "after_step", told.append)
    list(made.train(portions(rendered(config_of("byol", training={"steps": 4})), made)))
    assert told == [0, 0.25, 0.5, 0.75]


UNEVEN = torch.tensor([[0, 1, 2, 1], [-1, -1, 2, -1]])
"""Classes of two learners' anchors, of which not all have one."""


def double(kind: str) -> Encoder:
    """In double precision and with the norms of evaluation, so that no row depends on another but by the loss."""
    return encoder_of(kind, stream={"num_views": 3}).double().eval()


def whole_batch(encoder: Encoder) -> tuple[Tensor, dict[str, Tensor]]:
    """Images `[V, 8, …]` and columns of eight anchors."""
    columns = columns_of(encoder, 8)
    if "label" in columns:
        columns["label"] = UNEVEN.flatten()
    return encoder.by_view(images_of(encoder, 8)).double(), columns


def learner(rank: int, meeting_point: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found, part = {}, slice(4 * rank, 4 * rank + 4)
    for kind in KINDS:
        encoder = double(kind)
        parallel: nn.Module = DistributedDataParallel(encoder)
        images, columns = whole_batch(encoder)
        for _ in range(2):  # a parameter without a gradient would be told at the second one
            encoder.zero_grad()
            outputs = parallel(images[:, part].flatten(0, 1))
            loss = encoder.loss(outputs, {name: column[part] for name, column in columns.items()})
            loss.backward()
        found[kind] = loss.detach(), {name: p.grad for name, p in encoder.named_parameters() if p.requires_grad}
    torch.save(found, f"{results}/{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # one of torch's threads may abort a process that ends in the usual way


def test_two_learners_equal_one_on_the_whole_batch(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "meet"), str(tmp_path))
    torch.multiprocessing.start_processes(learner, arguments, nprocs=2, start_method="spawn")
    found: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind in KINDS:
        encoder = double(kind)
        images, columns = whole_batch(encoder)
        loss = encoder.loss(encoder(images.flatten(0, 1)), columns)
        loss.backward()
        torch.testing.assert_close(torch.stack([f[kind][0] for f in found]).mean(), loss.detach(), msg=kind)
        for name, parameter in encoder.named_parameters():
            if parameter.requires_grad:
                for theirs in found:
                    torch.testing.assert_close(theirs[kind][1][name], parameter.grad, rtol=1e-6, atol=1e-9, msg=kind)
