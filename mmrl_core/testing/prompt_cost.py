"""What a prompt costs a policy, known without its weights."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl_core.config.schema import DataConfig, ModelConfig
from mmrl_core.errors import PluginError, PolicyError, UnfitPromptError
from mmrl_core.plugins import Plugins
from mmrl_core.policy import Preview
from mmrl_core.support import local_model
from mmrl_core.testing.sections import Finding
from mmrl_core.types import Prompt


def load_preview(model: ModelConfig, plugins: Plugins, findings: list[Finding]) -> Preview | None:
    """What the policy's class knows of prompts; None if nothing, or if the model does not lie on this machine."""
    try:
        policy_class = plugins.registry.get("policy", model.policy.name).load()
    except PluginError:  # found before
        return None
    if model.path is None or not hasattr(policy_class, "preview"):  # one that is not of the protocol yet
        return None
    try:
        if (path := local_model(model.path)) is None:
            return None
        made: Preview | None = policy_class.preview(path, revision=model.revision, **model.policy.options)
        return made
    except PolicyError as error:
        findings.append(Finding(False, str(error)))
    except Exception as error:  # transformers raises anything on a broken folder
        findings.append(Finding(False, f"model.path: the processor of {model.path} cannot be loaded: {error}"))
    return None


def length_findings(where: str, prompts: Sequence[Prompt], preview: Preview, data: DataConfig) -> list[Finding]:
    """Which prompts the model does not take, and how long the longest is; tolerable where a run sets them aside."""
    limit = preview.max_prompt_tokens
    lengths: dict[str, int] = {}
    unfit: list[str] = []
    for prompt in prompts:
        try:
            lengths[prompt.id] = preview.prompt_length(prompt)
        except UnfitPromptError as error:
            unfit.append(str(error))
        except PolicyError as error:  # of every prompt, such as an option that the template does not read
            return [Finding(False, f"{where}: {error}")]
        except Exception as error:  # a processor is foreign code
            return [Finding(False, f"{where}: the model's processor raised {type(error).__name__}: {error}")]
    too_long = [key for key, length in lengths.items() if length > limit]
    tolerable = data.on_long == "set_aside" and len(unfit) + len(too_long) < len(prompts)
    findings = [Finding(False, f"{where}: {reason}", tolerable) for reason in unfit]
    if not lengths:
        return findings
    longest = max(lengths, key=lambda key: lengths[key])
    what = f"{where}: the longest prompt read, {longest}, has {lengths[longest]} tokens"
    if not too_long:
        return [*findings, Finding(True, f"{what} (model.max_prompt_tokens: {limit})")]
    over = f"{what}, more than model.max_prompt_tokens: {limit}; so have {len(too_long)} of {len(prompts)} prompts"
    advice = "Raise the limit, shorten the prompt, or lower model.max_pixels; prompts are never cut"
    return [*findings, Finding(False, f"{over}. {advice}", tolerable)]


def as_the_model_sees(prompt: Prompt, preview: Preview | None) -> list[str]:
    """Lines of a preview: the rendering of the chat template and the number of tokens; none without a `preview`."""
    if preview is None:
        return []
    try:
        rendered, num_tokens = preview.prompt_text(prompt), preview.prompt_length(prompt)
    except PolicyError as error:
        return [f"--- the model does not take it: {error}"]
    except Exception as error:  # a processor is foreign code
        return [f"--- the model's processor raised {type(error).__name__}: {error}"]
    limit = preview.max_prompt_tokens
    over = f", MORE THAN model.max_prompt_tokens: {limit}" if num_tokens > limit else ""
    return [f"--- as the model sees it: {num_tokens} tokens{over}, placeholders of media expanded", rendered]
