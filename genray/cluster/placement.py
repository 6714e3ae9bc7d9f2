"""Which nodes the parts of a run may use, how many they need, and whether a cluster has or can have that many.

Independent of Ray: `genray.cluster.ray_cluster` lists the current nodes, `genray.cluster.node_types` the possible ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from genray.config.errors import ConfigError
from genray.config.run import Config

SUBCLUSTER_LABEL = "ray-subcluster"
"""Ray's own label. Ray Data uses the nodes with one value of it only, Ray Train the nodes without it."""
ROLE_LABEL = "genray-role"
GENERATOR_NODE = {SUBCLUSTER_LABEL: "generator"}
LEARNER_NODE = {ROLE_LABEL: "learner"}
HEAD_NODE = {ROLE_LABEL: "head"}
"""Shows that a cluster is labelled even while it has no node but its head."""
RAY_DATA_CPUS = 1
"""CPUs for Ray Data's own read and repartition tasks."""
UNLIMITED = 10**6
"""A number of nodes that no run needs."""


@dataclass(frozen=True)
class Part:
    """Processes of a run with equal requests: `number` of them, with so many CPUs and GPUs each."""

    name: str
    setting: str
    """Path of the field that sets the number."""
    number: int
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that their nodes must have; empty if any node will do."""


@dataclass(frozen=True)
class NodeKind:
    """Identical nodes: the resources of each, how many there are now, and how many there can be."""

    name: str
    cpus: float
    gpus: float
    labels: Mapping[str, str]
    count: int
    """Number of nodes now."""
    limit: int
    """Most nodes that there can be."""
    head: bool = False

    def has_labels(self, labels: Mapping[str, str]) -> bool:
        """Whether the nodes have all of these labels."""
        return labels.items() <= self.labels.items()

    def accepts(self, part: Part) -> bool:
        """Whether a part may run here. A part without labels must not use nodes that Ray reserves by its own label."""
        return self.has_labels(part.labels) and (bool(part.labels) or SUBCLUSTER_LABEL not in self.labels)


@dataclass(frozen=True)
class Fleet:
    """The nodes of a cluster, by kind."""

    kinds: Sequence[NodeKind]
    max_workers: int = UNLIMITED
    """Most nodes that there can be in addition to the head, of all kinds together."""
    limits_known: bool = True
    """Whether it is known how many nodes there can be."""

    def without_growth(self) -> Fleet:
        """The same cluster if no nodes can be added."""
        return replace(self, kinds=[replace(kind, limit=kind.count) for kind in self.kinds], max_workers=UNLIMITED)

    def without_limits(self) -> Fleet:
        """The same cluster if any number of nodes of each kind can be added, except heads."""
        kinds = [kind if kind.head else replace(kind, limit=UNLIMITED) for kind in self.kinds]
        return replace(self, kinds=kinds, max_workers=UNLIMITED)

    def with_existing(self, existing: Fleet) -> Fleet:
        """The same limits for a cluster that has the `existing` nodes."""
        counts = {kind.name: kind.count for kind in existing.kinds}
        kinds = [
            replace(kind, count=counts[kind.name], limit=max(kind.limit, counts[kind.name]))
            if kind.name in counts
            else kind
            for kind in self.kinds
        ]
        known = {kind.name for kind in self.kinds}
        return replace(self, kinds=[*kinds, *(kind for kind in existing.kinds if kind.name not in known)])

    @property
    def labelled(self) -> bool:
        """Whether labels say what its nodes are for. If it has any nodes yet, only those count."""
        seen = [kind for kind in self.kinds if kind.count] or self.kinds
        return any(ROLE_LABEL in kind.labels or kind.has_labels(GENERATOR_NODE) for kind in seen)

    @property
    def cpus(self) -> float:
        """CPUs of all nodes that there can be."""
        return sum(kind.limit * kind.cpus for kind in self.kinds)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes that there can be."""
        return sum(kind.limit * kind.gpus for kind in self.kinds)


@dataclass(frozen=True)
class Packed:
    """How many nodes of each kind the parts of a run need, and the first part that has no room, if any."""

    nodes: Mapping[str, int]
    unplaced: Part | None = None


def by_labels(config: Config, fleet: Fleet) -> bool:
    """Whether the run is placed by labels in this cluster."""
    return fleet.labelled if config.placement == "auto" else config.placement == "labels"


def parts(config: Config, labels: bool, most: bool = False) -> list[Part]:
    """The parts of a run: those that it needs at least, or those that it may use at most.

    Args:
        config: the run.
        labels: whether it is placed by labels.
        most: the largest numbers of generators and learners instead of the smallest.
    """
    learners, pool, probe = config.learners, config.pool, config.probe
    learner_node, generator_node = (LEARNER_NODE, GENERATOR_NODE) if labels else ({}, {})
    number = learners.bounds.most if most else learners.bounds.least
    result = [Part("learners", "learners.num_workers", number, learners.num_cpus, learners.num_gpus, learner_node)]
    if config.render_on == "pool":
        number = pool.bounds.most if most else pool.bounds.least
        result += [
            Part("generators", "pool.num", number, pool.num_cpus, pool.num_gpus, generator_node),
            Part("tasks of Ray Data", "pool.num", 1, RAY_DATA_CPUS, 0, generator_node),
        ]
    if probe.beside:
        result.append(Part("probes", "probe.num_cpus", 1, probe.num_cpus, probe.num_gpus, learner_node))
    return result


def pack(wanted: Sequence[Part], fleet: Fleet) -> Packed:
    """Place the parts of a run on as few nodes as possible.

    Largest first: each process goes on the first node with room, else on a new node of the kind that holds the
    most of them. This is exact if the nodes of a part are of one kind and no other part uses them, as with labels.
    """
    opened: list[_Node] = []
    for part in sorted(wanted, key=lambda part: (-part.gpus, -part.cpus)):
        for _ in range(part.number):
            node = next((node for node in opened if node.has_room(part)), None)
            if node is None:
                node = _new_node(part, fleet, opened)
                if node is None:
                    return Packed(_counted(opened), part)
                opened.append(node)
            node.take(part)
    return Packed(_counted(opened))


def concurrent_runs(configs: Sequence[Config], fleet: Fleet, most: int) -> int:
    """How many runs like the largest of these fit at the same time, up to `most`."""

    def fit(number: int) -> bool:
        return all(pack(parts(config, by_labels(config, fleet)) * number, fleet).unplaced is None for config in configs)

    return next((number for number in range(most, 0, -1) if fit(number)), 0)


def _new_node(part: Part, fleet: Fleet, opened: Sequence[_Node]) -> _Node | None:
    """An empty node of the kind that holds most of a part; None if no more nodes can be added for it."""
    counts = _counted(opened)
    full = sum(not node.kind.head for node in opened) >= fleet.max_workers
    fresh = [
        node
        for node in map(_Node, fleet.kinds)
        if node.holds(part) and counts[node.kind.name] < node.kind.limit and (node.kind.head or not full)
    ]
    return max(fresh, key=lambda node: node.holds(part), default=None)


def _counted(opened: Sequence[_Node]) -> Counter[str]:
    return Counter(node.kind.name for node in opened)


class _Node:
    """A node with its free resources. A fraction of a GPU is taken from a single GPU; whole GPUs must be free."""

    ROUNDING = 1e-6

    def __init__(self, kind: NodeKind):
        self.kind, self.cpus = kind, kind.cpus + self.ROUNDING
        self.gpus = [1 + self.ROUNDING] * int(kind.gpus)

    def has_room(self, part: Part) -> bool:
        return self.kind.accepts(part) and self.cpus >= part.cpus and self._gpus_for(part) is not None

    def holds(self, part: Part) -> float:
        """How many processes of a part the node holds while it is empty."""
        if not self.has_room(part):
            return 0
        by_cpus = self.cpus // part.cpus if part.cpus else UNLIMITED
        each = (1 + self.ROUNDING) // part.gpus if 0 < part.gpus < 1 else 1 / part.gpus if part.gpus else UNLIMITED
        return min(by_cpus, len(self.gpus) * each if part.gpus else UNLIMITED)

    def take(self, part: Part) -> None:
        self.cpus -= part.cpus
        for index in self._gpus_for(part) or ():
            self.gpus[index] -= min(1, part.gpus)

    def _gpus_for(self, part: Part) -> list[int] | None:
        """Indices of the GPUs that a process would get; None if too few are free."""
        enough = [index for index, left in enumerate(self.gpus) if left >= min(1, part.gpus)]
        if 0 < part.gpus < 1:  # the fullest GPU with room
            return [min(enough, key=lambda index: self.gpus[index])] if enough else None
        return enough[: int(part.gpus)] if len(enough) >= part.gpus else None


class Verdict(NamedTuple):
    """Whether a run fits a cluster as it is now, and a line about that."""

    fits: bool
    line: str


def verdict(config: Config, fleet: Fleet, cluster: str = "the cluster") -> Verdict:
    """Whether a cluster has room for the least that a run needs.

    Args:
        config: the run.
        fleet: the nodes of the cluster.
        cluster: what the line calls it.

    Raises:
        ConfigError: it has no room and, as far as its limits are known, never will.
    """
    wanted = parts(config, by_labels(config, fleet))
    need, now = f"the run needs {_size(*_sums(wanted))}", fleet.without_growth()
    missing = pack(wanted, now).unplaced
    if missing is None:
        return Verdict(True, f"fits: {need}, {cluster} has {_size(now.cpus, now.gpus)}")
    if not fleet.limits_known:
        lack = f" and no room for its {missing.name} on nodes with {_text(missing.labels)}" if missing.labels else ""
        has = f"{cluster} has {_size(now.cpus, now.gpus)}{lack}"
        return Verdict(False, f"does not fit yet: {need}, {has}; it starts once nodes are added")
    missing = pack(wanted, fleet).unplaced
    if missing is not None:
        raise ConfigError(_refusal(wanted, missing, fleet, cluster))
    sizes = f"{_size(now.cpus, now.gpus)} and can have {_size(fleet.cpus, fleet.gpus)}"
    return Verdict(False, f"fits once it has grown: {need}, {cluster} has {sizes}")


def node_counts(config: Config, fleet: Fleet) -> str:
    """One line with the fewest nodes of each kind for the least and the most that a run may use."""
    labels, room = by_labels(config, fleet), fleet if fleet.limits_known else fleet.without_limits()
    least, most = (pack(parts(config, labels, most), room) for most in (False, True))
    if least.unplaced is not None:
        where = f"with {_text(least.unplaced.labels)}" if least.unplaced.labels else "large enough"
        return f"no node {where} for the {least.unplaced.name}"
    text = f"at least {_listed(least.nodes)}"
    if most.unplaced is None and most.nodes != least.nodes:
        text += f"; at most {_listed(most.nodes)}"
    return text


def _refusal(wanted: Sequence[Part], missing: Part, fleet: Fleet, cluster: str) -> str:
    if not missing.labels:
        if sum(part.gpus * part.number for part in wanted) > fleet.gpus:
            remedy = "set learners.num_gpus and pool.num_gpus to 0 to run on CPUs"
        else:
            remedy = (
                "lower pool.num, pool.num_cpus, learners.num_workers or learners.num_cpus "
                f"(Ray Data itself needs {RAY_DATA_CPUS})"
            )
        return (
            f"generators and learners must fit {cluster} ({_size(fleet.cpus, fleet.gpus)}), got a request of "
            f"{_size(*_sums(wanted))}; {remedy}"
        )
    labelled = [kind for kind in fleet.kinds if kind.has_labels(missing.labels)]
    limits = ", ".join(f"{kind.limit} {kind.name} of {_size(kind.cpus, kind.gpus)}" for kind in labelled if kind.limit)
    together = [part for part in wanted if part.labels == missing.labels]
    request = " and ".join(f"{part.number} {part.name} of {_size(part.cpus, part.gpus)}" for part in together)
    return (
        f"{missing.setting} must fit the nodes of {cluster} with {_text(missing.labels)} "
        f"({f'at most {limits}' if limits else 'there are none'}), got {request}; lower it or the request of each, "
        "allow more or larger nodes where the cluster is described, or set placement to 'anywhere'"
    )


def _sums(wanted: Sequence[Part]) -> tuple[float, float]:
    return sum(part.number * part.cpus for part in wanted), sum(part.number * part.gpus for part in wanted)


def _size(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs"


def _text(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def _listed(nodes: Mapping[str, int]) -> str:
    return ", ".join(f"{number} x {kind}" for kind, number in sorted(nodes.items()))
