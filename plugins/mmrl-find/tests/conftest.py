"""Tiny pipelines: real diffusers and transformers classes shrunk by config, with random weights, in diffusers' format.

Pictures are 16 x 16 pixels, latents 4 x 8 x 8; prompts are cut after 24 tokens of a letter each.
"""

import string

import pytest
import torch

CONTEXT = 24  # tokens; published: 77
ALPHA = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def tiny_tokenizer():
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=CONTEXT)


def tiny_text_encoder(tokenizer, hidden_size=16, projection=False):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        projection_dim=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=4.0,  # else all prompts of a random encoder look alike
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def tiny_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    )


def tiny_unet(**options):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **{"cross_attention_dim": 16, "attention_head_dim": 4, **options},
    )


def tiny_safety_checker(*, flags):
    """A checker that flags every picture, or none: a cosine is above -1 - threshold, or never above 2."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config={**vision, "image_size": 16, "patch_size": 8}, text_config={}, projection_dim=12)
    )
    for weights in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        weights.data.fill_(-2.0 if flags else 2.0)
    return checker


def tiny_sd(folder, *, seed=0, safety_flags=None):
    """Stable Diffusion 1 in `folder`; with a safety checker if `safety_flags` says what it does."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPImageProcessor

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=tiny_unet(),
        scheduler=DDIMScheduler(**ALPHA, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None if safety_flags is None else tiny_safety_checker(flags=safety_flags),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
        requires_safety_checker=safety_flags is not None,
    ).save_pretrained(folder)
    return folder


def tiny_sdxl(folder, *, seed=0):
    """Stable Diffusion XL in `folder`, with both text encoders; its scheduler scales latents by 15."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(tokenizer),
        text_encoder_2=tiny_text_encoder(tokenizer, 20, projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=tiny_unet(
            cross_attention_dim=36,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 12,
        ),
        scheduler=EulerDiscreteScheduler(**ALPHA),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def tiny_video(folder, *, seed=0):
    """ModelScope's text-to-video pipeline in `folder`."""
    from diffusers import DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    TextToVideoSDPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=UNet3DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
            up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
        ),
        scheduler=DDIMScheduler(**ALPHA, clip_sample=False, set_alpha_to_one=False),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    return tiny_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory):
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory):
    return tiny_video(tmp_path_factory.mktemp("video"))
