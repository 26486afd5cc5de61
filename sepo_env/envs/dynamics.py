"""The MDP of denoising: states, the exact transition under held rates, and the actions that are refused.

Everything is batched and functional: a state is a frozen dataclass, a transition returns a new one, and whatever
raises leaves the old one as it was. All environments are skins over the `Dynamics` below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from sepo_env.arguments import Size, checked, shown
from sepo_env.device import find_device
from sepo_env.diffusion import Absorbing, DiffusionProcess, StepLaw
from sepo_env.diffusion.kernel import held_rates
from sepo_env.diffusion.random import uniforms
from sepo_env.diffusion.sampler import first_jump, initial_tokens
from sepo_env.errors import InvalidActionError, InvalidArgumentError, InvalidPromptError

Sampler = Literal["k-step", "first-hitting"]
_MOST_LETTERS = 26
"""Tokens that the message of an error lists, at most."""
_LAW_ENTRIES = 1 << 22
"""Probabilities that a transition works on at a time, at most: 32 MiB a copy."""


@dataclass(frozen=True)
class State:
    """B episodes at one moment.

    Attributes:
        tokens: int64 ``(B, L)``.
        step: how many steps each episode has made, int64 ``(B,)``.
        time: t, 1 noise to 0 data, float64 ``(B,)``.
        keys: the random streams of the episodes, int64 ``(B,)``.
        prompt_mask: positions that never change, bool ``(B, L)``.
    """

    tokens: Tensor
    step: Tensor
    time: Tensor
    keys: Tensor
    prompt_mask: Tensor

    def where(self, mask: Tensor, other: State) -> State:
        """This state in the rows of ``mask``, bool ``(B,)``, and the other one elsewhere."""

        def pick(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(mask.reshape(-1, *[1] * (mine.ndim - 1)), mine, theirs)

        return State(*(pick(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)))


class Dynamics:
    r"""The transition law of the environments, exact for rates that are held over a step.

    ``"k-step"``: the time grid 1 -> 0 in K steps; from t to s position i stays with probability
    :math:`e^{-\Delta\Lambda \sum_v r_{i,v}}` and else jumps to v with probability proportional to :math:`r_{i,v}`
    (:func:`sepo_env.diffusion.kernel.held_rates`). The last step of an absorbing chain has
    :math:`\Delta\Lambda = \infty`: every masked position jumps.

    ``"first-hitting"``: one jump a step (:func:`sepo_env.diffusion.sampler.first_jump`). With
    :math:`r = \sum_{i,v} r_{i,v}` over the masked positions, :math:`\Delta\Lambda \sim \mathrm{Exp}(r)` and (i, v) is
    drawn with probability :math:`r_{i,v} / r`. With the x0-posterior as rates this is
    :math:`1 - \alpha_{next} = (1 - \alpha_{now})\, U^{1/n}` with n masks left, exact in continuous time
    (arXiv 2409.02908). It ends when no mask is left.

    Args:
        process: the diffusion process.
        length: L.
        num_steps: K; None for first-hitting, which has no grid.
        sampler: ``"k-step"`` or ``"first-hitting"``.
        remask: whether an absorbing chain takes rates ``(B, L, V + 1)``, the last column back to MASK.
        alphabet: what each token is written as in the messages of errors; None writes the ids.
        device: where the tables live; ``"auto"`` is a GPU where there is one.

    Raises:
        InvalidArgumentError: settings of another type, out of range, or that exclude each other.
        UnknownNameError: no sampler has that name.
    """

    @checked
    def __init__(
        self,
        process: DiffusionProcess,
        length: Size,
        num_steps: Size | None,
        *,
        sampler: Sampler = "k-step",
        remask: bool = False,
        alphabet: str | Sequence[str] | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        absorbing = isinstance(process.graph, Absorbing)
        if remask and not absorbing:
            raise InvalidArgumentError(
                "remask=True needs an absorbing graph; a uniform graph has no MASK to go back to."
            )
        if sampler == "first-hitting" and (remask or not absorbing):
            raise InvalidArgumentError(
                "the first-hitting sampler ends when the last mask is gone, so it needs an absorbing graph without "
                "remask=True; use sampler='k-step'."
            )
        if sampler == "first-hitting" and num_steps is not None:
            raise InvalidArgumentError(
                f"num_steps={num_steps} has no meaning for the first-hitting sampler, which makes one jump a step; "
                "leave it out."
            )
        if sampler == "k-step" and num_steps is None:
            raise InvalidArgumentError("the k-step sampler needs num_steps, the number of steps of its time grid.")
        self.process = process
        self.length = length
        self.sampler: Sampler = sampler
        self.remask = remask
        self.alphabet = alphabet
        self.device = find_device(device)
        self.horizon = length if num_steps is None else num_steps
        # Prompted positions are visible: without re-masking, an absorbing chain cannot move them anyway.
        self._must_clamp = remask or not absorbing
        self._grid, self._clock_steps = self._tables(num_steps)

    def _tables(self, num_steps: int | None) -> tuple[Tensor, Tensor]:
        """Times ``(K + 1,)`` and advances of the clock ``(K + 1,)``: the last is 0, since a finished episode rests."""
        if num_steps is None:
            return torch.ones(1, dtype=torch.float64, device=self.device), torch.empty(0, device=self.device)
        grid = self.process.time_grid(num_steps, device=self.device)
        clock_steps = self.process.clock_step(grid[:-1], grid[1:])
        return grid, torch.cat([clock_steps, clock_steps.new_zeros(1)])

    @property
    def num_actions(self) -> int:
        """Columns of the rates: V, or V + 1 with re-masking."""
        return self.process.graph.num_tokens + int(self.remask)

    def initial(self, keys: Tensor, prompt: Tensor | None = None) -> State:
        """Start episodes: draw the noise at t = 1, then clamp the prompt.

        Args:
            keys: int64 ``(B,)``.
            prompt: int64 ``(L,)`` or ``(B, L)``, visible tokens where given, V or -1 where free; or None.

        Raises:
            InvalidPromptError: another shape, dtype or id, or nothing left to generate.
        """
        if prompt is not None:
            shapes = ((self.length,), (len(keys), self.length))
            if prompt.dtype != torch.int64 or prompt.shape not in shapes:
                raise InvalidPromptError(
                    f"the prompt is {prompt.dtype} of shape {tuple(prompt.shape)}; give int64 of shape {shapes[0]} or "
                    f"{shapes[1]}, or a string."
                )
        tokens, prompt_mask = initial_tokens(self.process, keys, self.length, prompt)
        step = torch.zeros_like(keys)
        return State(tokens, step, self._grid[step], keys, prompt_mask)

    def terminal(self, state: State) -> Tensor:
        """Which episodes are over, bool ``(B,)``."""
        if self.sampler == "first-hitting":
            return ~self.process.graph.can_jump(state.tokens).any(-1)
        return state.step >= self.horizon

    def clock_step(self, state: State) -> Tensor:
        r"""Advance :math:`\Delta\Lambda` of the action clock in the coming k-step, ``(B,)``; 0 if finished."""
        return self._clock_steps[state.step]

    def next_time(self, state: State) -> Tensor:
        """Time after the coming k-step, float64 ``(B,)``."""
        return self._grid[(state.step + 1).clamp(max=self.horizon)]

    def law(self, state: State, rates: Tensor) -> StepLaw:
        """The law of the coming k-step under an action ``(B, L, A)``, float64 ``(B, L, W)``."""
        shape = state.tokens.shape
        everywhere = torch.arange(shape.numel(), device=self.device)
        return StepLaw(self._law_at(everywhere, state, rates).log_probs.reshape(*shape, -1))

    def _law_at(self, index: Tensor, state: State, rates: Tensor) -> StepLaw:
        """The law of N positions, ``index`` into B L: positions move independently, so each is a batch of one."""
        clock_step = self.clock_step(state)[index // self.length]
        # In float64 even the largest float32 rates have a finite sum.
        rates = rates.flatten(0, 1)[index].double()
        if self._must_clamp:
            rates = rates.masked_fill(state.prompt_mask.flatten()[index, None], 0.0)
        if self.remask:
            # What is masked on the last step would stay masked for ever.
            to_mask = torch.arange(self.num_actions, device=rates.device) == self.process.graph.mask_token
            rates = rates.masked_fill(torch.isinf(clock_step)[:, None] & to_mask, 0.0)
        return held_rates(self.process.graph, state.tokens.flatten()[index, None], rates[:, None], clock_step)

    def transition(self, state: State, rates: Tensor) -> tuple[State, Tensor]:
        r"""Make one step; finished episodes rest.

        Args:
            state: B episodes.
            rates: jump rates per unit of the action clock, ``(B, L, A)``, finite and non-negative
                (`validate_action`); those that the graph forbids are ignored.

        Returns:
            The next state, and the log-probability of what happened at each position, float32 ``(B, L)``, 0 where
            nothing could: its sum over L is the log-probability of the step. For first-hitting it is that of which
            position jumped and where to, and stands at that position.
        """
        draw_index = state.step + 1
        if self.sampler == "first-hitting":
            draws = uniforms(state.keys, draw_index, 3)
            tokens, time, log_prob = first_jump(self.process, state.tokens, rates, state.time, draws)
            step = state.step + (~self.terminal(state)).long()
        else:
            draws = uniforms(state.keys, draw_index, self.length)
            tokens, log_prob = self._jump(state, rates, draws)
            step = draw_index.clamp(max=self.horizon)
            time = self._grid[step]
        return State(tokens, step, time, state.keys, state.prompt_mask), log_prob.float()

    def _jump(self, state: State, rates: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Next tokens ``(B, L)`` of a k-step and their log-probabilities, float64 ``(B, L)``."""
        shape = state.tokens.shape
        movable = torch.ones_like(state.prompt_mask) if self.remask else self.process.graph.can_jump(state.tokens)
        # Visible tokens of a masked chain rest: over an episode that halves the work.
        index = torch.nonzero(movable.flatten())[:, 0]
        tokens, log_prob = state.tokens.flatten(), draws.new_zeros(shape.numel())
        # A law takes several copies in float64, so it is made for some positions at a time: with a large vocabulary
        # the copies would outgrow the rates themselves many times over.
        for some in index.split(max(1, _LAW_ENTRIES // self.num_actions)):
            law = self._law_at(some, state, rates)
            drawn = law.sample(draws.flatten()[some, None])
            log_prob = log_prob.index_copy(0, some, law.log_prob(drawn)[:, 0])
            tokens = tokens.index_copy(0, some, drawn[:, 0])
        return tokens.reshape(shape), log_prob.reshape(shape)

    def validate_action(self, state: State, rates: Tensor) -> None:
        """Refuse what is no action in this state.

        Raises:
            InvalidActionError: another shape or dtype; a rate that is negative, infinite or NaN; a masked position
                without a rate that must have one (`stuck`). The message names the environment, the position and the
                token.
        """
        expected = (*state.tokens.shape, self.num_actions)
        if not isinstance(rates, Tensor) or rates.layout != torch.strided or rates.device != state.tokens.device:
            found = f"{rates.layout} on {rates.device}" if isinstance(rates, Tensor) else shown(rates)
            raise InvalidActionError(f"the action is {found}; give a dense tensor on {state.tokens.device}.")
        if rates.shape != expected:
            raise InvalidActionError(
                f"the action has shape {tuple(rates.shape)}, expected {expected}: one rate for each environment, "
                f"position and token{' and MASK' if self.remask else ''}."
            )
        if rates.dtype != torch.float32:
            raise InvalidActionError(f"the action has dtype {rates.dtype}, expected float32; cast it.")
        low, high = rates.aminmax()
        # A comparison with NaN is false, and aminmax hands NaN on.
        if not bool((low >= 0) & (high < torch.inf)):
            bad = ~((rates >= 0) & (rates < torch.inf))
            env, position, token = (int(i) for i in bad.nonzero()[0])
            raise InvalidActionError(
                f"environment {env}, position {position}, token {self._letter(token)}: the rate is "
                f"{float(rates[env, position, token])}, but rates are finite and not negative; map scores to rates "
                "with softmax, softplus or exp."
            )
        if not bool(self._demanding(state).any()):
            return
        stuck = self.stuck(state, rates[..., : self.process.graph.num_tokens].amax(-1) <= 0)
        if bool(stuck.any()):
            env, position = (int(i) for i in stuck.nonzero()[0])
            listed = min(self.process.graph.num_tokens, _MOST_LETTERS)
            letters = ", ".join(self._letter(token) for token in range(listed))
            letters += ", ..." if listed < self.process.graph.num_tokens else ""
            why = (
                "and no other masked position has one either"
                if self.sampler == "first-hitting"
                else "but on the last step every mask must go"
            )
            raise InvalidActionError(
                f"environment {env}, position {position}: masked and without a rate to any token ({letters}), {why}; "
                "give at least one token a positive rate."
            )

    def stuck(self, state: State, idle: Tensor) -> Tensor:
        """Masked positions that must not be ``idle``, bool ``(B, L)``, but are.

        On the last k-step every mask must have a rate to some token; in first-hitting at least one mask of each
        episode. A uniform graph asks for nothing.
        """
        masked = self.process.graph.can_jump(state.tokens) & self._demanding(state)[:, None]
        if self.sampler == "first-hitting":
            return masked & ~(masked & ~idle).any(-1, keepdim=True)
        return masked & idle

    def _demanding(self, state: State) -> Tensor:
        """Episodes whose coming step needs a rate somewhere, bool ``(B,)``."""
        if self.sampler == "first-hitting":
            return ~self.terminal(state)
        return torch.isinf(self.clock_step(state))

    def _letter(self, token: int) -> str:
        if token == self.process.graph.mask_token:
            return "MASK"
        return str(token) if self.alphabet is None else repr(self.alphabet[token])
