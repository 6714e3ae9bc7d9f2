"""The starts of a run after its first, as MLflow runs below it: when, by what code, over which steps, how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genray import about

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Start:
    """One of them, while it lasts."""

    run_id: str

    @classmethod
    def begin(cls, client: MlflowClient, run: Run, params: Mapping[str, str], tags: Mapping[str, str]) -> Start:
        """A new run below `run`, with the settings as they are now. A start before it that a kill left open is ended.

        The curves go on in `run` itself, so that they stay in one piece.
        """
        ours = f"tags.`mlflow.parentRunId` = '{run.info.run_id}' AND tags.kind = '{about.START}'"
        before = list(client.search_runs([run.info.experiment_id], ours))
        for start in before:
            if start.info.status == "RUNNING":
                client.set_terminated(start.info.run_id, "KILLED")
        name = f"{run.info.run_name}, start {len(before) + 2}"
        first = max((metric.step for metric in run.data.to_proto().metrics), default=0)
        child = client.create_run(run.info.experiment_id, run_name=name, tags={"mlflow.parentRunId": run.info.run_id})
        about.describe(client, child.info.run_id, params, {**tags, "kind": about.START, "first_step": str(first)})
        return cls(child.info.run_id)

    def end(self, client: MlflowClient, step: int, status: str) -> None:
        """End it after so many steps of the whole run."""
        client.set_tag(self.run_id, "last_step", str(step))
        client.set_terminated(self.run_id, status)
