"""Where in a cluster the parts of a run may be, which nodes that takes, and whether there are or can be so many.

Knows nothing of Ray: `genray.cluster` says which nodes there are, `genray.nodetypes` which there can be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from genray.config import Config
from genray.settings import ConfigError

SUBCLUSTER = "ray-subcluster"
"""Ray's own key. Ray Data plans with the nodes of one of its values alone, Ray Train with those that do not have it."""
ROLE = "genray-role"
GENERATOR_NODE = {SUBCLUSTER: "generator"}
LEARNER_NODE = {ROLE: "learner"}
HEAD_NODE = {ROLE: "head"}
"""Tells a cluster with such labels from one without, also while it has no other node than its head."""
DATA_CPUS = 1
"""For Ray Data's own read and repartition tasks."""
UNLIMITED = 10**6
WAITS = "it starts when nodes have been added"


@dataclass(frozen=True)
class Part:
    """Processes of a run that ask for the same: `number` of them, each with so many CPUs and GPUs."""

    name: str
    setting: str
    """Path of the field that decides how many there are."""
    number: int
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)
    """What their nodes must carry; nothing where any node will do."""


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind: what each of them has, how many there are and how many there can be."""

    kind: str
    cpus: float
    gpus: float
    labels: Mapping[str, str]
    there: int
    most: int
    head: bool = False

    def carry(self, labels: Mapping[str, str]) -> bool:
        """Whether these nodes have all of the labels."""
        return labels.items() <= self.labels.items()

    def are_for(self, part: Part) -> bool:
        """Whether a part may be here. What asks for no label does not get what Ray sets apart by its own key."""
        return self.carry(part.labels) and (bool(part.labels) or SUBCLUSTER not in self.labels)


@dataclass(frozen=True)
class Fleet:
    """The nodes of a cluster by their kinds."""

    kinds: Sequence[Nodes]
    workers: int = UNLIMITED
    """Nodes that there can be beside the head, of all kinds together."""
    known: bool = True
    """Whether it is known how many there can be."""

    def now(self) -> Fleet:
        """The same as if it could not grow."""
        return replace(self, kinds=[replace(kind, most=kind.there) for kind in self.kinds], workers=UNLIMITED)

    def endless(self) -> Fleet:
        """The same as if there could be any number of each kind, but for the head."""
        kinds = [kind if kind.head else replace(kind, most=UNLIMITED) for kind in self.kinds]
        return replace(self, kinds=kinds, workers=UNLIMITED)

    def holding(self, there: Fleet) -> Fleet:
        """The same limits for a cluster that has these nodes already."""
        have = {kind.kind: kind for kind in there.kinds}
        kinds = [
            replace(kind, there=have[kind.kind].there, most=max(kind.most, have[kind.kind].there))
            if kind.kind in have
            else kind
            for kind in self.kinds
        ]
        known = {kind.kind for kind in self.kinds}
        return replace(self, kinds=[*kinds, *(kind for kind in there.kinds if kind.kind not in known)])

    @property
    def labelled(self) -> bool:
        """Whether its nodes say what they are for; where there are any yet, those alone count."""
        seen = [kind for kind in self.kinds if kind.there] or self.kinds
        return any(ROLE in kind.labels or kind.carry(GENERATOR_NODE) for kind in seen)

    @property
    def cpus(self) -> float:
        """CPUs of all nodes that there can be."""
        return sum(kind.most * kind.cpus for kind in self.kinds)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes that there can be."""
        return sum(kind.most * kind.gpus for kind in self.kinds)


@dataclass(frozen=True)
class Packed:
    """How many nodes of each kind the parts of a run take, and the first part that found no room, if any."""

    nodes: Mapping[str, int]
    lacking: Part | None = None


def by_labels(config: Config, fleet: Fleet) -> bool:
    """Whether the run is placed by labels in a cluster of such nodes."""
    return fleet.labelled if config.placement == "auto" else config.placement == "labels"


def parts(config: Config, labels: bool, most: bool = False) -> list[Part]:
    """What a run asks for: the least that it needs, or the most that it may use.

    Args:
        config: the run.
        labels: whether it is placed by labels.
        most: with the largest numbers of generators and learners instead of the smallest.
    """
    learners, generators = config.learners, config.generators
    number, where = learners.bounds[most], LEARNER_NODE if labels else {}
    asked = [Part("learners", "learners.num_workers", number, learners.num_cpus, learners.num_gpus, where)]
    if generators.mode == "pool":
        number, where = generators.bounds[most], GENERATOR_NODE if labels else {}
        asked += [
            Part("generators", "generators.num", number, generators.num_cpus, generators.num_gpus, where),
            Part("tasks of Ray Data", "generators.num", 1, DATA_CPUS, 0, where),
        ]
    if (probe := config.probe).beside:
        where = LEARNER_NODE if labels else {}
        asked.append(Part("probes", "probe.num_cpus", 1, probe.num_cpus, probe.num_gpus, where))
    return asked


def pack(asked: Sequence[Part], fleet: Fleet) -> Packed:
    """Put what a run asks for into as few nodes as possible.

    The largest first, each into the first node with room, else into another node of the kind that would hold the most
    of them. That is exact where the nodes of a part are of one kind and not shared with another part, as by labels.
    """
    opened: list[_Node] = []
    for part in sorted(asked, key=lambda part: (-part.gpus, -part.cpus)):
        for _ in range(part.number):
            node = next((node for node in opened if node.has_room(part)), None)
            if node is None:
                node = _another(part, fleet, opened)
                if node is None:
                    return Packed(_counted(opened), part)
                opened.append(node)
            node.take(part)
    return Packed(_counted(opened))


def at_once(configs: Sequence[Config], fleet: Fleet, most: int) -> int:
    """How many runs like the largest of these have room at the same time, up to `most`."""

    def have_room(number: int) -> bool:
        return all(pack(parts(config, by_labels(config, fleet)) * number, fleet).lacking is None for config in configs)

    return next((number for number in range(most, 0, -1) if have_room(number)), 0)


def _another(part: Part, fleet: Fleet, opened: Sequence[_Node]) -> _Node | None:
    counts = _counted(opened)
    full = sum(not node.kind.head for node in opened) >= fleet.workers
    fresh = [
        node
        for node in map(_Node, fleet.kinds)
        if node.holds(part) and counts[node.kind.kind] < node.kind.most and (node.kind.head or not full)
    ]
    return max(fresh, key=lambda node: node.holds(part), default=None)


def _counted(opened: Sequence[_Node]) -> Counter[str]:
    return Counter(node.kind.kind for node in opened)


class _Node:
    """A node with what is left of it. A share of a GPU is of one GPU, whole ones must be free."""

    MARGIN = 1e-6

    def __init__(self, kind: Nodes):
        self.kind, self.cpus = kind, kind.cpus + self.MARGIN
        self.gpus = [1 + self.MARGIN] * int(kind.gpus)

    def has_room(self, part: Part) -> bool:
        return self.kind.are_for(part) and self.cpus >= part.cpus and self._gpus_for(part) is not None

    def holds(self, part: Part) -> float:
        """How many of a part fit into the node while it is empty."""
        if not self.has_room(part):
            return 0
        by_cpus = self.cpus // part.cpus if part.cpus else UNLIMITED
        each = (1 + self.MARGIN) // part.gpus if 0 < part.gpus < 1 else 1 / part.gpus if part.gpus else UNLIMITED
        return min(by_cpus, len(self.gpus) * each if part.gpus else UNLIMITED)

    def take(self, part: Part) -> None:
        self.cpus -= part.cpus
        for index in self._gpus_for(part) or ():
            self.gpus[index] -= min(1, part.gpus)

    def _gpus_for(self, part: Part) -> list[int] | None:
        """Which GPUs a process would get; None where there are none for it."""
        enough = [index for index, left in enumerate(self.gpus) if left >= min(1, part.gpus)]
        if 0 < part.gpus < 1:  # the fullest one that will do
            return [min(enough, key=lambda index: self.gpus[index])] if enough else None
        return enough[: int(part.gpus)] if len(enough) >= part.gpus else None


def verdict(config: Config, fleet: Fleet, cluster: str = "the cluster") -> str:
    """One line about whether the least that a run needs has room.

    Raises:
        ConfigError: it never will have, as far as it is known how many nodes there can be.
    """
    asked = parts(config, by_labels(config, fleet))
    need, now = f"the run needs {_size(*_sums(asked))}", fleet.now()
    missing = pack(asked, now).lacking
    if missing is None:
        return f"fits: {need}, {cluster} has {_size(now.cpus, now.gpus)}"
    if not fleet.known:
        lack = f" and no room for its {missing.name} on nodes with {_text(missing.labels)}" if missing.labels else ""
        return f"does not fit yet: {need}, {cluster} has {_size(now.cpus, now.gpus)}{lack}; " + WAITS
    missing = pack(asked, fleet).lacking
    if missing is not None:
        raise ConfigError(_refusal(asked, missing, fleet, cluster))
    return (
        f"fits when it has grown: {need}, {cluster} has {_size(now.cpus, now.gpus)} and can have "
        f"{_size(fleet.cpus, fleet.gpus)}"
    )


def node_counts(config: Config, fleet: Fleet) -> str:
    """One line about the fewest nodes of each kind that hold the least and the most that a run asks for."""
    labels, room = by_labels(config, fleet), fleet if fleet.known else fleet.endless()
    least, most = (pack(parts(config, labels, most), room) for most in (False, True))
    if least.lacking is not None:
        where = f"with {_text(least.lacking.labels)}" if least.lacking.labels else "large enough"
        return f"no node {where} for the {least.lacking.name}"
    text = f"at least {_listed(least.nodes)}"
    if most.lacking is None and most.nodes != least.nodes:
        text += f"; {_listed(most.nodes)} for the most that it may use"
    return text


def _refusal(asked: Sequence[Part], missing: Part, fleet: Fleet, cluster: str) -> str:
    if not missing.labels:
        if sum(part.gpus * part.number for part in asked) > fleet.gpus:
            remedy = "set learners.num_gpus and generators.num_gpus to 0 to run on CPUs"
        else:
            remedy = (
                "lower generators.num, generators.num_cpus, learners.num_workers or learners.num_cpus "
                f"(Ray Data itself needs {DATA_CPUS})"
            )
        return (
            f"generators and learners must fit {cluster} ({_size(fleet.cpus, fleet.gpus)}), got a request of "
            f"{_size(*_sums(asked))}; {remedy}"
        )
    such = [kind for kind in fleet.kinds if kind.carry(missing.labels)]
    can_be = ", ".join(f"{kind.most} {kind.kind} of {_size(kind.cpus, kind.gpus)}" for kind in such if kind.most)
    together = [part for part in asked if part.labels == missing.labels]
    wanted = " and ".join(f"{part.number} {part.name} of {_size(part.cpus, part.gpus)}" for part in together)
    return (
        f"{missing.setting} must fit the nodes of {cluster} with {_text(missing.labels)} "
        f"({f'at the most {can_be}' if can_be else 'there are none'}), got {wanted}; lower it or what each asks for, "
        "allow more or larger nodes where the cluster is described, or set placement to 'anywhere'"
    )


def _sums(asked: Sequence[Part]) -> tuple[float, float]:
    return sum(part.number * part.cpus for part in asked), sum(part.number * part.gpus for part in asked)


def _size(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs"


def _text(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def _listed(nodes: Mapping[str, int]) -> str:
    return ", ".join(f"{number} x {kind}" for kind, number in sorted(nodes.items()))
