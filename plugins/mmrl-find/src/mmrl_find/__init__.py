"""FIND (arXiv:2407.19453): trains the initial noise of a frozen diffusion model, prompt by prompt."""

from mmrl_core import Registry, hookimpl


@hookimpl
def mmrl_register(registry: Registry) -> None:
    """Policies, the loss, replay, rewards and metrics of images and videos, prompt lists, and the demo's model."""
    package = "mmrl_find"
    add = registry.add
    add(
        "policy",
        "noise",
        f"{package}.policy:NoisePolicy",
        "Gaussian of a diffusion pipeline's initial latent: FIND",
        model_keys=("precision",),
    )
    add(
        "policy",
        "ddpo",
        f"{package}.ddpo:DDPOPolicy",
        "the denoiser itself, step by step: DDPO, to compare with",
        model_keys=("lora", "precision", "gradient_checkpointing"),
    )
    needs = ("prior_kl", "prior_quadratic", "value", "baseline")
    add(
        "loss",
        "find",
        f"{package}.losses:find",
        "clipped policy gradient, learned baseline, KL to N(0, I)",
        needs=needs,
    )
    add("behaviour", "replay", f"{package}.replay:Replay", "adds earlier rollouts of its prompt to each group")

    def add_reward(
        name: str, description: str, maximum: float | None = 1.0, *, module: str = "rewards", reads: str = "image"
    ) -> None:
        add("reward", name, f"{package}.{module}:{name}", description, maximum=maximum, reads=reads)

    add_reward("clip_score", "100 times the cosine of CLIP's picture and text embeddings", 100.0)
    add_reward("blip_itm", "BLIP's probability that picture and text match")
    add_reward("aesthetic", "LAION's aesthetic predictor on CLIP embeddings", None)
    add_reward("image_reward", "ImageReward, the published reward", None)
    add_reward("colour", "how much of the picture has a colour")
    add_reward("brightness", "mean luma")
    add_reward("compressibility", "minus the kilobytes as a JPEG", 0.0)
    add_reward("incompressibility", "kilobytes as a JPEG", None)
    add_reward("video_consistency", "how alike neighbouring frames are", reads="video")
    add_reward("digit", "probability of the digit that the prompt names", module="demo_classifier")

    add("metric", "diversity", f"{package}.metrics:diversity", "how much pictures of one prompt differ")
    add("metric", "reward_stats", f"{package}.metrics:reward_stats", "mean, median and best of a reward, by prompt")
    add("source", "prompts", f"{package}.data:prompts", "prompts from the config or a file, or a built-in list")
    add(
        "model",
        "digits_pipeline",
        f"{package}.demo_model:build_digits_pipeline",
        "small Stable Diffusion of handwritten digits",
    )
