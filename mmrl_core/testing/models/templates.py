"""Chat templates, with the mechanism of the published ones."""

from __future__ import annotations

import json
from collections.abc import Mapping

# Same mechanism as Qwen2-VL's template: default system turn, then one placeholder for each image or video part.
_SYSTEM_TURN = (
    "{%- if loop.first and message['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}"
    "{%- endif -%}"
)


def _chatml(media: str, opening: str = "") -> str:
    """Turns as the Qwen family writes them.

    Args:
        media: what is written for the part of a message that is a medium, as branches that end before the text's.
        opening: what comes before the first message.
    """
    return (
        opening + "{%- for message in messages -%}" + _SYSTEM_TURN + "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
        "{%- if message['content'] is string -%}"
        "{{- message['content'] -}}"
        "{%- else -%}"
        "{%- for part in message['content'] -%}" + media + "{%- elif 'text' in part -%}"
        "{{- part['text'] -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- endif -%}"
        "{{- '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        "{{- '<|im_start|>assistant\\n' -}}"
        "{%- endif -%}"
    )


CHAT_TEMPLATE = _chatml(
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'video' or 'video' in part -%}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
)
SHORT_CHAT_TEMPLATE = CHAT_TEMPLATE.replace(_SYSTEM_TURN, "")  # without the default system turn

# Qwen2-Audio's numbers the audios of a conversation and ends each with a line break.
AUDIO_CHAT_TEMPLATE = _chatml(
    "{%- if part['type'] == 'audio' or 'audio' in part or 'audio_url' in part -%}"
    "{%- set audios.count = audios.count + 1 -%}"
    "{{- 'Audio ' ~ audios.count ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\\n' -}}",
    opening="{%- set audios = namespace(count=0) -%}",
)
# Llama 3: every turn has a header, and the template writes the token that opens a text.
LLAMA_CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}"
    "{{- message['content'] | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}"
    "{%- endif -%}"
)
# Gemma has no system role: Gemma 2 refuses it, Gemma 3 puts the text before the first user message.
_GEMMA_TURNS = (
    "{%- for message in turns -%}"
    "{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}"
    "{{- opening if loop.first else '' -}}"
    "{{- message['content'] | trim + '<end_of_turn>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<start_of_turn>model\\n' -}}"
    "{%- endif -%}"
)
GEMMA2_CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}"
    "{%- set opening, turns = '', messages -%}" + _GEMMA_TURNS
)
GEMMA3_CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set opening, turns = messages[0]['content'] + '\\n\\n', messages[1:] -%}"
    "{%- else -%}"
    "{%- set opening, turns = '', messages -%}"
    "{%- endif -%}" + _GEMMA_TURNS
)


def turns_template(
    starts: Mapping[str, str], ends: Mapping[str, str], media: Mapping[str, str], *, opening: str = ""
) -> str:
    """A template in which each turn stands between texts of its role, and a text stands for each medium.

    Args:
        starts, ends: by role, "user" and "assistant", and "system" if the family has it. An answer is written after the
            start of an assistant's turn.
        media: kind of medium -> what stands for it.
        opening: of the conversation.
    """
    branches = "".join(
        f"{{%- {'elif' if place else 'if'} part['type'] == '{kind}' -%}}{{{{- {json.dumps(text)} -}}}}"
        for place, (kind, text) in enumerate(media.items())
    )
    return (
        f"{{%- set starts = {json.dumps(dict(starts))} -%}}{{%- set ends = {json.dumps(dict(ends))} -%}}"
        f"{{{{- {json.dumps(opening)} -}}}}"
        "{%- for message in messages -%}"
        "{%- set role = message['role'] if message['role'] in starts else 'user' -%}"
        "{{- starts[role] -}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}"
        "{%- else -%}{%- for part in message['content'] -%}"
        + branches
        + "{%- else -%}{{- part['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
        "{{- ends[role] -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- starts['assistant'] -}}{%- endif -%}"
    )


def im_template(media: Mapping[str, str]) -> str:
    """Turns between <|im_start|> and <|im_end|>, as of Qwen and those that took over its form."""
    starts = {role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")}
    return turns_template(starts, dict.fromkeys(starts, "<|im_end|>\n"), media)
