"""Models behind rewards: CLIP, BLIP with retrieval heads, linear heads, ImageReward; loaded once, in float32."""

from __future__ import annotations

import functools
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import linear, normalize

from mmrl_core.errors import PolicyError, RewardError
from mmrl_core.support import local_model

Picture = Image.Image
Loaded = TypeVar("Loaded")

BLIP_TOKENS = 35
"""BLIP and ImageReward were trained on texts cut to this many tokens."""
IMAGE_REWARD_MEAN, IMAGE_REWARD_STD = 0.16717362830052426, 1.0333394966054072
"""Of the public ImageReward's raw output over its training data."""


def clip_embeddings(pictures: Sequence[Picture], *, path: str, device: str = "auto", batch_size: int = 16) -> Tensor:
    """CLIP's picture embeddings.

    Args:
        pictures: N pictures in RGB, of any sizes.
        path: a CLIP model.

    Returns:
        float32 [N, E] of unit length, on the CPU.

    Raises:
        RewardError: there is no CLIP model at `path`.
    """
    check_model(path, "clip")
    return loaded(Clip, path, resolve_device(device)).embed_pictures(pictures, batch_size)


class _PictureTextModel:
    """What turns pictures and texts into a model's input, on its device."""

    device: str
    image_processor: Any
    tokenizer: Any
    max_tokens: int

    def __init__(self) -> None:
        self._lock = threading.Lock()  # rewards share models and run side by side, and tokenizers refuse that

    def pixels(self, pictures: Sequence[Picture]) -> Tensor:
        return self.image_processor(images=list(pictures), return_tensors="pt").pixel_values.to(self.device)

    def tokens(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Always `max_tokens` long, so that a text's numbers do not depend on its neighbours."""
        shape = {"padding": "max_length", "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        with self._lock:
            return self.tokenizer(list(texts), **shape, return_token_type_ids=False).to(self.device)


class Clip(_PictureTextModel):
    """The model of `clip_score`, `aesthetic` and whatever compares pictures."""

    def __init__(self, path: str, device: str) -> None:
        from transformers import CLIPImageProcessor, CLIPModel

        super().__init__()
        self.path, self.device = path, device
        self.model = _pretrained(CLIPModel, path, device)
        self.max_tokens = self.model.config.text_config.max_position_embeddings
        self.image_processor = _from_pretrained(CLIPImageProcessor, path)

    @functools.cached_property
    def tokenizer(self) -> Any:  # loaded only where texts are read
        from transformers import CLIPTokenizer

        return _tokenizer(CLIPTokenizer, self.path, self.model.config.text_config.vocab_size)

    def embed_pictures(self, pictures: Sequence[Picture], batch_size: int) -> Tensor:
        """Float32 [N, E] of unit length, on the CPU."""

        def embed(start: int, stop: int) -> Tensor:
            return self.model.get_image_features(pixel_values=self.pixels(pictures[start:stop])).pooler_output

        return normalize(_in_batches(embed, len(pictures), batch_size), dim=-1)

    def embed_texts(self, texts: Sequence[str], batch_size: int) -> Tensor:
        """Float32 [N, E] of unit length, on the CPU; equal texts, as those of a group are, are embedded once."""
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        distinct = list(places)

        def embed(start: int, stop: int) -> Tensor:
            return self.model.get_text_features(**self.tokens(distinct[start:stop])).pooler_output

        embeddings = normalize(_in_batches(embed, len(distinct), batch_size), dim=-1)
        return embeddings[[places[text] for text in texts]]


class BlipRetrieval(_PictureTextModel):
    """The model of `blip_itm`."""

    max_tokens = BLIP_TOKENS

    def __init__(self, path: str, device: str) -> None:
        from transformers import BertTokenizer, BlipForImageTextRetrieval, BlipImageProcessor

        super().__init__()
        self.device = device
        self.model = _pretrained(BlipForImageTextRetrieval, path, device)
        self.image_processor = _from_pretrained(BlipImageProcessor, path)
        self.tokenizer = _tokenizer(BertTokenizer, path, self.model.config.text_config.vocab_size)

    def match(self, pictures: Sequence[Picture], texts: Sequence[str], head: str, batch_size: int) -> Tensor:
        """Float32 [N], on the CPU."""
        model = self.model

        def score(start: int, stop: int) -> Tensor:
            # Called part by part: the whole model's forward would make its mask on the CPU, wherever the model is.
            states = model.vision_model(pixel_values=self.pixels(pictures[start:stop])).last_hidden_state
            tokens = self.tokens(texts[start:stop])
            if head == "itm":
                fused = model.text_encoder(**tokens, encoder_hidden_states=states).last_hidden_state[:, 0]
                return model.itm_head(fused).softmax(dim=-1)[:, 1]
            text = normalize(model.text_proj(model.text_encoder(**tokens).last_hidden_state[:, 0]), dim=-1)
            return (normalize(model.vision_proj(states[:, 0]), dim=-1) * text).sum(dim=-1)

        return _in_batches(score, len(pictures), batch_size)


class LinearHead:
    """Linear layers without activations, from the weights `<prefix>layers.<number>.weight` and `.bias`."""

    def __init__(self, file: str, weights: Mapping[str, Tensor] | None = None, prefix: str = "") -> None:
        weights = _read_weights(Path(file)) if weights is None else weights
        pattern = re.compile(rf"{re.escape(prefix)}layers\.(\d+)\.weight")
        numbers = sorted(int(match[1]) for name in weights if (match := pattern.fullmatch(name)))
        try:
            self.layers = [
                tuple(weights[f"{prefix}layers.{number}.{kind}"].float() for kind in ("weight", "bias"))
                for number in numbers
            ]
            sizes = [weight.shape[1] for weight, _ in self.layers] + [1]
            fits = all(
                weight.shape == (after, before) and bias.shape == (after,)
                for (weight, bias), (before, after) in zip(self.layers, pairwise(sizes), strict=True)
            )
        except (KeyError, IndexError):
            fits = False
        if not numbers or not fits:
            raise RewardError(
                f"{file}: the weights {prefix}layers.<number>.weight and .bias are not linear layers, each on the one "
                "before, that end in one number."
            )
        self.file, self.size = file, sizes[0]

    def __call__(self, states: Tensor) -> Tensor:
        """Float32 [N, size] -> [N], on the CPU."""
        if states.shape[1] != self.size:
            raise RewardError(
                f"{self.file}: the head reads states of size {self.size}, and the model's have size {states.shape[1]}. "
                "Name the model that the head was trained on."
            )
        for weight, bias in self.layers:
            states = linear(states, weight, bias)
        return states[:, 0]


class ImageReward(_PictureTextModel):
    """The model of `image_reward`, which describes the weights."""

    max_tokens = BLIP_TOKENS

    def __init__(self, file: str, tokenizer: str, device: str) -> None:
        from transformers import BertTokenizer, BlipTextModel, BlipVisionModel, CLIPImageProcessor

        super().__init__()
        self.device = device
        weights = _read_weights(Path(file))
        try:
            vision, text = _blip_configs(weights)
        except (KeyError, ValueError, IndexError) as error:
            raise RewardError(f"{file}: not ImageReward's weights; what is missing or odd: {error}.") from error
        self.vision = _from_weights(BlipVisionModel, vision, _vision_weights(weights), file, device)
        prefix = "blip.text_encoder."
        text_weights = {
            name.removeprefix(prefix): weight
            for name, weight in weights.items()
            if name.startswith(prefix) and not name.endswith("position_ids")  # a buffer
        }
        self.text = _from_weights(BlipTextModel, text, text_weights, file, device, add_pooling_layer=False)
        self.head = LinearHead(file, weights, "mlp.")
        self.tokenizer = _tokenizer(BertTokenizer, tokenizer, text.vocab_size)
        side = vision.image_size
        crop = {"height": side, "width": side}
        self.image_processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=crop)

    def __call__(self, pictures: Sequence[Picture], texts: Sequence[str], batch_size: int) -> Tensor:
        """Float32 [N], normalised, on the CPU."""

        def fuse(start: int, stop: int) -> Tensor:
            states = self.vision(pixel_values=self.pixels(pictures[start:stop])).last_hidden_state
            return self.text(**self.tokens(texts[start:stop]), encoder_hidden_states=states).last_hidden_state[:, 0]

        raw = self.head(_in_batches(fuse, len(pictures), batch_size))
        return (raw - IMAGE_REWARD_MEAN) / IMAGE_REWARD_STD


def _blip_configs(weights: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """Configs of the two encoders, from the shapes of ImageReward's weights."""
    from transformers import BlipTextConfig, BlipVisionConfig

    def shape(name: str) -> torch.Size:
        return weights[f"blip.{name}"].shape

    def num_layers(prefix: str) -> int:
        return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix))

    width, _, _, patch_px = shape("visual_encoder.patch_embed.proj.weight")
    num_patches = shape("visual_encoder.pos_embed")[1] - 1  # one more position is of the class token
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=shape("visual_encoder.blocks.0.mlp.fc1.weight")[0],
        num_hidden_layers=num_layers("blip.visual_encoder.blocks."),
        num_attention_heads=max(1, width // 64),
        image_size=math.isqrt(num_patches) * patch_px,
        patch_size=patch_px,
        layer_norm_eps=1e-6,  # timm's; transformers' default is another
    )
    vocab_size, text_width = shape("text_encoder.embeddings.word_embeddings.weight")
    text = BlipTextConfig(
        vocab_size=vocab_size,
        hidden_size=text_width,
        encoder_hidden_size=width,
        intermediate_size=shape("text_encoder.encoder.layer.0.intermediate.dense.weight")[0],
        num_hidden_layers=num_layers("blip.text_encoder.encoder.layer."),
        num_attention_heads=max(1, text_width // 64),
        max_position_embeddings=shape("text_encoder.embeddings.position_embeddings.weight")[0],
        is_decoder=True,  # what transformers calls a text encoder with cross attention
    )
    return vision, text


def _vision_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The picture encoder's weights: timm's names -> those of transformers' BlipVisionModel."""
    renamed = (
        (r"^blocks\.", "encoder.layers."),
        (r"\.norm([12])\.", r".layer_norm\1."),
        (r"\.attn\.qkv\.", ".self_attn.qkv."),
        (r"\.attn\.proj\.", ".self_attn.projection."),
        (r"^norm\.", "post_layernorm."),
        (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
        (r"^cls_token$", "embeddings.class_embedding"),
        (r"^pos_embed$", "embeddings.position_embedding"),
    )
    prefix, result = "blip.visual_encoder.", {}
    for name, weight in weights.items():
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            for pattern, replacement in renamed:
                name = re.sub(pattern, replacement, name)
            result[name] = weight
    return result


# Loading and running

_LOADED: dict[tuple[Any, ...], Any] = {}
_LOADING = threading.Lock()


def loaded(kind: Callable[..., Loaded], *arguments: str) -> Loaded:
    """`kind(*arguments)`, made once."""
    with _LOADING:
        key = (kind, *arguments)
        if key not in _LOADED:
            _LOADED[key] = kind(*arguments)
        return _LOADED[key]


def resolve_device(name: str) -> str:
    """The device to load on: `auto` is the GPU that this process uses, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{torch.cuda.current_device()}" if name == "cuda" else name


@functools.cache
def check_model(path: str, model_type: str) -> None:
    """Whether the right kind of model lies there, without loading it, so that a wrong path shows before any picture."""
    from transformers import AutoConfig

    found = _from_pretrained(AutoConfig, path).model_type
    if found != model_type:
        raise RewardError(f"{path} is a {found!r} model, and this reward needs one of type {model_type!r}.")


def _from_pretrained(kind: Any, path: str, **options: Any) -> Any:
    try:
        where = local_model(path) or path
    except PolicyError as error:
        raise RewardError(f"the reward's model: {str(error).removeprefix('model.path: ')}") from error
    try:
        return kind.from_pretrained(where, **options)
    except Exception as error:  # transformers raises anything on a broken folder
        raise RewardError(f"reward model {path!r}: cannot load its {kind.__name__}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _tokenizer(kind: Any, path: str, vocab_size: int) -> Any:
    """A tokenizer that fits a model of that vocabulary."""
    tokenizer = _from_pretrained(kind, path)
    # Where there is no vocabulary, transformers makes a tokenizer that knows no word, without a warning.
    if not vocab_size / 2 < len(tokenizer) <= vocab_size:
        raise RewardError(
            f"the {kind.__name__} of {path!r} has {len(tokenizer)} tokens, and the model {vocab_size}. "
            "Name, or put there, the tokenizer that the model was trained with."
        )
    return tokenizer


def _pretrained(kind: Any, path: str, device: str) -> Any:
    """A model in float32. Weights that are missing, and would be random, are refused."""
    model, info = _from_pretrained(kind, path, dtype=torch.float32, output_loading_info=True)
    return _frozen(model, info, kind, path, device)


def _from_weights(kind: Any, config: Any, weights: Mapping[str, Tensor], file: str, device: str, **options: Any) -> Any:
    options |= {"config": config, "state_dict": weights, "dtype": torch.float32, "output_loading_info": True}
    try:
        # Unlike a plain constructor, from_pretrained draws no random numbers, on which a resumed run would stumble.
        model, info = kind.from_pretrained(None, **options)
    except (RuntimeError, ValueError) as error:
        raise RewardError(f"{file}: no {kind.__name__} can be made of its weights: {_reason(error)}") from error
    if unknown := sorted(info["unexpected_keys"]):
        raise RewardError(f"{file}: {kind.__name__} has no weights {', '.join(unknown[:3])}; there are {len(unknown)}.")
    return _frozen(model, info, kind, file, device)


def _frozen(model: Any, info: Mapping[str, Any], kind: Any, path: str, device: str) -> Any:
    if lacking := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise RewardError(
            f"{path} is not a whole {kind.__name__}: {len(lacking)} of its weights are missing or of another shape, "
            f"such as {lacking[0]}."
        )
    return model.to(device).eval().requires_grad_(False)


def check_file(file: str) -> Path:
    """The path of a file, or a `RewardError` if there is none."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise RewardError(f"there is no file {file} with the reward's weights.")
    return path


def find_weights(path: str) -> Path:
    """The file of weights that `path` names, or that is the only one in that folder."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return check_file(path)
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".pt", ".pth", ".safetensors")]
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise RewardError(f"{path}: expected one file of weights (.pt, .pth or .safetensors), found {found}.")
    return files[0]


def _read_weights(file: Path) -> Mapping[str, Tensor]:
    path = check_file(str(file))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken or hostile file makes torch raise is not one kind
        raise RewardError(
            f"{file}: cannot be read as plain weights, and objects are never unpickled: {_reason(error)}. "
            "Save a dict of tensors, best as .safetensors."
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise RewardError(f"{file}: expected a dict of tensors, one for each weight.")
    return weights


def _in_batches(function: Callable[[int, int], Tensor], count: int, batch_size: int) -> Tensor:
    """Float32 results of `function(start, stop)` over 0..count, joined, on the CPU."""
    with torch.inference_mode():
        starts = range(0, count, batch_size)
        return torch.cat([function(start, min(start + batch_size, count)).float().cpu() for start in starts])
