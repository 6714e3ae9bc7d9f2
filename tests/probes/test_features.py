"""Features of images in memory."""

import pytest
import torch

from genray.config.sections import Augment
from genray.probes import scenes
from genray.probes.features import features
from genray.views.augment import MEAN, NUM_UNIFORMS, STD, augment, draw, policy


def test_features_do_not_depend_on_the_batch_and_leave_the_encoder_as_it_was(encoder):
    images = scenes.scenes("val", 30)[0]
    encoder[1].eval()  # a part that is frozen while the rest trains
    encoder[3].train()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    one = features(encoder, images, batch_size=7)
    assert torch.allclose(one, features(encoder, images, batch_size=30), atol=1e-6)
    assert one.dtype == torch.float32
    assert not one.requires_grad
    assert encoder.training
    assert encoder[3].training
    assert not encoder[1].training
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


def test_an_encoder_that_fails_is_left_as_it_was(encoder):
    with pytest.raises(RuntimeError):
        features(encoder, torch.zeros(4, 5, 8, 8, dtype=torch.uint8))
    assert all(part.training for part in encoder.modules())


def test_images_are_normalised_and_resized_like_the_policy_none():
    images = scenes.scenes("val", 6)[0]
    pixels = features(lambda batch: batch.flatten(1), images).reshape(6, 3, 32, 32)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    assert torch.allclose(pixels, (images.float() / 255 - mean) / std, atol=1e-5)
    for size in (24, 32, 48):
        none = policy(Augment(policy="none", size=size), 32)
        expected = augment(images, none, draw(none, torch.rand(6, NUM_UNIFORMS).double().numpy()))
        resized = features(lambda batch: batch.flatten(1), images, size=size).reshape(6, 3, size, size)
        assert torch.allclose(resized, expected, atol=1e-4)
