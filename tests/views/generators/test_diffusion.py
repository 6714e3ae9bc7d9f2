"""Text-to-image pipelines as generators: prompts as classes, seeds as views, and an image that is a function of both.

A tiny pipeline of random weights, and where that is not needed something that only draws noise.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from genray.config.errors import ConfigError, UserError
from genray.config.generator import DiffusersGenerator
from genray.config.load import build
from genray.stream.plan import Plan
from genray.stream.renderer import Renderer
from genray.views.generators import describe, fetch, load, pending_download
from genray.views.generators.diffusion import Diffusion
from genray.views.generators.quantise import Quantised
from genray.views.pin import pinned
from genray.views.sources.generated import GeneratorSource
from genray.views.types import BadImages, Generator

PROMPTS = ("a cat", "two dogs", "an owl")


def settings(model: str = "a/pipeline", **changes: Any) -> DiffusersGenerator:
    values = {"model": model, "prompts": PROMPTS, "steps": 2, "image_size": 16, "dtype": "float32", "micro_batch": 4}
    return DiffusersGenerator(**{**values, **changes})


class Drawn:
    """Stands in for a pipeline: an image is its prompt's length as brightness, with noise of its own generator."""

    def __init__(self, nan: bool = False, flagged: tuple[int, ...] = ()):
        self.nan, self.flagged, self.calls = nan, flagged, list[Any]()

    def __call__(self, prompt: list[str], generator: list[torch.Generator], **options: Any) -> SimpleNamespace:
        self.calls.append(options)
        size = (3, options["height"], options["width"])
        noise = torch.stack([torch.rand(size, generator=one) for one in generator])
        images = 0.5 * noise + torch.tensor([len(text) / 32 for text in prompt])[:, None, None, None]
        if self.nan:
            images[-1, 0, 0, 0] = torch.nan
        flags = [number in self.flagged for number in range(len(prompt))]
        return SimpleNamespace(images=images, nsfw_content_detected=flags if self.flagged else None)


def around(pipeline: Any, config: DiffusersGenerator) -> Quantised:
    return Quantised(Diffusion(pipeline, config), torch.device("cpu"))


def rendered(generator: Generator, labels: list[int], seeds: list[int]) -> torch.Tensor:
    return generator(torch.zeros(len(labels), 0), torch.tensor(labels), torch.tensor(seeds))


def test_prompts_are_classes_and_there_are_no_latents() -> None:
    spec = describe(settings())
    assert (spec.name, spec.image_size, spec.latent_dim, spec.num_classes) == ("a/pipeline", 16, 0, 3)


def test_an_image_is_a_function_of_its_prompt_and_seed() -> None:
    generator = around(Drawn(), settings(guidance_scale=3))
    images = rendered(generator, [0, 1, 0, 2], [7, 7, 2**62, 7])
    assert images.dtype == torch.uint8
    assert images.shape == (4, 3, 16, 16)
    other = rendered(generator, [2, 0], [7, 7])
    assert torch.equal(other[1], images[0])
    assert torch.equal(other[0], images[3])
    assert not torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])
    expected = 0.5 * torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(7)) + len(PROMPTS[0]) / 32
    assert torch.equal(images[0], (255 * expected).round().to(torch.uint8))
    asked = {"num_inference_steps": 2, "guidance_scale": 3, "height": 16, "width": 16, "output_type": "pt"}
    assert generator.made.pipeline.calls == [asked] * 2


def test_what_cannot_be_learned_from_is_told() -> None:
    with pytest.raises(BadImages, match="1 of 2 images have pixels that are not finite, image 1 first"):
        rendered(around(Drawn(nan=True), settings()), [0, 1], [1, 2])
    with pytest.raises(
        UserError, match=r"^generator\.prompts must be ones whose images pass the safety checker, got 'tw"
    ):
        rendered(around(Drawn(flagged=(1,)), settings()), [0, 1], [1, 2])


def run(**sections: Any) -> dict[str, Any]:
    generator = {"kind": "diffusers", "model": "a/pipeline", "prompts": list(PROMPTS), "image_size": 16}
    return {
        "name": "x",
        "view": {"kind": "independent"},
        "stream": {"batch_size": 4},
        **sections,
        "generator": {**generator, "micro_batch": 4, **sections.get("generator", {})},
    }


def test_a_view_is_another_seed_of_the_same_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genray.views.sources.generated.load", lambda config, device: around(Drawn(), config))
    config = build(run(stream={"batch_size": 4, "num_views": 3}))
    shown = Renderer(config, "cpu").block_at(np.arange(10))
    assert shown["views"].shape == (10, 3, 3, 16, 16)
    assert shown["latent"].shape == (10, 3, 0)
    assert set(shown["label"].tolist()) == {0, 1, 2}
    assert len(np.unique(shown["views"].reshape(30, -1), axis=0)) == 30
    some = Renderer(build(run(generator={"micro_batch": 3}, stream={"batch_size": 4, "num_views": 3})), "cpu")
    np.testing.assert_array_equal(some.block_at(np.array([9, 2]))["views"], shown["views"][[9, 2]])
    alone = Renderer(build(run(view={"kind": "none"})), "cpu").block_at(np.arange(10))
    np.testing.assert_array_equal(alone["views"], shown["views"][:, :1])
    again = build(run(stream={"batch_size": 4, "num_anchors": 5, "num_neighbors": 2, "num_views": 2}))
    epochs = Renderer(again, "cpu").block_at(np.arange(60))
    views = epochs["views"][epochs["anchor"] == 3].reshape(24, -1)
    assert len(np.unique(views, axis=0)) == 3  # itself and two neighbours


def test_prompts_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  two dogs \nan owl\n")
    config = pinned(build(run(generator={"prompts": [], "prompts_file": str(file)})))
    assert isinstance(config.generator, DiffusersGenerator)
    assert config.generator.all_prompts() == PROMPTS
    assert len(config.generator.prompts_sha256 or "") == 64
    assert Plan.of(config).num_classes == 3
    file.write_text("a cat\nan owl\n")
    changed = settings(prompts=(), prompts_file=str(file), prompts_sha256=64 * "0")
    with pytest.raises(ConfigError, match=r"^generator\.prompts_file must hold what it held when the run began"):
        describe(changed)
    for content, told in ((b"", "must hold a prompt per line"), (b"\xff\xfe", "must be a text file")):
        bad = tmp_path / f"bad{len(content)}"
        bad.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"^generator\.prompts_file {told}"):
            describe(settings(prompts=(), prompts_file=str(bad)))
    with pytest.raises(ConfigError, match=r"^generator\.prompts_file must be a text file, got '.*none'"):
        describe(settings(prompts=(), prompts_file=str(tmp_path / "none")))


def test_without_the_extra_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for call in (fetch, lambda config: load(config, "cpu")):
        with pytest.raises(
            ConfigError, match=r"^generator\.kind must be one whose packages are installed, .*genray\[diff"
        ):
            call(settings("no/model"))
    assert "downloads it from the hub first" in (pending_download(settings("no/model")) or "")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny pipeline with weights of noise, which magnifies by two."""
    import diffusers
    import transformers

    directory = tmp_path_factory.mktemp("pipeline")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (directory / "words").mkdir()
    (directory / "words" / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (directory / "words" / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=16,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(directory / "words", model_max_length=16),
        unet=unet,
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),  # draws noise in each step
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory / "model")
    return directory / "model"


def test_a_pipeline_renders_the_same_in_any_portions(pipeline: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def shown(micro_batch: int, position: np.ndarray) -> np.ndarray:
        generator = {"model": str(pipeline), "steps": 2, "dtype": "float32", "micro_batch": micro_batch}
        return Renderer(build(run(generator=generator)), "cpu").block_at(position)["views"]

    fetch(settings(str(pipeline)))
    assert pending_download(settings(str(pipeline))) is None
    whole = shown(4, np.arange(6))
    assert whole.shape == (6, 2, 3, 16, 16)
    assert whole.std() > 5
    assert len(np.unique(whole.reshape(12, -1), axis=0)) == 12
    for micro_batch in (1, 5):
        difference = np.abs(shown(micro_batch, np.array([5, 0, 3])).astype(int) - whole[[5, 0, 3]])
        assert difference.max() <= 1
    np.testing.assert_array_equal(shown(4, np.arange(6)), whole)
    assert "%|" not in capfd.readouterr().err  # no progress bars


def test_the_prompt_decides(pipeline: Path) -> None:
    generator = load(settings(str(pipeline), guidance_scale=5), "cpu")
    one, other = (rendered(generator, [label] * 2, [1, 2]).int() for label in (0, 1))
    assert (one - other).abs().max() > 1
    assert (one[0] - one[1]).abs().max() > 1


def test_a_size_that_the_decoder_cannot_make_is_refused(pipeline: Path) -> None:
    with pytest.raises(ConfigError, match=r"^generator\.image_size must be a multiple of 2, by which .*, got 15$"):
        load(settings(str(pipeline), image_size=15), "cpu")


def test_a_directory_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^generator\.model must be a directory with model_index\.json, or a pipeline"
    ):
        load(settings(str(tmp_path)), "cpu")


def test_the_safety_checker_goes_by_choice_alone(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers
    import transformers

    made = diffusers.DiffusionPipeline.from_pretrained(pipeline)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *args, **more: made)
    for kept in (True, False):
        made.safety_checker = transformers.CLIPTextModel.from_pretrained(pipeline / "text_encoder")  # any model will do
        generator = load(settings(str(pipeline), safety_checker=kept), "cpu")
        assert isinstance(generator, Quantised)
        assert (generator.made.pipeline.safety_checker is not None) == kept


def test_the_source_takes_it_as_any_other(pipeline: Path) -> None:
    config = build(run(generator={"model": str(pipeline), "steps": 1, "dtype": "float32"}))
    assert isinstance(Renderer(config, "cpu").source, GeneratorSource)
