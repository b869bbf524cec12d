"""Frozen pipelines against diffusers itself: the same latent gives the same picture, whatever it is generated with."""

import json
import logging
import shutil

import diffusers
import numpy as np
import pytest
import torch

from mmrl_core.errors import PolicyError
from mmrl_find.pipeline import SCHEDULERS, FrozenPipeline

PROMPTS = ["a red cat", "a blue dog", "a red cat"]
CLASSES = {
    "sd": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "video": diffusers.TextToVideoSDPipeline,
}


@pytest.fixture(scope="module")
def folders(sd_folder, sdxl_folder, video_folder):
    return {"sd": sd_folder, "sdxl": sdxl_folder, "video": video_folder}


@pytest.fixture(scope="module")
def direct(folders):
    """The same pipelines, loaded and called without this package."""
    loaded = {kind: CLASSES[kind].from_pretrained(folder) for kind, folder in folders.items()}
    for pipe in loaded.values():
        pipe.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def sd(sd_folder):
    return FrozenPipeline(sd_folder, num_steps=4)


def latents_for(pipeline, count=3):
    return torch.randn(count, *pipeline.latent_shape, generator=torch.Generator().manual_seed(7))


def levels(outputs):
    """Grey levels [n, (frames,) height, width, 3] of outputs, of this package or of diffusers."""
    return np.stack([np.asarray(getattr(output, "output", output), dtype=int) for output in outputs])


def call(pipe, latents, **options):
    """Pictures of diffusers' own call, prompts as text."""
    result = pipe(prompt=PROMPTS, latents=latents, **{"num_inference_steps": 4, "height": 16, "width": 16, **options})
    return result.frames if hasattr(result, "frames") else result.images


# Pictures.


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("kind", ["sd", "sdxl", "video"])
def test_a_latent_gives_the_picture_that_diffusers_gives(folders, direct, kind, guidance):
    """SDXL's tiny scheduler scales latents by 14.6, so that scaling them twice, or not at all, shows."""
    pipeline = FrozenPipeline(folders[kind], num_steps=4, num_frames=3, guidance=guidance)
    latents = latents_for(pipeline)
    options = {"num_frames": 3, "output_type": "pil"} if kind == "video" else {}
    expected = call(direct[kind], latents, guidance_scale=guidance, **options)
    found = pipeline.generate(latents, PROMPTS, [0, 0, 0])
    assert np.array_equal(levels(found), levels(expected))
    assert np.abs(levels(found)[0] - levels(found)[2]).mean() > 5  # the same prompt with another latent
    assert not any(output.flagged for output in found)


def test_the_scale_of_sdxls_noise_is_not_1(folders):
    assert FrozenPipeline(folders["sdxl"], num_steps=4).pipe.scheduler.init_noise_sigma > 10


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_is_made_from_the_pipelines_own_config(sd_folder, direct, name):
    pipeline = FrozenPipeline(sd_folder, num_steps=4, scheduler=name)
    pipe = direct["sd"]
    pipe.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(pipe.scheduler.config)
    latents = latents_for(pipeline)
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    expected = call(pipe, latents, generator=generators)
    assert np.array_equal(levels(pipeline.generate(latents, PROMPTS, range(3))), levels(expected))


def test_another_scheduler_does_not_clip_latents(sdxl_folder):
    """DDIMScheduler clips unless told otherwise, and the config of an Euler scheduler does not tell."""
    assert FrozenPipeline(sdxl_folder, num_steps=4, scheduler="ddim").pipe.scheduler.config.clip_sample is False


@pytest.mark.parametrize("kind", ["sd", "video"])
def test_what_else_is_in_a_batch_changes_no_picture(folders, kind):
    options = {"num_steps": 4, "num_frames": 3, "eta": 1.0}
    together, apart = (FrozenPipeline(folders[kind], batch_size=size, **options) for size in (3, 1))
    latents = latents_for(together)
    expected = levels(together.generate(latents, PROMPTS, [1, 2, 3]))
    assert np.abs(levels(apart.generate(latents, PROMPTS, [1, 2, 3])) - expected).max() <= 1
    alone = together.generate(latents[1:2], PROMPTS[1:2], [2])
    assert np.abs(levels(alone) - expected[1:2]).max() <= 1


def test_fresh_noise_comes_from_the_seeds(sd, sd_folder, direct):
    stochastic = FrozenPipeline(sd_folder, num_steps=4, eta=1.0)
    latents = latents_for(sd)
    found = levels(stochastic.generate(latents, PROMPTS, [3, 4, 5]))
    assert np.array_equal(levels(stochastic.generate(latents, PROMPTS, [3, 4, 5])), found)
    other = levels(stochastic.generate(latents, PROMPTS, [3, 4, 6]))
    assert np.array_equal(other[:2], found[:2]) and np.abs(other[2] - found[2]).mean() > 1
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
    direct["sd"].scheduler = diffusers.DDIMScheduler.from_config(direct["sd"].scheduler.config)
    assert np.array_equal(found, levels(call(direct["sd"], latents, eta=1.0, generator=generators)))
    without = [levels(sd.generate(latents, PROMPTS, seeds)) for seeds in ([3, 4, 5], [6, 6, 6])]
    assert np.array_equal(*without)


def test_the_size_of_pictures_is_chosen(sd_folder):
    pipeline = FrozenPipeline(sd_folder, num_steps=2, height=8, width=24)
    assert pipeline.latent_shape == (4, 4, 12)  # the autoencoder halves each side
    assert pipeline.generate(latents_for(pipeline, 1), PROMPTS[:1], [0])[0].output.size == (24, 8)


def test_lower_precision_keeps_float32_latents_at_the_boundary(sd_folder, sd):
    pipeline = FrozenPipeline(sd_folder, num_steps=4, precision="bfloat16")
    assert pipeline.pipe.unet.dtype == torch.bfloat16 and sd.pipe.unet.dtype == torch.float32
    latents = latents_for(sd)
    gap = levels(pipeline.generate(latents, PROMPTS, [0] * 3)) - levels(sd.generate(latents, PROMPTS, [0] * 3))
    assert 0 < np.abs(gap).mean() < 10


def test_nothing_of_the_pipeline_is_trained(sd):
    modules = [part for part in sd.pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == 3 and not any(module.training for module in modules)
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())


# Prompts.


def test_a_prompts_vector_is_the_text_encoders_pooled_embedding(folders, direct):
    """Of Stable Diffusion the hidden state at the end token: start, 7 letters of 'a red cat', end."""
    sd = FrozenPipeline(folders["sd"], num_steps=4)
    embedding = sd.embed("a red cat")
    pipe = direct["sd"]
    tokens = pipe.tokenizer("a red cat", return_tensors="pt")
    with torch.no_grad():
        expected = pipe.text_encoder(tokens.input_ids).last_hidden_state[0, 8]
    torch.testing.assert_close(embedding.vector, expected, rtol=0, atol=1e-5)
    assert embedding.vector.shape == (sd.embedding_size,) and sd.embed("a red cat") is embedding

    sdxl, pipe = FrozenPipeline(folders["sdxl"], num_steps=4), direct["sdxl"]
    with torch.no_grad():
        expected = pipe.text_encoder_2(pipe.tokenizer_2("a red cat", return_tensors="pt").input_ids).text_embeds[0]
    torch.testing.assert_close(sdxl.embed("a red cat").vector, expected, rtol=0, atol=1e-5)
    assert sdxl.embedding_size == 12


def test_a_prompt_that_is_too_long_is_said_to_be_cut(sd, caplog):
    logging.getLogger("diffusers").addHandler(caplog.handler)  # it does not pass on to the root logger
    sd.embed("a red cat on a blue mat with five dogs")
    sd.embed("a red cat on a blue mat with five dogs")
    logging.getLogger("diffusers").removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records if "truncated" in record.getMessage()]
    assert len(said) == 1 and "ive dogs" in said[0]  # start, end, and 22 of the letters


# Work and outcome.


@pytest.mark.parametrize(("options", "evals"), [({}, 24), ({"guidance": 1.0}, 12), ({"scheduler": "heun"}, 42)])
def test_denoiser_evaluations_are_counted(sd_folder, options, evals):
    """3 pictures, 4 steps, twice with guidance; heun calls the denoiser twice in all steps but the last."""
    pipeline = FrozenPipeline(sd_folder, num_steps=4, batch_size=2, **options)
    seen = []
    pipeline.pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    pipeline.generate(latents_for(pipeline), PROMPTS, [0] * 3)
    assert dict(pipeline.counters) == {"denoiser_evals": evals, "images": 3}
    assert sum(seen) == evals


def test_what_the_safety_checker_refuses_is_black_and_flagged(tmp_path, request):
    from_conftest = request.config.pluginmanager.get_plugin(str(request.path.with_name("conftest.py")))
    strict = from_conftest.tiny_sd(tmp_path / "strict", safety_flags=True)
    lenient = from_conftest.tiny_sd(tmp_path / "lenient", safety_flags=False)
    pipeline = FrozenPipeline(strict, num_steps=2, safety_checker=True)
    latents = latents_for(pipeline)
    refused = pipeline.generate(latents, PROMPTS, [0] * 3)
    assert all(output.flagged for output in refused) and not levels(refused).any()
    for folder, switched_on in ((strict, False), (lenient, True)):
        pipeline = FrozenPipeline(folder, num_steps=2, safety_checker=switched_on)
        passed = pipeline.generate(latents, PROMPTS, [0] * 3)
        assert not any(output.flagged for output in passed) and levels(passed).std() > 5


def test_a_picture_that_is_not_finite_is_black_and_flagged(sd):
    latents = latents_for(sd)
    expected = levels(sd.generate(latents, PROMPTS, [0] * 3))
    latents[1, 0, 0, 0] = torch.nan
    found = sd.generate(latents, PROMPTS, [0] * 3)
    assert [output.flagged for output in found] == [False, True, False]
    assert not levels(found)[1].any()
    assert np.abs(levels(found)[[0, 2]] - expected[[0, 2]]).max() <= 1
    with pytest.raises(PolicyError, match=r"all 2 outputs hold NaN or infinity.*float32.*precision"):
        sd.generate(latents[[1, 1]], PROMPTS[:2], [0, 0])


# Errors.


@pytest.mark.parametrize("shape", [(3, 4, 8, 9), (2, 4, 8, 8), (3, 4, 3, 8, 8)])
def test_latents_of_another_shape_are_refused(sd, shape):
    with pytest.raises(PolicyError) as error:
        sd.generate(torch.zeros(shape), PROMPTS, [0] * 3)
    assert str((3, 4, 8, 8)) in str(error.value) and str(shape) in str(error.value)


def test_seeds_are_as_many_as_prompts(sd):
    with pytest.raises(PolicyError, match="got 1 seeds"):
        sd.generate(latents_for(sd), PROMPTS, [0])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"scheduler": "dimm"}, "scheduler is 'dimm'; it can be ddim, ddpm"),
        ({"scheduler": "euler", "eta": 1.0}, "EulerDiscreteScheduler does not take it"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_steps": 2000}, "num_steps=2000 does not fit DDIMScheduler"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"height": 12}, "height 12 and width 16 have to be multiples of 8"),
        ({"precision": "half"}, "precision is 'half'; it can be auto, float32"),
        ({"safety_checker": True}, "safety_checker is set, but the pipeline .* has none"),
    ],
)
def test_options_that_do_not_fit_are_refused(sd_folder, options, problem):
    with pytest.raises(PolicyError, match=problem):
        FrozenPipeline(sd_folder, **options)


def test_folders_that_are_no_pipeline_are_refused(tmp_path, sd_folder):
    with pytest.raises(PolicyError, match="there is no folder"):
        FrozenPipeline(tmp_path / "nowhere")
    with pytest.raises(PolicyError, match=r"is no folder or hub name of a diffusers pipeline.*model_index.json"):
        FrozenPipeline(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(PolicyError, match=r"is a FluxPipeline.*supported: StableDiffusionPipeline, StableDiffusionXL"):
        FrozenPipeline(tmp_path)
    damaged = tmp_path / "damaged"
    shutil.copytree(sd_folder, damaged)
    weights = damaged / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(PolicyError, match="damaged' cannot be loaded"):
        FrozenPipeline(damaged)
