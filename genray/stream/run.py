"""A run as one value, created once and passed down: its configuration, plan and directory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from genray.config.run import Config
from genray.runs.directory import RunDirectory
from genray.stream.plan import Plan


@dataclass(frozen=True)
class Run:
    """A run with its final configuration.

    >>> run = Run.of(config)
    >>> run.plan.tickets, run.directory.metrics.name
    (100, 'metrics.jsonl')

    Unpickled on another machine, it has that machine's working directory: a run in a bucket has one on each machine.
    """

    config: Config
    plan: Plan
    directory: RunDirectory

    @classmethod
    def of(cls, config: Config) -> Run:
        """The run of a configuration, planned for the largest number of learners; raises ConfigError."""
        return cls(config, Plan.of(config), RunDirectory.of(config))

    def with_learners(self, num_workers: int) -> Run:
        """The same run with this number of learners."""
        if num_workers == self.plan.num_workers:
            return self
        return replace(self, plan=Plan.of(self.config, num_workers))

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.config, self.plan)


def _received(config: Config, plan: Plan) -> Run:
    return Run(config, plan, RunDirectory.of(config))
