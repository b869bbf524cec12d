"""What the trainer knows of a policy. A language model is one; a Gaussian over initial noise is another.

`Policy` is the protocol. `PolicyBase` answers for a policy that acts once: its author writes `rollout`, `logprobs`,
`save` and `load`, and inherits the rest. The core ships `mmrl_core.language_model.LanguageModelPolicy`; a plugin
registers others under kind "policy".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

from mmrl_core.errors import PolicyError
from mmrl_core.loss_inputs import Statistic, TokenStats
from mmrl_core.support import gathered, laid_out_like, shard, sharing_in_words, swap_weights, whole_on_first
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row, Sampling

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mmrl_core.config.schema import RunConfig, ShardingConfig
    from mmrl_core.plugins.registry import Registry
    from mmrl_core.support import Processes


REFERENCE = "reference"
"""Name of the frozen policy that KL penalties are taken to."""


class Preview(Protocol):
    """Prompts as a policy sees them, known without its weights. Lengths are in tokens, and none is refused."""

    max_prompt_tokens: int

    def prompt_text(self, prompt: Prompt) -> str: ...

    def prompt_length(self, prompt: Prompt) -> int: ...


class Policy(Protocol):
    """Acts on prompts, and says how likely its actions are.

    Made as `policy(path, device=..., engine=..., revision=..., **options)`; `path` is a hub name, a folder that `save`
    wrote, or what the registered builder in `model.build` wrote in the same form; the options are those of
    `model.policy`. A policy may leave `engine` and `revision` out of its parameters.

    `module` holds the parameters that are trained; its forward is `module(rows, needs) -> TokenStats`, so that
    accelerate can wrap it (DDP needs to see the forward pass).
    """

    module: nn.Module

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Do the work that needs no weights, such as encoding. Called in another thread, a step early."""
        ...

    def publish_weights(self) -> None:
        """Rollouts from now on act with the present weights; until then they may act with older ones."""
        ...

    def shard(self, settings: ShardingConfig) -> None:
        """Leave each process its share of the weights; called once, by all of them, before anything is trained."""
        ...

    def before_update(self, processes: Processes) -> None:
        """Between the passes of an update and the optimiser's step; every process calls it."""
        ...

    def acting(self) -> AbstractContextManager[None]:
        """Around `rollout` and `act`; where weights are sharded all processes enter and leave it together."""
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
            on_group: called with each group, the object that is returned, as soon as it is finished.

        Returns:
            A group for each prompt, in order; each rollout has one row, the first of its trajectory.
        """
        ...

    def observe(self, prompt: Prompt, rollout: Rollout, messages: Sequence[Mapping[str, Any]]) -> Any:
        """The observation for a trajectory's next decision: all so far, and the messages that answer its last action.

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
            The new row of each, and its text, which begins with `Prompt.prefix`.
        """
        ...

    def demonstrate(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[RolloutGroup]:
        """Groups of one rollout each whose actions are the given answers; their rows have a forced mask.

        Raises:
            PolicyError: the policy cannot be shown answers.
        """
        ...

    def logprobs(
        self, rows: Sequence[Row], *, needs: Collection[str | Statistic] = (), frozen: str | None = None
    ) -> TokenStats:
        """Natural-log probabilities of the rows' actions at the temperature they are trained at.

        Args:
            rows: B rows; those of a group are neighbours and share their observation.
            needs: further quantities: "entropy"; statistics, and quantities of the policy's own, come as `extras`.
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
        """Logprobs are taken at this temperature, that of sampling, from the start of a stage on."""
        ...

    def check_start(self, max_tokens: int) -> dict[str, float]:
        """Look at what a run relies on, before its first step and with the weights it starts or goes on with.

        Args:
            max_tokens: most tokens of a completion that will be sampled; 0 if none will be.

        Returns:
            Numbers by name that belong to the run's record, the same for equal weights.

        Raises:
            PolicyError: what samples does not start, or cannot be relied on.
        """
        ...

    def describe(self) -> list[str]:
        """Lines that say how the work will be done, for a dry run; after `check_start`, with what that found."""
        ...

    def prompt_length(self, prompt: Prompt) -> int | None:
        """Tokens of a prompt as the policy encodes it; None for a policy without tokens. Refuses too long ones."""
        ...

    def take_counters(self) -> dict[str, int]:
        """Work done since the last call (media encodes, prefill tokens, ...), for the metrics."""
        ...

    def save(self, directory: Path) -> None:
        """Write weights, and whatever is needed to load and use them elsewhere, into an existing folder.

        Where weights are sharded every process calls it, and the first one writes.
        """
        ...

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote, bit for bit."""
        ...

    @classmethod
    def check_trainable(cls, options: Mapping[str, Any]) -> None:
        """Refuse options of `model.policy` under which weights cannot be trained, before anything is loaded.

        Raises:
            ConfigError: names the option.
        """
        ...

    @classmethod
    def preview(cls, path: str | Path, *, revision: str | None = None, **options: Any) -> Preview | None:
        """What prompts are to the policy, without loading weights; None if there is nothing to know. Made as it is."""
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
        """Release what the policy holds outside this process's memory. May be called more than once."""
        ...


class PolicyBase:
    """A policy that acts once, is not shown answers and knows no temperature, until a subclass says otherwise.

    A subclass writes `rollout`, `logprobs`, `save` and `load`. Frozen policies are copies of the trained parameters of
    `weights`; `logprobs` of one are computed inside `with self.frozen_weights(name)`.

    Attributes:
        module: what is trained; the trainer puts accelerate's wrapper around it here.
        weights: the module whose trained parameters frozen policies copy; never wrapped.
        counters: work done since the trainer last asked.
    """

    def __init__(self, module: nn.Module, weights: nn.Module | None = None) -> None:
        self.module = module
        self.weights = module if weights is None else weights
        self.counters: Counter[str] = Counter()
        self._frozen: dict[str, dict[str, Tensor]] = {}

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Nothing can be done ahead; what is said to a chat template is refused."""
        if found := next((prompt for prompt in prompts if prompt.prefix or prompt.template), None):
            key = "prefix" if found.prefix else "template"
            raise PolicyError(f"{type(self).__name__} has no chat template. Take prompt.{key} out.")

    def publish_weights(self) -> None:
        """Rollouts act with the trained weights themselves."""

    def shard(self, settings: ShardingConfig) -> None:
        """All weights are gathered together, for each pass."""
        shard(self.module, [], processes=settings.processes)

    def before_update(self, processes: Processes) -> None:
        """Gradients are as they should be."""

    def acting(self) -> AbstractContextManager[None]:
        """Each process has all weights inside."""
        return gathered(self.module)

    def observe(self, prompt: Prompt, rollout: Rollout, messages: Sequence[Mapping[str, Any]]) -> Any:
        return self._acts_once()

    def act(
        self,
        prompts: Sequence[Prompt],
        rollouts: Sequence[Rollout],
        observations: Sequence[Any],
        sampling: Sampling,
        answers: Sequence[str] | None = None,
    ) -> list[tuple[Row, str]]:
        return self._acts_once()

    def _acts_once(self) -> NoReturn:
        raise PolicyError(f"{type(self).__name__} acts once; use the rollout strategy single_turn.")

    def demonstrate(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[RolloutGroup]:
        raise PolicyError(f"{type(self).__name__} cannot be shown answers; train it in stages of kind grpo.")

    def num_tokens(self, rows: Sequence[Row]) -> int:
        """Actions of the rows."""
        return sum(row.num_actions for row in rows)

    def set_temperature(self, temperature: float) -> None:
        if temperature != 1.0:
            raise PolicyError(
                f"rollout.temperature is {temperature:g}, but {type(self).__name__} knows no temperature. Set it to 1."
            )

    def check_start(self, max_tokens: int) -> dict[str, float]:
        """Nothing is to be looked at."""
        return {}

    def describe(self) -> list[str]:
        trained = sum(value.numel() for _, value in self.trained_parameters())
        return [f"{type(self).__name__}: {trained:,} trained weights", *sharing_in_words(self.module)]

    def prompt_length(self, prompt: Prompt) -> int | None:
        return None

    def take_counters(self) -> dict[str, int]:
        """Counts by name; what another thread counts meanwhile is left for the next call."""
        return {name: self.counters.pop(name) for name in list(self.counters)}

    @classmethod
    def check_trainable(cls, options: Mapping[str, Any]) -> None:
        """All options can be trained with."""

    @classmethod
    def preview(cls, path: str | Path, *, revision: str | None = None, **options: Any) -> Preview | None:
        return None

    @staticmethod
    def needs_base(directory: Path) -> bool:
        """What `save` writes is whole."""
        return False

    def close(self) -> None:
        """Nothing is held outside this process's memory."""

    # Frozen policies

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, value) for name, value in self.weights.named_parameters() if value.requires_grad)

    def freeze(self, name: str) -> None:
        """Keep a copy of the trained parameters; what is not trained is shared."""
        self._frozen[name] = {key: value.detach().clone() for key, value in self.trained_parameters()}

    def refresh(self, name: str, decay: float) -> None:
        for key, value in self.trained_parameters():
            frozen, trained = self._frozen[name][key], value.detach()
            frozen.lerp_(trained, 1.0 - decay) if decay else frozen.copy_(trained)

    @contextmanager
    def frozen_weights(self, name: str) -> Iterator[None]:
        """The frozen parameters take the place of the trained ones inside.

        Raises:
            PolicyError: no policy was frozen under this name.
        """
        if name not in self._frozen:
            raise PolicyError(f"there is no frozen policy {name!r} (there are: {', '.join(self._frozen) or 'none'}).")
        trained = dict(self.trained_parameters())
        swap_weights(trained, self._frozen[name])
        try:
            yield
        finally:
            swap_weights(trained, self._frozen[name])

    def save_frozen(self, directory: Path) -> None:
        """A safetensors file for each."""
        from safetensors.torch import save_file

        for name, weights in self._frozen.items():
            if found := whole_on_first(weights):
                save_file({key: v.contiguous() for key, v in found.items()}, directory / f"{name}.safetensors")

    def load_frozen(self, directory: Path) -> None:
        from safetensors.torch import load_file

        self._frozen = {}
        for path in sorted(directory.glob("*.safetensors")):
            saved = load_file(path)
            # Laid out like the trained parameters: in another layout a product may round otherwise.
            self._frozen[path.stem] = {key: laid_out_like(saved[key], own) for key, own in self.trained_parameters()}


def make_policy(config: RunConfig, registry: Registry, *, path: str | Path, device: torch.device | str) -> Policy:
    """The policy and the rollout engine that a config names."""
    engine = config.rollout.engine
    made_engine = registry.get("engine", engine.name).call(options=engine.options)
    policy = config.model.policy
    made = registry.get("policy", policy.name).call(
        path, options=policy.options, device=device, engine=made_engine, revision=config.model.revision
    )
    return cast(Policy, made)
