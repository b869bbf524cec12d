"""Media towers of language models: their parameters, and their features of images, videos and audio."""

from __future__ import annotations

import fnmatch
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mmrl_core.errors import PolicyError
from mmrl_core.support import Processes, written_aside

TOWERS = {
    "vision": ("*visual.*", "*vision_tower.*", "*vision_model.*"),
    "audio": ("*audio_tower.*",),
    "projector": ("*visual.*merger*", "*multi_modal_projector.*", "*connector.*"),
}
"""Part -> patterns of parameter names. The projector is also whatever lies before the decoder and in no tower."""

PARTS = (*TOWERS, "language")
"""Names of parts of a model. "language" is the text decoder with its embeddings and head."""

FIXED = ("*audio_tower.embed_positions.*",)
"""Constants that some versions of transformers load as trainable parameters."""


def freeze_parameters(model: nn.Module, names: Sequence[str]) -> None:
    """Stop training the parameters that `names` select: towers, "language" or patterns such as '*.layers.0.*'.

    Raises:
        PolicyError: a name selects no parameter.
    """
    for name in names:
        selected = list(part_parameters(model, name).values()) if name in PARTS else _matching(model, (name,))
        if not selected:
            raise PolicyError(
                f"model.freeze: {name!r} selects no parameter. Towers: {', '.join(TOWERS)}, language; or a pattern of "
                f"names such as {next(iter(model.state_dict()))!r}."
            )
        for parameter in selected:
            parameter.requires_grad_(False)
    for parameter in _matching(model, FIXED):
        parameter.requires_grad_(False)


def towers_frozen(model: nn.Module) -> bool:
    """Whether no parameter between media and the text decoder is trained, so that features may be kept."""
    return not any(parameter.requires_grad for parameter in _before_decoder(model).values())


def part_parameters(model: Any, part: str) -> dict[str, nn.Parameter]:
    """Name -> parameter of a part of a transformers model, one of `PARTS`."""
    before = _before_decoder(model)
    if part == "language":
        return {name: parameter for name, parameter in model.named_parameters() if name not in before}
    matches = lambda name, kind: any(fnmatch.fnmatch(name, pattern) for pattern in TOWERS[kind])  # noqa: E731
    found = {name for name in before if matches(name, part)}
    if part == "projector":
        found |= {name for name in before if not matches(name, "vision") and not matches(name, "audio")}
    return {name: before[name] for name in before if name in found}


def _before_decoder(model: Any) -> dict[str, nn.Parameter]:
    """What lies between media and the text decoder: all that is not of the decoder, its embeddings or its head."""
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    of_text = {parameter for part in parts if part is not None for parameter in part.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if parameter not in of_text}


class TowerUse:
    """Which trained weights before the decoder were used by passes with a gradient, in this process or another.

    A sharded weight that no process has used comes with a gradient of 0, on which AdamW would move it by its momentum.
    """

    def __init__(self, model: Any) -> None:
        """
        Args:
            model: of transformers; its modules note from now on when they run.
        """
        self._model = model
        self._watched = {name for name, parameter in _before_decoder(model).items() if parameter.requires_grad}
        self._used: set[str] = set()
        for module_name, module in model.named_modules():
            own = {f"{module_name}.{name}" for name, _ in module.named_parameters(recurse=False)} & self._watched
            if own:
                module.register_forward_hook(partial(self._note, own))

    def _note(self, names: set[str], *of_the_pass: Any) -> None:
        if torch.is_grad_enabled():
            self._used |= names

    def drop_unused(self, processes: Processes) -> None:
        """Weights that nobody has used since the last call get no gradient; every process calls it."""
        unused = self._watched.difference(*processes.gather([self._used]))
        for name, parameter in self._model.named_parameters():
            if name in unused:
                parameter.grad = None
        self._used = set()


def _matching(model: nn.Module, patterns: Sequence[str]) -> list[nn.Parameter]:
    return [
        parameter
        for name, parameter in model.named_parameters()
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]


class PatchProjection(nn.Conv3d):
    """A convolution whose inputs are single patches, [n, channels, *kernel_size]: then it is a matrix product.

    As such it is several times as fast on a CPU, backward included.
    """

    def forward(self, patches: Tensor) -> Tensor:
        """-> [n, out_channels, 1, 1, 1]."""
        if patches.shape[2:] != self.kernel_size:
            return super().forward(patches)
        return linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def project_patches(model: nn.Module) -> None:
    """Make the patch embeddings of a model's towers `PatchProjection`s. Their weights stay as they are."""
    for module in model.modules():
        plain = (module.groups, set(module.padding), set(module.dilation)) if type(module) is nn.Conv3d else None
        if plain == (1, {0}, {1}):
            module.__class__ = PatchProjection


def placeholder_id(config: Any, kind: str) -> int | None:
    """The token that stands for an image, a video or an audio in a model's prompts."""
    for name in (f"{kind}_token_id", f"{kind}_token_index"):
        if (found := getattr(config, name, None)) is not None:
            return int(found)
    return None


PATCH_PX = 14
"""Side of a patch, of most towers."""

MEDIA_INPUTS = {"image": "pixel_values", "video": "pixel_values_videos", "audio": "input_features"}
"""Kind of medium -> the processor's output that holds it. Models without a video tower get frames as images."""


def encode_media(model: Any, media: Mapping[str, Any]) -> dict[str, Tensor]:
    """Run the towers of a transformers model, by its own methods `get_image_features` and the like.

    Args:
        model: without a LoRA wrapper.
        media: outputs of the processor: pixel_values with image_grid_thw, pixel_values_videos with video_grid_thw,
            input_features with feature_attention_mask; whatever the methods take.

    Returns:
        "image", "video", "audio" -> [tokens in place of the placeholders, hidden]. Where a tower's features enter
        several layers of the decoder (DeepStack), those of all levels are side by side: [tokens, levels * hidden].
    """
    features = {}
    for kind, name in MEDIA_INPUTS.items():
        if name in media:
            method = _features_method(model, kind)
            if method is not None:
                accepted = inspect.signature(method).parameters
                features[kind] = _flat(method(**{key: value for key, value in media.items() if key in accepted}))
            elif kind == "audio":
                features[kind] = _encode_audio(model.model, media["input_features"], media["feature_attention_mask"])
    return features


def _features_method(model: Any, kind: str) -> Any:
    """The model's method that computes the features of a kind of medium, None if it has none."""
    name = f"get_{kind}_features"
    return next((getattr(part, name) for part in (getattr(model, "model", None), model) if hasattr(part, name)), None)


def _flat(output: Any) -> Tensor:
    """[tokens, levels * hidden] of what a tower's method returned."""
    pooled = getattr(output, "pooler_output", None)
    features = _joined(getattr(output, "last_hidden_state", output) if pooled is None else pooled)
    levels = getattr(output, "deepstack_features", None) or ()
    return torch.cat([features, *map(_joined, levels)], -1) if levels else features


def _joined(features: Tensor | Sequence[Tensor]) -> Tensor:
    """[tokens, hidden] of the features of several media, in one tensor or one for each."""
    joined = features if isinstance(features, Tensor) else torch.cat([item.flatten(0, -2) for item in features])
    return joined.flatten(0, -2)


def num_media(media: Mapping[str, Any]) -> int:
    """Images, videos and audios among processor outputs."""
    grids = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}  # patches of all in one tensor
    names = [name for name in MEDIA_INPUTS.values() if name in media]
    return sum(len(media[grids[name] if grids.get(name) in media else name]) for name in names)


def num_patches(media: Mapping[str, Any]) -> int:
    """Tokens that towers run on: patches of pictures (of 14 pixels where they come whole), pairs of frames of audio."""
    number = 0
    for name in MEDIA_INPUTS.values():
        if name not in media:
            continue
        shape = media[name].shape
        if name == "input_features":
            number += shape[0] * shape[-1] // 2
        else:
            number += shape[0] if len(shape) == 2 else media[name][..., 0, :, :].numel() // PATCH_PX**2
    return number


class FeatureCache:
    """Tower outputs on disk, for runs that see the same media with the same frozen towers.

    A folder `<fingerprint>/` holds a safetensors file for each set of media. The fingerprint is of the towers' weights,
    the precision and the processor's settings, so that another run never finds what it would not compute itself.
    """

    def __init__(self, folder: str | Path, model: nn.Module, processor: Any, precision: str) -> None:
        """
        Args:
            folder: made if missing. Runs may share it.
            model: model whose towers are frozen.
            processor: of transformers.
            precision: precision that the towers compute in.
        """
        parts = (getattr(processor, name, None) for name in ("image_processor", "video_processor", "feature_extractor"))
        settings = "".join(part.to_json_string() for part in parts if part is not None)
        digest = hashlib.sha256(f"{precision} {settings}".encode())
        for name, parameter in sorted(_before_decoder(model).items()):
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        self._folder = Path(folder).expanduser() / digest.hexdigest()[:32]

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Features kept under a key, or None if there are none or the file is torn."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self._folder / f"{key}.safetensors")
        except (OSError, SafetensorError):
            return None

    def write(self, key: str, features: Mapping[str, Tensor]) -> None:
        """Keep features. They are written aside and renamed, so that others never read half a file.

        Raises:
            PolicyError: the folder cannot be written to.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self._folder / f"{key}.safetensors"
        try:
            with written_aside(path) as aside:
                save_file({kind: values.detach().cpu().contiguous() for kind, values in features.items()}, aside)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise PolicyError(f"model.feature_cache: {path} cannot be written: {reason}.") from error


def _encode_audio(model: Any, input_features: Tensor, feature_mask: Tensor) -> Tensor:
    """[audios, mel, frames] and bool [audios, frames] -> [audio tokens, hidden], padding left out.

    As `Qwen2AudioModel.forward` does it, which has no method for this part alone.
    """
    from transformers.masking_utils import create_bidirectional_mask

    tower = model.audio_tower
    frames, tokens = tower._get_feat_extract_output_lengths(feature_mask.sum(-1))
    width = (input_features.shape[-1] - 2) // 2 + 1  # after the tower's strided convolution
    steps = torch.arange(width, device=input_features.device)
    mask = create_bidirectional_mask(
        config=tower.config,
        inputs_embeds=torch.zeros(len(frames), width, 1, dtype=tower.dtype, device=input_features.device),
        attention_mask=(steps < frames[:, None]).long(),
    )
    output = tower(input_features, attention_mask=mask).last_hidden_state
    features = model.multi_modal_projector(output)
    return features[torch.arange(features.shape[1], device=features.device) < tokens[:, None]]
