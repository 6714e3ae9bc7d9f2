"""A run as one frozen value: every field that may be set, what it means, and the rules that values must keep.

Reading a configuration needs neither torch nor ray nor mlflow.
"""

from __future__ import annotations

import math
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from genray.generators.settings import MICRO_BATCH as MICRO_BATCH
from genray.generators.settings import AnyGenerator
from genray.generators.settings import BigGANGenerator as BigGANGenerator
from genray.generators.settings import CustomGenerator as CustomGenerator
from genray.latent_views import Gaussian, LatentView
from genray.objectives import Contrastive, Objective
from genray.probes import settings as probes
from genray.probes.settings import Probe
from genray.settings import ConfigError, settings
from genray.sources.settings import AnySource, Generated

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Count = Positive | tuple[Positive, Positive]


def _bounds(count: int | tuple[int, int]) -> tuple[int, int]:
    return count if isinstance(count, tuple) else (count, count)


@settings
class Generators:
    """Where and how many generators run. May change when a run is resumed."""

    mode: Literal["pool", "inline"] = "pool"
    """`pool`: actors that render into a stream. `inline`: each learner renders its own tickets, on its own device."""
    num: Count = 1
    """Generator actors: a number, or [min, max] to let Ray Data follow the learners."""
    num_gpus: Amount = 1
    """GPUs of each generator; fractions share one."""
    num_cpus: Amount = 1
    """CPUs of each generator."""
    look_ahead_mib: Positive = 1024
    """Rendered blocks kept ready for the learners, in MiB."""
    max_attempts: Positive = 3
    """Fresh processes that try a ticket before the run ends with its error; two where the images cannot be used."""
    ticket_timeout_s: Seconds = 120
    """Seconds after which a ticket counts as hung, or ten times the longest so far of that process, if it is more; and
    seconds without a sign of life between two tickets."""
    start_timeout_s: Seconds = 1800
    """Seconds for a generator to load, and again for its first ticket, which may compile."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and most generators of the pool."""
        return _bounds(self.num)


@settings
class Stream:
    """Which anchors are shown, in what portions."""

    batch_size: Annotated[int, Field(gt=1)] = 256
    """Anchors of one optimiser step, over all learners."""
    num_views: Annotated[int, Field(ge=2, le=256)] = 2
    """Views of each anchor; the first is the anchor itself."""
    num_anchors: Annotated[int, Field(gt=1)] | None = None
    """Size of the population; endless where it is not given."""
    num_neighbors: Positive | None = None
    """Neighbours of each anchor; a fresh one for each showing where it is not given."""
    classes: tuple[int, ...] | None = None
    """Classes of the anchors, for example [0, 3, 7]; all of the generator's where it is not given."""
    class_weights: tuple[Amount, ...] | None = None
    """How often each of these classes is shown, in any unit; equally often where it is not given."""
    ticket_batches: Positive | Literal["auto"] = 4
    """Batches rendered as one block; `auto` measures at the first start how many. May change when a run is resumed."""
    reuse: Positive | Literal["auto"] = 1
    """How often each rendered view is used, every time with another augmentation and in other company; `auto` measures
    at the first start how often the learners need it.
    """
    reuse_window: Annotated[int, Field(ge=2)] = 64
    """Batches that learners keep to use them again, where `reuse` is more than 1."""


@settings
class Augment:
    """Pixel augmentation: the numbers of a policy, any of which may be replaced."""

    policy: Literal["genrep", "simclr", "digits", "none"] = "genrep"
    """`genrep` (the paper's), `simclr`, `digits` (no flip, mild), or `none` (resize and normalise)."""
    size: Positive | None = None
    """Pixels of a side after cropping; .875 of the image where it is not given (the whole image for digits, none)."""
    scale: tuple[Share, Share] | None = None
    """Share of the area that a crop keeps, [least, most]."""
    flip: Share | None = None
    """Probability of a horizontal flip."""
    jitter: tuple[Amount, Amount, Amount, Annotated[float, Field(ge=0, le=0.5)]] | None = None
    """Strength of brightness, contrast, saturation and hue."""
    jitter_probability: Share | None = None
    """Probability of the colour jitter."""
    grey: Share | None = None
    """Probability of losing the colour."""
    blur: Share | None = None
    """Probability of a Gaussian blur."""


@settings
class Model:
    """The encoder that is trained, and how it computes."""

    backbone: str = "resnet50"
    """Any timm model name."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `timm.create_model`."""
    projection: tuple[Positive, Positive] = (2048, 128)
    """Width of the projection head's hidden layer and of its output, for `simclr` and `supcon`; other objectives have
    their own.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass."""
    channels_last: bool = True
    """Keep images and weights with the channels innermost, which most devices compute faster."""
    sync_batch_norm: bool = False
    """Batch-norm statistics over all learners."""
    compile: bool = False
    """Compile the encoder with torch.compile."""


@settings
class SGD:
    """Plain momentum SGD, the paper's optimiser."""

    kind: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.03
    """Learning rate at the end of the warm-up."""
    momentum: Share = 0.9
    """Share of the last update that goes into the next."""
    weight_decay: Amount = 1e-4
    """L2 penalty, of all parameters."""


@settings
class LARS:
    """Layer-wise adaptive SGD, for large batches (You, Gitman, Ginsburg, arXiv 1708.03888)."""

    kind: Literal["lars"] = "lars"
    lr: Annotated[float, Field(gt=0)] = 0.3
    """Learning rate at the end of the warm-up."""
    momentum: Share = 0.9
    """Share of the last update that goes into the next."""
    weight_decay: Amount = 1e-6
    """L2 penalty, of weights but not of biases and norms."""
    trust: Annotated[float, Field(gt=0)] = 1e-3
    """Length of an update in units of the length of the layer's weights, at a learning rate of 1."""


@settings
class AdamW:
    """AdamW."""

    kind: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate at the end of the warm-up."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    weight_decay: Amount = 1e-2
    """Decoupled decay, of weights but not of biases and norms."""


Optimizer = Annotated[SGD | LARS | AdamW, Field(discriminator="kind")]


@settings
class Training:
    """How long, and what is kept."""

    steps: Positive = 10_000
    """Optimiser steps; the run consumes steps x batch_size anchors."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises from zero."""
    final_lr: Share = 1e-3
    """Share of the learning rate that the cosine ends at."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    log_every: Positive = 20
    """Steps between two lines of progress, which cost nothing where they are a quarter of a second apart or more."""


@settings
class Learners:
    """Where and how many learners run. May change when a run is resumed."""

    num_workers: Count = 1
    """Data-parallel learners: a number, or [min, max] to go on with fewer after a loss and with more when there are."""
    num_gpus: Amount = 1
    """GPUs of each learner; fractions share one."""
    num_cpus: Amount = 1
    """CPUs of each learner."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts in a row, without a new checkpoint in between, before the run gives up."""
    hang_timeout_s: Seconds = 300
    """Seconds without a sign of life after which a learner counts as hung."""
    resize_every_s: Seconds = 60
    """Seconds between two looks whether there is room for more learners, where their number may change."""
    keep: Positive = 2
    """Checkpoints kept."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and most learners."""
        return _bounds(self.num_workers)


@settings
class Tracking:
    """MLflow. May change when a run is resumed."""

    mlflow: bool = True
    """Record the run in MLflow."""
    uri: str | None = None
    """Tracking server or store; MLFLOW_TRACKING_URI, else a database beside the runs, where it is not given."""
    experiment: str = "genray"
    """MLflow experiment."""
    model: str | None = "genray"
    """Registered model of which the encoder of a finished run becomes a version; none registers nothing."""
    sweep: str | None = None
    """Name of the sweep that the run belongs to: a run below whose MLflow run this one's stands."""
    previews_every: Positive = 1000
    """Steps between two grids of anchors and their views."""
    system_every_s: Seconds | None = 10
    """Seconds between two looks at how busy the nodes and their GPUs are; none does not look."""


@settings
class Config:
    """Everything that decides a run."""

    name: str
    """Name of the run and of its directory; the same name again resumes it."""
    storage_path: str = "runs"
    """Directory that holds the runs, on a cluster one that all nodes see; or the address of a bucket,
    `s3://BUCKET/runs`.
    """
    placement: Literal["auto", "labels", "anywhere"] = "auto"
    """Which nodes of a cluster are used. `labels`: those with ray-subcluster=generator for generators, those with
    genray-role=learner for learners. `anywhere`: all but those with ray-subcluster, which Ray sets apart. `auto`: by
    labels where the cluster's nodes have such. May change when a run is resumed.
    """
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides every random number of the run: the anchors, their views, the augmentation, the first weights."""
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
    generators: Generators = Generators()
    learners: Learners = Learners()
    tracking: Tracking = Tracking()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every default spelt out."""
        return ADAPTER.dump_python(self, mode="json")


MAY_CHANGE = (
    "storage_path",
    "placement",
    "generators",
    "learners",
    "tracking",
    "training.log_every",
    "stream.ticket_batches",
    "generator.cuda_graphs",
    "probe.num_cpus",
    "probe.num_gpus",
    "probe.timeout_s",
)
"""Paths of the fields with which a run may be resumed although they differ."""

ADAPTER = TypeAdapter(Config)


def check(config: Config) -> None:
    """The rules that tie several fields together; raises ConfigError."""
    stream, (low, high) = config.stream, config.learners.bounds
    for name, (least, most) in (("generators.num", config.generators.bounds), ("learners.num_workers", (low, high))):
        if least > most:
            raise ConfigError(f"{name} must be [min, max] with min <= max, got {[least, most]}")
    workers = math.lcm(*range(low, high + 1))
    if not config.name or Path(config.name).name != config.name or config.name in (".", ".."):
        raise ConfigError(f"name must be a single directory name, got {config.name!r}")
    if stream.batch_size % workers:
        raise ConfigError(
            f"stream.batch_size must be a multiple of "
            f"{f'every number of learners from {low} to {high}' if high > low else 'learners.num_workers'} "
            f"({workers}), got {stream.batch_size}; "
            f"the nearest is {round(stream.batch_size / workers) * workers or workers}"
        )
    if stream.batch_size // high < 2:
        raise ConfigError(f"stream.batch_size must be at least 2 anchors per learner, got {stream.batch_size}")
    if config.model.sync_batch_norm and high > 1 and not config.learners.num_gpus:
        raise ConfigError("model.sync_batch_norm must be false for learners without GPUs, got true")
    if config.augment.scale and config.augment.scale[0] > config.augment.scale[1]:
        raise ConfigError(f"augment.scale must be [least, most] in order, got {list(config.augment.scale)}")
    if config.training.warmup_steps > config.training.steps:
        raise ConfigError(
            f"training.warmup_steps must be at most training.steps ({config.training.steps}), "
            f"got {config.training.warmup_steps}"
        )
    if stream.num_anchors is not None and stream.num_anchors < stream.batch_size:
        raise ConfigError(
            f"stream.num_anchors must be at least stream.batch_size ({stream.batch_size}), or one step would show an "
            f"anchor twice, got {stream.num_anchors}"
        )
    if stream.reuse == "auto" and config.generators.mode == "inline":
        raise ConfigError(
            "stream.reuse must be a number where learners render themselves (generators.mode = 'inline'), got 'auto'"
        )
    if stream.reuse != 1 and stream.num_anchors and stream.num_anchors < stream.batch_size * stream.reuse_window:
        raise ConfigError(
            f"stream.num_anchors must be at least stream.batch_size x stream.reuse_window "
            f"({stream.batch_size * stream.reuse_window}) where views are used again, or steps would often show an "
            f"anchor twice, got {stream.num_anchors}; lower stream.reuse_window"
        )
    if stream.num_neighbors is not None and config.source.renders and not config.view.renders:
        raise ConfigError(
            "stream.num_neighbors must not be given where anchors have no neighbours (view.kind = 'none'), got "
            f"{stream.num_neighbors}"
        )
    if stream.num_neighbors is not None and stream.num_neighbors < stream.num_views - 1:
        raise ConfigError(
            f"stream.num_neighbors must be at least stream.num_views - 1 ({stream.num_views - 1}), or an anchor would "
            f"show one of them twice, got {stream.num_neighbors}"
        )
    probes.check(config.probe)
    if config.source.renders:
        config.generator.check(config)
    config.source.check(config)
