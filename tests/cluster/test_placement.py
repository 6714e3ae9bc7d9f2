"""Which nodes the parts of a run take, and what is said where there are too few; no Ray is started."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
from fakes import small

from genray.cluster.placement import (
    GENERATOR_NODE,
    HEAD_NODE,
    LEARNER_NODE,
    UNLIMITED,
    Fleet,
    NodeKind,
    Part,
    by_labels,
    node_counts,
    pack,
    parts,
    verdict,
)
from genray.config.errors import ConfigError
from genray.config.run import Config

HEAD = NodeKind("head", 0, 0, HEAD_NODE, count=1, limit=1, head=True)
LEARNER = NodeKind("learner", 8, 1, LEARNER_NODE, count=0, limit=2)
GENERATOR = NodeKind("generator", 4, 1, GENERATOR_NODE, count=0, limit=8)
AUTOSCALED = Fleet([HEAD, LEARNER, GENERATOR])
MACHINE = Fleet([NodeKind("node", 4, 0, {}, count=1, limit=1, head=True)])


def run(generators: Any = 1, learners: Any = 1, **more: Any) -> Config:
    batch = {"batch_size": 24, "ticket_batches": 1}
    return small(pool={"num": generators}, learners={"num_workers": learners}, stream=batch, **more)


@pytest.mark.parametrize(
    ("sections", "least", "most"),
    [
        ({}, [(1, 1, 1), (1, 1, 1), (1, 1, 0)], None),
        (
            {"learners": {"num_workers": [1, 2], "num_gpus": 0.5}, "pool": {"num": [3, 8], "num_cpus": 2}},
            [(1, 1, 0.5), (3, 2, 1), (1, 1, 0)],
            [(2, 1, 0.5), (8, 2, 1), (1, 1, 0)],
        ),
        ({"render_on": "learners", "pool": {"num": 8}, "learners": {"num_cpus": 2}}, [(1, 2, 1)], None),
    ],
)
def test_a_run_asks_for_learners_generators_and_the_tasks_of_ray_data(
    sections: dict[str, Any], least: list[tuple[float, ...]], most: list[tuple[float, ...]] | None
) -> None:
    for wanted, greedy in ((least, False), (most or least, True)):
        asked = parts(small(**sections), labels=True, most=greedy)
        assert [(part.number, part.cpus, part.gpus) for part in asked] == wanted
        assert [part.labels for part in asked] == [LEARNER_NODE, GENERATOR_NODE, GENERATOR_NODE][: len(wanted)]
    assert not any(part.labels for part in parts(small(**sections), labels=False))


@pytest.mark.parametrize(
    ("placement", "fleet", "expected"),
    [
        ("auto", AUTOSCALED, True),
        ("auto", Fleet([HEAD]), True),
        ("auto", Fleet([replace(LEARNER, count=1)]), True),
        ("auto", Fleet([replace(GENERATOR, count=1)]), True),
        ("auto", MACHINE, False),
        ("auto", Fleet([*MACHINE.kinds, LEARNER]), False),  # what is there counts, where there is something
        ("anywhere", AUTOSCALED, False),
        ("labels", MACHINE, True),
    ],
)
def test_labels_are_used_where_the_nodes_carry_them(placement: str, fleet: Fleet, expected: bool) -> None:
    assert by_labels(run(placement=placement), fleet) is expected


def fewest(part: Part, kind: NodeKind) -> int | None:
    """Nodes that so many processes take, by adding one after the other to a node."""
    if part.labels not in ({}, kind.labels):
        return None
    shares = 10
    asked = round(part.gpus * shares)
    each = 0
    for number in itertools.count(1):
        if number * part.cpus > kind.cpus or number > 12:
            break
        if part.gpus >= 1:
            fits = number * part.gpus <= kind.gpus
        else:
            fits = not asked or number <= kind.gpus * (shares // asked)
        if not fits:
            break
        each = number
    return -(-part.number // each) if each else None


def test_of_one_kind_as_few_nodes_are_taken_as_there_can_be() -> None:
    drawn = random.Random(0)
    refused = 0
    for _ in range(300):
        kind = NodeKind("kind", drawn.choice([1, 2, 4, 16]), drawn.choice([0, 1, 2, 4]), LEARNER_NODE, 0, UNLIMITED)
        asked = Part(
            "x",
            "x",
            drawn.randint(1, 9),
            drawn.choice([0.5, 1, 2, 3]),
            drawn.choice([0, 0.3, 0.5, 1, 2]),
            drawn.choice([{}, LEARNER_NODE, GENERATOR_NODE]),
        )
        expected, found = fewest(asked, kind), pack([asked], Fleet([HEAD, kind]))
        refused += expected is None
        assert (found.unplaced is None) == (expected is not None), asked
        if expected is not None:
            assert found.nodes == {"kind": expected}
            assert pack([asked], Fleet([replace(kind, limit=expected)])).unplaced is None
            assert pack([asked], Fleet([replace(kind, limit=expected - 1)])).unplaced is asked
    assert 30 < refused < 270


def test_a_gpu_is_shared_by_both_sides_and_never_split_over_two() -> None:
    node = NodeKind("node", 16, 2, {}, count=1, limit=1)
    most = Part("a", "a", 3, 1, 0.6), Part("b", "b", 2, 1, 0.4)
    assert pack([replace(most[0], number=2), most[1]], Fleet([node])).unplaced is None
    assert pack(most[:1], Fleet([node])).unplaced is most[0]  # 1.8 GPUs of 2
    assert pack([Part("whole", "w", 1, 1, 1), replace(most[0], number=2)], Fleet([node])).unplaced is not None


def test_all_kinds_together_keep_to_the_clusters_own_limit() -> None:
    asked = parts(run(generators=4), labels=True)
    assert pack(asked, replace(AUTOSCALED, max_workers=5)).nodes == {"learner": 1, "generator": 4}
    assert pack(asked, replace(AUTOSCALED, max_workers=4)).unplaced is not None


def test_what_is_there_already_counts() -> None:
    there = Fleet([HEAD, replace(GENERATOR, count=3, limit=3), NodeKind("other", 2, 0, {}, 1, 1)])
    held = AUTOSCALED.with_existing(there)
    assert [(kind.name, kind.count, kind.limit) for kind in held.kinds] == [
        ("head", 1, 1),
        ("learner", 0, 2),
        ("generator", 3, 8),
        ("other", 1, 1),
    ]
    assert AUTOSCALED.with_existing(Fleet([replace(LEARNER, count=5, limit=5)])).kinds[1].limit == 5


def test_a_cluster_says_whether_it_fits_now_or_when_it_has_grown() -> None:
    full = Fleet([HEAD, replace(LEARNER, count=1), replace(GENERATOR, count=2)])
    config = run(generators=2)
    assert verdict(config, full).line == "fits: the run needs 4 CPUs and 3 GPUs, the cluster has 16 CPUs and 3 GPUs"
    assert verdict(config, AUTOSCALED).line == (
        "fits once it has grown: the run needs 4 CPUs and 3 GPUs, the cluster has 0 CPUs and 0 GPUs and can have "
        "48 CPUs and 10 GPUs"
    )


@pytest.mark.parametrize(
    ("config", "start"),
    [
        (
            run(learners=4),
            "learners.num_workers must fit the nodes of the cluster with genray-role=learner (at most 2 learner of "
            "8 CPUs and 1 GPUs), got 4 learners of 1 CPUs and 1 GPUs; lower it or the request of each, ",
        ),
        (
            run(generators=9),
            "pool.num must fit the nodes of the cluster with ray-subcluster=generator (at most 8 generator "
            "of 4 CPUs and 1 GPUs), got 9 generators of 1 CPUs and 1 GPUs and 1 tasks of Ray Data of 1 CPUs and 0 GPUs",
        ),
        (small(pool={"num": 8, "num_cpus": 4}), "pool.num must fit the nodes of the cluster with "),
    ],
)
def test_what_can_never_fit_is_refused(config: Config, start: str) -> None:
    with pytest.raises(ConfigError) as error:
        verdict(config, AUTOSCALED)
    assert str(error.value).startswith(start)


def test_labels_that_no_node_carries_are_told() -> None:
    with pytest.raises(ConfigError, match=r"with genray-role=learner \(there are none\), got 1 learners"):
        verdict(small(placement="labels", pool={"num_gpus": 0}, learners={"num_gpus": 0}), MACHINE)


def test_where_it_is_not_known_how_far_a_cluster_grows_a_run_waits() -> None:
    by_hand = replace(AUTOSCALED, limits_known=False, kinds=[HEAD, replace(LEARNER, count=1, limit=1)])
    assert verdict(run(), by_hand).line == (
        "does not fit yet: the run needs 3 CPUs and 2 GPUs, the cluster has 8 CPUs and 1 GPUs and no room for its "
        "generators on nodes with ray-subcluster=generator; it starts once nodes are added"
    )
    assert node_counts(run(), by_hand) == "no node with ray-subcluster=generator for the generators"


@pytest.mark.parametrize(
    ("config", "fleet", "expected"),
    [
        (run(), AUTOSCALED, "at least 1 x generator, 1 x learner"),
        (
            run([2, 8], [1, 2]),
            AUTOSCALED,
            "at least 2 x generator, 1 x learner; at most 8 x generator, 2 x learner",
        ),
        (run([2, 9]), AUTOSCALED, "at least 2 x generator, 1 x learner"),
        (small(pool={"num": 2, "num_cpus": 4}), AUTOSCALED, "at least 3 x generator, 1 x learner"),
        (run(3), replace(AUTOSCALED, limits_known=False), "at least 3 x generator, 1 x learner"),
        (run(12), replace(AUTOSCALED, limits_known=False), "at least 12 x generator, 1 x learner"),
        (run(placement="anywhere"), AUTOSCALED, "at least 2 x learner"),
        (run(2, placement="anywhere"), AUTOSCALED, "no node large enough for the generators"),
        (run(), MACHINE, "no node large enough for the learners"),
    ],
)
def test_the_fewest_nodes_of_each_kind_are_told(config: Config, fleet: Fleet, expected: str) -> None:
    assert node_counts(config, fleet) == expected


def test_the_labels_are_those_that_the_field_tells() -> None:
    told = Config.__pydantic_fields__["placement"].description
    for labels in (GENERATOR_NODE, LEARNER_NODE):
        [(key, value)] = labels.items()
        assert f"{key}={value}" in told
