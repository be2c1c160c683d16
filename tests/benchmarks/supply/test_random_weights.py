from __future__ import annotations

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from benchmarks.models.model import Model
from benchmarks.supply import random_weights
from benchmarks.supply.paper_configs import PAPER_MODELS
from benchmarks.supply.random_weights import CLASSES, pipeline, without_values
from dipgo import Diffusion, Inputs, Sampler, initial_noise, rollout
from dipgo.errors import DipgoError
from tests.helpers.small import SMALL

MILLIONS = {  # parameters of the published parts; T5's embedding, which its file holds twice, counts once
    "sd15": {"unet": 859.5, "text_encoder": 123.1, "vae": 83.7},
    "sd21": {"unet": 865.9, "text_encoder": 340.4, "vae": 83.7},
    "sdxl-lcm": {"unet": 2567.5, "text_encoder": 123.1, "text_encoder_2": 694.7, "vae": 83.7},
    "pixart-alpha": {"transformer": 611.3, "text_encoder": 4762.3, "vae": 83.7},
}
SAMPLERS = {"sd21": "dpm", "sdxl-lcm": "lcm", "dit-xl-2": "ddim", "pixart-alpha": "dpm"}
GUIDANCE, CALLS = 7.5, 4


def weights(pipeline) -> list[torch.Tensor]:
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return [values for part in parts for values in (*part.parameters(), *part.buffers())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_guided_steps_and_pictures_are_finite_and_depend_on_the_caption(name, dtype):
    model = Model(name, pipeline(name, dtype, **SMALL[name]))
    captions = CLASSES[:2] if name == "dit-xl-2" else ["a red cat on a mat", "très bien!"]
    sampler = Sampler(SAMPLERS.get(name, "plms"), model.scheduler_config, CALLS)
    noise, scale = initial_noise([0, 0], model.latent_shape), model.branch_guidance(GUIDANCE)
    with torch.no_grad():
        latents = rollout(
            Diffusion(model.denoiser, sampler, scale), Inputs(noise, model.condition(captions, GUIDANCE), [0, 0])
        )
        images = model.decode(latents)
    assert latents.isfinite().all() and images.isfinite().all()
    assert images.std() > 0.1 and (images[0] - images[1]).abs().max() > 1e-3
    assert model.denoiser.dtype == dtype and images.dtype == torch.float32


def test_equal_seeds_give_equal_weights_and_leave_torchs_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (weights(pipeline("sd15", seed=seed, **SMALL["sd15"])) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    matrices = [values for values in first if values.ndim > 1 and values.is_floating_point()]
    assert not any(values.requires_grad for values in first) and all(values.std() > 0 for values in matrices)
    assert len({values.flatten()[:4].sum().item() for values in matrices}) == len(matrices)  # no two alike


@pytest.mark.parametrize("name", MILLIONS)
def test_the_parts_have_their_published_sizes(name):
    parts = without_values(name).components
    found = {key: sum(p.numel() for p in parts[key].parameters()) / 1e6 for key in MILLIONS[name]}
    assert found == pytest.approx(MILLIONS[name], abs=0.1)


def test_without_values_nothing_is_drawn_but_buffers_are_there():
    made, shapes = (
        pipeline("pixart-alpha", **SMALL["pixart-alpha"]),
        without_values("pixart-alpha", **SMALL["pixart-alpha"]),
    )
    assert [values.shape for values in weights(made)] == [values.shape for values in weights(shapes)]
    assert all(values.is_meta for part in (shapes.transformer, shapes.text_encoder) for values in part.parameters())
    position = shapes.transformer.pos_embed.pos_embed
    assert not position.is_meta and torch.equal(position, made.transformer.pos_embed.pos_embed)


def test_half_precision_is_as_the_published_files_load():
    half = pipeline("pixart-alpha", torch.float16, **SMALL["pixart-alpha"])
    layer = half.text_encoder.encoder.block[0].layer[1].DenseReluDense
    assert half.transformer.dtype == torch.float16 and half.vae.dtype == torch.float32
    assert layer.wi_0.weight.dtype == torch.float16 and layer.wo.weight.dtype == torch.float32  # T5 overflows otherwise
    assert half.text_encoder.shared.weight is half.text_encoder.encoder.embed_tokens.weight


def test_clips_tokenizer_gives_open_clips_tokens():
    tokenizer, caption = pipeline("sd15", **SMALL["sd15"]).tokenizer, "A photo of an armchair, 3 dogs & a naïve émigré"
    ours, theirs = tokenizer([caption], padding="max_length").input_ids[0], SimpleTokenizer()([caption])[0].tolist()
    length = theirs.index(49407) + 1
    assert ours[:length] == theirs[:length] and len(ours) == 77 and set(ours[length:]) == {49407}


def test_the_stand_in_for_t5s_tokenizer_tells_captions_apart():
    tokenizer = pipeline("pixart-alpha", **SMALL["pixart-alpha"]).tokenizer
    first, second = tokenizer(["a cat", "a bat"], padding="max_length", max_length=120).input_ids
    assert first != second and len(first) == len(second) == 120 and max(first) < 32128


def test_schedules_are_the_published_ones():
    configs = {name: without_values(name, **SMALL[name]).scheduler.config for name in MILLIONS}
    assert configs["sd21"].prediction_type == "v_prediction" and configs["sd15"].prediction_type == "epsilon"
    assert configs["pixart-alpha"].beta_schedule == "linear" and configs["sdxl-lcm"].beta_schedule == "scaled_linear"
    assert Sampler("lcm", configs["sdxl-lcm"], 4).timesteps.tolist() == [999, 759, 499, 259]


def test_unknown_names_are_refused():
    with pytest.raises(DipgoError, match="unknown model of the paper 'sd51'; did you mean"):
        pipeline("sd51")
    with pytest.raises(DipgoError, match="unknown part of dit-xl-2 'unet'"):
        pipeline("dit-xl-2", unet={"sample_size": 8})


def test_every_model_of_the_paper_is_tried_here():
    assert {*SMALL, "bk-sdm-tiny"} == set(PAPER_MODELS)
    assert len(random_weights.CLASSES) == PAPER_MODELS["dit-xl-2"].parts["transformer"][1]["num_embeds_ada_norm"]
