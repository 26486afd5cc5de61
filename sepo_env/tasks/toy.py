"""A world small enough to know everything about it: exact laws, exact objectives, exact gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from sepo_env.arguments import Seed, Size, check_argument, checked
from sepo_env.denoisers import Denoiser, DenoiserArgument, Parameterisation, TabularDenoiser
from sepo_env.diffusion import DiffusionProcess, Schedule, make_graph, make_schedule
from sepo_env.diffusion.enumeration import all_states, ancestral_law, expected_reward, first_hitting_law, state_index
from sepo_env.diffusion.process import DenoiserLike
from sepo_env.diffusion.random import uniforms
from sepo_env.errors import InvalidShapeError
from sepo_env.rewards import Reward
from sepo_env.rewards.base import RewardRole
from sepo_env.tasks.alphabet import AlphabetTask

_LETTERS = "ABCD"


class TableReward(Reward):
    """A reward that looks each sequence up in a table over all ``V ** L`` of them.

    Args:
        table: values in the order of `sepo_env.diffusion.enumeration.all_states`, ``(V ** L,)``.
        num_tokens: V.
        name: what it is called.
        role: whether it may train, judge, or both.
    """

    def __init__(self, table: Tensor, num_tokens: int, *, name: str = "table", role: RewardRole = "any") -> None:
        self.table = table
        self.num_ids = self.num_tokens = num_tokens
        self.name = name
        self.role = role

    def score(self, tokens: Tensor) -> Tensor:
        return self.table.to(tokens.device)[state_index(tokens, self.num_tokens)]


class TokenShare(Reward):
    """The share of positions that hold token 0, of ``num_tokens``."""

    name = "share_of_a"

    def __init__(self, num_tokens: int) -> None:
        self.num_ids = num_tokens

    def score(self, tokens: Tensor) -> Tensor:
        return (tokens == 0).float().mean(-1)


class ToyTask(AlphabetTask):
    r"""Sequences of 2 to 6 letters, a tabular denoiser and a known reward for each sequence.

    The reward is a sum of preferences of single positions and of noise on whole sequences, scaled to 0 (worst) .. 1
    (best), so that local search alone does not find the best one. The judge has the same preferences and other noise:
    what pleases the one by its noise alone does not please the other. Rewards: ``"table"`` (training),
    ``"held_out_table"`` (judges, and never trains), ``"share_of_a"``.

    Args:
        num_tokens: V, 2 to 4.
        length: L, 2 to 6.
        graph: ``"absorbing"`` or ``"uniform"``.
        schedule: name of a noise schedule, or one.
        num_steps: K.
        parameterisation: what the denoiser's table means.
        prompted: start each episode from a prompt: one position, drawn with its token from the episode's key.
        prompt: given letters with "?" where free, one string or several to draw from; goes before ``prompted``.
        seed: of the denoiser's table and of the rewards'.
        denoiser: another denoiser of the same space.
        trust_remote_code: run Python code that the folder of a masked language model as ``denoiser`` brings along; it
            can do whatever you can.

    Raises:
        InvalidArgumentError: V or L out of range.
        InvalidPromptError: a prompt that does not fit, or leaves nothing to generate.

    >>> task = ToyTask(num_tokens=2, length=3)
    >>> law = task.exact_law(task.denoiser)
    >>> law.shape, round(law.sum().item(), 6), task.best_return
    (torch.Size([8]), 1.0, 1.0)
    """

    training_reward = "table"
    held_out_reward = "held_out_table"

    @checked
    def __init__(
        self,
        *,
        num_tokens: Annotated[int, Ge(2), Le(len(_LETTERS))] = 3,
        length: Annotated[int, Ge(2), Le(6)] = 4,
        graph: str = "absorbing",
        schedule: str | Schedule = "log-linear",
        num_steps: Size = 8,
        parameterisation: Parameterisation = "posterior",
        prompted: bool = False,
        prompt: str | Sequence[str] | None = None,
        seed: Seed = 0,
        denoiser: DenoiserArgument | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(
            name="toy",
            alphabet=_LETTERS[:num_tokens],
            length=length,
            process=DiffusionProcess(make_graph(graph, num_tokens), make_schedule(schedule)),
            num_steps=num_steps,
            denoiser=denoiser,
            trust_remote_code=trust_remote_code,
        )
        self.conditional = prompted
        if prompt is not None:
            self.start_from(prompt)
        self.parameterisation: Parameterisation = parameterisation
        self.seed = seed
        self._reward_table, self._held_out_table = self._draw_reward_tables()

    @property
    def reward_table(self) -> Tensor:
        """The training reward of each sequence, ``(V ** L,)``; a copy."""
        return self._reward_table.clone()

    @reward_table.setter
    def reward_table(self, table: Tensor) -> None:
        self._reward_table = self._as_table(table)

    @property
    def held_out_table(self) -> Tensor:
        """The judge's value of each sequence, ``(V ** L,)``; a copy."""
        return self._held_out_table.clone()

    @held_out_table.setter
    def held_out_table(self, table: Tensor) -> None:
        self._held_out_table = self._as_table(table)

    def _as_table(self, table: Tensor) -> Tensor:
        check_argument("table", table, Tensor)
        expected = (self.num_tokens**self.length,)
        if table.shape != expected or not table.is_floating_point():
            raise InvalidShapeError(f"the table ({table.dtype})", table.shape, f"floats of shape {expected}")
        return table.clone()

    def _draw_reward_tables(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        states = all_states(self.num_tokens, self.length)
        draw = partial(torch.randn, dtype=torch.float32, generator=generator)
        preferred = draw(self.length, self.num_tokens)[torch.arange(self.length), states].sum(-1)
        training = _scaled(preferred + draw(len(states)))
        return training, _scaled(preferred + draw(len(states)))

    def _load_default_denoiser(self) -> Denoiser:
        generator = torch.Generator().manual_seed(self.seed)
        return TabularDenoiser(
            self.num_tokens, self.length, self.process.graph.vocab_size, self.parameterisation, generator
        )

    def rewards(self) -> Mapping[str, Callable[[], Reward]]:
        table = partial(TableReward, num_tokens=self.num_tokens)
        return {
            "table": partial(table, self.reward_table, role="training"),
            "held_out_table": partial(table, self.held_out_table, name="held_out_table", role="held_out"),
            "share_of_a": partial(TokenShare, self.num_tokens),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What the tables were drawn from and mean."""
        return {"seed": self.seed, "parameterisation": self.parameterisation}

    @checked
    def metrics(self, tokens: Tensor, *, prompt_mask: Tensor | None = None, **options: Any) -> dict[str, float]:
        """Medians of both rewards and the diversity of `Task.diversity`, of whole sequences; takes no options."""
        self.check_finished(tokens, prompt_mask)
        training, held_out = self.make_reward(**options)(tokens), self.judge(**options)(tokens)
        return {
            "training_median": float(training.median()),
            "held_out_median": float(held_out.median()),
            **self.diversity(tokens),
        }

    def prompt(self, keys: Tensor) -> Tensor | None:
        if self.prompt_set is not None or not self.conditional:
            return super().prompt(keys)
        # Counter 0 belongs to the prior, which a prompt overwrites; -1 is no step's.
        place, letter = uniforms(keys, -1, 2).unbind(-1)
        free = torch.full((len(keys), self.length), self.num_tokens, device=keys.device)
        position = (place * self.length).long()
        return free.scatter(1, position[:, None], (letter * self.num_tokens).long()[:, None])

    def all_prompts(self) -> Tensor:
        """Every prompt that `prompt` may draw, each equally likely, int64 ``(P, L)``; one free row if unconditional."""
        if self.prompt_set is not None:
            return self.prompt_set.tokens.clone()
        free = torch.full((self.length, self.length), self.num_tokens)
        if not self.conditional:
            return free[:1]
        return torch.cat([free.diagonal_scatter(torch.full((self.length,), v)) for v in range(self.num_tokens)])

    @checked
    def exact_law(
        self,
        denoiser: DenoiserLike,
        num_steps: Size | None = None,
        *,
        sampler: Literal["k-step", "first-hitting"] = "k-step",
        prompt: Tensor | None = None,
    ) -> Tensor:
        r"""The exact law :math:`\pi(x_0)` of what a denoiser samples, prompts averaged over unless one is given.

        Args:
            denoiser: the policy.
            num_steps: K, the task's own if None; first-hitting has none.
            sampler: ``"k-step"`` (ancestral) or ``"first-hitting"``.
            prompt: int64 ``(L,)``, visible tokens where given, the id V where free.

        Returns:
            float64 ``(V ** L,)`` in the order of `sepo_env.diffusion.enumeration.all_states`, summing to 1 and
            differentiable in the denoiser's parameters.
        """
        prompts = self.all_prompts() if prompt is None else prompt[None]
        if sampler == "first-hitting":
            laws = [first_hitting_law(self.process, denoiser, self.length, row) for row in prompts]
        else:
            steps = self.num_steps if num_steps is None else num_steps
            laws = [ancestral_law(self.process, denoiser, self.length, steps, prompt=row) for row in prompts]
        return torch.stack(laws).mean(0)

    def exact_return(self, denoiser: DenoiserLike, num_steps: int | None = None, **options: Any) -> Tensor:
        r"""The exact :math:`J = \sum_x \pi(x) R(x)` of training, float64 ``()``; options as for `exact_law`."""
        return expected_reward(self.exact_law(denoiser, num_steps, **options), self.reward_table)

    def exact_gradient(self, denoiser: Denoiser, num_steps: int | None = None, **options: Any) -> dict[str, Tensor]:
        r"""The exact :math:`\nabla_\theta J`, by name of the parameter; options as for `exact_law`."""
        parameters = dict(denoiser.named_parameters())
        gradients = torch.autograd.grad(
            self.exact_return(denoiser, num_steps, **options), list(parameters.values()), materialize_grads=True
        )
        return dict(zip(parameters, gradients, strict=True))

    @property
    def best_return(self) -> float:
        """The largest J that any policy reaches: the best reward, averaged over prompts."""
        states = all_states(self.num_tokens, self.length)
        prompts = self.all_prompts()[:, None]
        allowed = ((prompts == states) | (prompts == self.num_tokens)).all(-1)
        return float(self.reward_table.expand_as(allowed).masked_fill(~allowed, -torch.inf).amax(-1).mean())


def _scaled(table: Tensor) -> Tensor:
    """From 0 (worst) to 1 (best)."""
    return (table - table.min()) / (table.max() - table.min())
