"""Objectives: what an encoder learns from the views. Each module owns its heads and its loss."""

from __future__ import annotations

import torch

from genray.config.objective import BYOL, Classifier, Contrastive, Inverter, SimSiam
from genray.config.run import Config
from genray.learner.encoder import Encoder, build_backbone, seeded_weights
from genray.learner.objectives.contrastive import ContrastiveEncoder
from genray.learner.objectives.noncontrastive import BYOLEncoder, SimSiamEncoder
from genray.learner.objectives.regression import RegressionEncoder
from genray.stream.plan import Plan


def build(config: Config, plan: Plan) -> Encoder:
    """A run's untrained network on the CPU: a function of the configuration and the seed alone.

    So all learners start from the same network, and the untrained baseline is that network too. All objectives start
    from the same backbone. The caller's random state is neither used nor changed.

    Raises:
        ConfigError: timm has no such model, or the model does not take the `model_args`.
    """
    encoder: Encoder
    views = config.stream.num_views
    with seeded_weights(config.seed):
        backbone = build_backbone(config.model)
        match config.objective:
            case Contrastive() as objective:
                encoder = ContrastiveEncoder(backbone, views, objective, config.model.projection)
            case Inverter():
                encoder = RegressionEncoder(backbone, views, plan.latent_dim, plan.num_classes)
            case Classifier():
                encoder = RegressionEncoder(backbone, views, 0, plan.num_classes)
            case SimSiam() as objective:
                encoder = SimSiamEncoder(backbone, views, objective)
            case BYOL() as objective:
                encoder = BYOLEncoder(backbone, views, objective)
    return encoder.to(memory_format=torch.channels_last) if config.model.channels_last else encoder
