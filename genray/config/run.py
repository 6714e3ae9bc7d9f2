"""The configuration of a run as one frozen value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from genray.config.generator import AnyGenerator, BigGANGenerator
from genray.config.objective import Contrastive, Objective
from genray.config.probe import Probe
from genray.config.schema import settings
from genray.config.sections import SGD, Augment, Learners, Model, Optimizer, Pool, Stream, Tracking, Training
from genray.config.source import AnySource, Generated
from genray.config.view import Gaussian, LatentView


@settings
class Config:
    """Everything that determines a run."""

    name: str
    """Name of the run and of its directory. The same name resumes the run."""
    storage_path: str = "runs"
    """Directory that holds the runs, on a cluster one that all nodes share; or an address in an object store, such as
    `s3://BUCKET/runs`.
    """
    placement: Literal["auto", "labels", "anywhere"] = "auto"
    """Which nodes of a cluster are used. `labels`: nodes with ray-subcluster=generator for generators, nodes with
    genray-role=learner for learners. `anywhere`: all nodes without a ray-subcluster label, which Ray reserves. `auto`:
    `labels` if the cluster's nodes have these labels, otherwise `anywhere`. May change when a run is resumed.
    """
    render_on: Literal["pool", "learners"] = "pool"
    """Where views are rendered. `pool`: in separate generator processes, which feed the learners. `learners`: in the
    learners, each on its own device. May change when a run is resumed.
    """
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of every random number of the run: anchors, views, augmentation and initial weights."""
    source: AnySource = Generated()
    generator: AnyGenerator = BigGANGenerator()
    view: LatentView = Gaussian()
    stream: Stream = Stream()
    augment: Augment = Augment()
    objective: Objective = Contrastive()
    model: Model = Model()
    optimizer: Optimizer = SGD()
    training: Training = Training()
    probe: Probe = Probe()
    pool: Pool = Pool()
    learners: Learners = Learners()
    tracking: Tracking = Tracking()

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values, with all defaults."""
        return CONFIG_ADAPTER.dump_python(self, mode="json")


MAY_CHANGE_ON_RESUME = (
    "storage_path",
    "placement",
    "render_on",
    "pool",
    "learners",
    "tracking",
    "training.log_every",
    "stream.ticket_batches",
    "generator.cuda_graphs",
    "probe.num_cpus",
    "probe.num_gpus",
    "probe.timeout_s",
)
"""Paths of the fields and sections that may differ when a run is resumed."""

CONFIG_ADAPTER = TypeAdapter(Config)
