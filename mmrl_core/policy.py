"""What the trainer knows of a policy. A language model is one; a Gaussian over initial noise is another.

The core ships `mmrl_core.language_model.policy.LanguageModelPolicy`; a plugin registers others under kind "policy".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row, Sampling, TokenStats

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mmrl_core.config import RunConfig
    from mmrl_core.discovery import Plugins


class Policy(Protocol):
    """Acts on prompts, and says how likely its actions are.

    Made as `policy(config.model, path=..., device=..., engine=..., **options)`; `path` is a hub name, a folder that
    `save` wrote, or what the registered builder in `model.build` wrote in the same form; the options are those of
    `model.policy`.

    `module` holds the parameters that are trained; its forward is `module(rows, needs) -> TokenStats`, so that
    accelerate can wrap it (DDP needs to see the forward pass).
    """

    module: nn.Module

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Do ahead what can be done without the weights, such as encoding. Called in another thread, a step early."""
        ...

    def publish_weights(self) -> None:
        """Rollouts from now on act with the present weights; until then they may act with older ones."""
        ...

    def rollout(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        sampling: Sampling,
        on_group: Callable[[RolloutGroup], None] | None = None,
    ) -> list[RolloutGroup]:
        """Act `group_size` times on each prompt, without gradient.

        Args:
            on_group: told each group as soon as it is finished; the very objects that are returned.

        Returns:
            A group for each prompt, in order; each rollout has one row, the first of its trajectory.
        """
        ...

    def observe(self, prompt: Prompt, rollout: Rollout, messages: Sequence[Mapping[str, Any]]) -> Any:
        """What the next decision of a trajectory is made on: all so far, and messages that answer its last action.

        Args:
            prompt: of the trajectory.
            rollout: its rows so far.
            messages: chat messages of tools or an environment, in the form of `Prompt.messages`.

        Returns:
            The observation, whose `len` is its number of tokens; None if it is longer than the policy takes.

        Raises:
            PolicyError: the policy acts once.
        """
        ...

    def act(
        self,
        prompts: Sequence[Prompt],
        rollouts: Sequence[Rollout],
        observations: Sequence[Any],
        sampling: Sampling,
        answers: Sequence[str] | None = None,
    ) -> list[tuple[Row, str]]:
        """One more decision of each trajectory, without gradient.

        Args:
            prompts: of the trajectories.
            rollouts: the trajectories so far.
            observations: what `observe` returned for them.
            answers: decisions taken from data instead of the policy's own; their rows have a forced mask.

        Returns:
            The new row of each, and its text.
        """
        ...

    def demonstrate(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[RolloutGroup]:
        """Groups of one rollout each whose actions are the given answers; their rows have a forced mask.

        Raises:
            PolicyError: the policy cannot be shown answers.
        """
        ...

    def logprobs(self, rows: Sequence[Row], *, needs: Collection[str] = (), frozen: str | None = None) -> TokenStats:
        """Natural-log probabilities of the rows' actions at the temperature they are trained at.

        Args:
            rows: B rows; those of a group stand next to each other and share their observation.
            needs: further quantities: "entropy", and those of the policy's own, which come as `extras`.
            frozen: name of a frozen policy to ask instead of the trained one; then without gradient.

        Returns:
            float32 [B, T], T the most actions of a row, 0 on padding.

        Raises:
            PolicyError: the policy does not know what it is asked for.
        """
        ...

    def num_tokens(self, rows: Sequence[Row]) -> int:
        """Tokens that one pass over these rows computes, limited by `micro_batch_tokens`. Without tokens: rows."""
        ...

    def freeze(self, name: str) -> None:
        """Keep the present weights as the frozen policy `name`."""
        ...

    def refresh(self, name: str, decay: float) -> None:
        """Frozen weights become decay * frozen + (1 - decay) * trained; decay 0 copies."""
        ...

    def set_temperature(self, temperature: float) -> None:
        """Logprobs are taken at the temperature that is sampled at; told when a stage starts."""
        ...

    def describe(self) -> list[str]:
        """Lines that say how the work will be done, for a dry run."""
        ...

    def prompt_length(self, prompt: Prompt) -> int | None:
        """Tokens of a prompt as the policy encodes it, None if it has no such thing. Refuses one that is too long."""
        ...

    def take_counters(self) -> dict[str, int]:
        """Work done since the last call (media encodes, prefill tokens, ...), for the metrics."""
        ...

    def save(self, directory: Path) -> None:
        """Write weights, and whatever is needed to load and use them elsewhere, into an existing folder."""
        ...

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote, bit for bit."""
        ...

    @staticmethod
    def needs_base(directory: Path) -> bool:
        """Whether what `save` wrote there is a part, such as an adapter, to be loaded over the starting model."""
        ...

    def save_frozen(self, directory: Path) -> None:
        """Write the frozen policies into an existing folder."""
        ...

    def load_frozen(self, directory: Path) -> None:
        """Restore what `save_frozen` wrote; policies frozen since are forgotten."""
        ...

    def close(self) -> None:
        """Give back what the policy holds outside this process's memory. May be called more than once."""
        ...


def make_policy(config: RunConfig, plugins: Plugins, *, path: str | Path, device: torch.device | str) -> Policy:
    """The policy and the rollout engine that a config names."""
    engine = config.rollout.engine
    made_engine = plugins.registry.get("engine", engine.name).load()(**engine.options)
    policy = config.model.policy
    policy_class = plugins.registry.get("policy", policy.name).load()
    return cast(Policy, policy_class(config.model, path=path, device=device, engine=made_engine, **policy.options))
