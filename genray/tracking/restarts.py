"""Each restart of a run as an MLflow child run: when, from what code, over which steps, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genray.tracking import described

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Restart:
    """One start of a resumed run, while it lasts."""

    run_id: str
    """Of its MLflow run."""

    @classmethod
    def begin(cls, client: MlflowClient, run: Run, params: Mapping[str, str], tags: Mapping[str, str]) -> Restart:
        """Create a child run of `run` with the present settings, and end earlier starts that a kill left open.

        Metrics are still recorded in `run` itself, so that its curves stay in one piece.
        """
        starts_of_run = f"tags.`mlflow.parentRunId` = '{run.info.run_id}' AND tags.kind = '{described.START}'"
        earlier = list(client.search_runs([run.info.experiment_id], starts_of_run))
        for start in earlier:
            if start.info.status == "RUNNING":
                client.set_terminated(start.info.run_id, "KILLED")
        name = f"{run.info.run_name}, start {len(earlier) + 2}"
        first = max((metric.step for metric in run.data.to_proto().metrics), default=0)
        child = client.create_run(run.info.experiment_id, run_name=name, tags={"mlflow.parentRunId": run.info.run_id})
        described.log_params_and_tags(
            client, child.info.run_id, params, {**tags, "kind": described.START, "first_step": str(first)}
        )
        return cls(child.info.run_id)

    def end(self, client: MlflowClient, step: int, status: str) -> None:
        """End it, with the last step of the run that it made."""
        client.set_tag(self.run_id, "last_step", str(step))
        client.set_terminated(self.run_id, status)
