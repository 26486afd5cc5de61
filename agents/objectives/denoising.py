r"""The pretraining objective on chosen sequences, each with a weight of its own."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor

from agents.functional.denoising import denoising_loss, draw_noise, per_sequence
from agents.objectives.base import DenoiserLoss
from sepo_env.arguments import Count, checked
from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess


class DenoisingLoss(DenoiserLoss):
    r"""Weighted denoising: the bound on :math:`-\sum_n w_n \log \pi_\theta(x_n)`.

    .. math:: L = \frac{1}{B} \sum_n w_n \frac{1}{M} \sum_m \ell(x_n; t_m, x_{t_m})

    with :math:`\ell` the weighted masked cross-entropy on an absorbing graph (arXiv 2406.07524), the score entropy on a
    uniform one (arXiv 2310.16834). With :math:`w \propto e^{R / \alpha}` its minimum is the tilted law (reward-weighted
    likelihood); with the importance weights of a path it is WDCE (arXiv 2508.10684); with weight 1 on the best
    sequences it is expert iteration. A negative weight pushes a sequence away: without a bound, so keep it small.

    Args:
        policy_network: the denoiser to be trained.
        process: the diffusion process that it belongs to.
        num_draws: M, noise levels of each sequence.
        stratified: spread the levels of a sequence evenly over time.
        coupled: draw them in pairs of complementary masks; M is then even.

    Keys (renamed by ``set_keys``; N sequences of L positions):
        final tokens int64 ``(N, L)``; weight ``(N, 1)``; noise_key, seeds of the noise, int64 ``(N,)``. Optional:
        prompt_mask bool ``(N, L)``; num_trajectories ``(N, 1)``, B, by default N.

    Outputs, both scalars:
        loss_objective; without gradient bound, the mean over the sequences of the bound on their log-likelihood, nats.

    Raises:
        InvalidArgumentError: an odd number of coupled draws.

    Example:
        >>> import torch
        >>> from sepo_env.denoisers import TabularDenoiser
        >>> from sepo_env.diffusion import Absorbing, LogLinear
        >>> process = DiffusionProcess(Absorbing(2), LogLinear())
        >>> loss = DenoisingLoss(TabularDenoiser(2, 3, vocab_size=3), process, num_draws=64)
        >>> samples = TensorDict(
        ...     {"final_tokens": torch.tensor([[0, 1, 1]]), "weight": torch.ones(1, 1), "noise_key": torch.tensor([7])},
        ...     batch_size=[1],
        ... )
        >>> loss(samples)["loss_objective"] > 0
        tensor(True)
    """

    @dataclass
    class _AcceptedKeys:
        """The tensordict keys, as ``set_keys`` takes them."""

        final_tokens: NestedKey = "final_tokens"
        weight: NestedKey = "weight"
        noise_key: NestedKey = "noise_key"
        prompt_mask: NestedKey = "prompt_mask"
        num_trajectories: NestedKey = "num_trajectories"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    @checked
    def __init__(
        self,
        policy_network: Denoiser,
        process: DiffusionProcess,
        *,
        num_draws: Count = 4,
        stratified: bool = True,
        coupled: bool = False,
    ) -> None:
        super().__init__(policy_network, process)
        self.num_draws = num_draws
        self.stratified = stratified
        self.coupled = coupled

    def _scalars(self) -> list[NestedKey]:
        return ["loss_objective", "bound"]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The loss of N weighted sequences; see the class for the keys read and the scalars returned."""
        with self.policy_network_params.to_module(self.policy_network):
            losses = self.per_sequence(tensordict)
        weight = self._required(tensordict, self.tensor_keys.weight).reshape(len(losses)).to(losses.dtype)
        objective = (weight * losses / self._num_trajectories(tensordict, len(losses))).sum()
        return TensorDict({"loss_objective": objective, "bound": -losses.detach().mean()}, batch_size=[])

    def per_sequence(self, tensordict: TensorDictBase) -> Tensor:
        """The denoising loss of each sequence under the parameters in place, nats, ``(N,)``."""
        keys = self.tensor_keys
        prompt_mask = tensordict.get(keys.prompt_mask, None)
        states = draw_noise(
            self.process,
            self._required(tensordict, keys.final_tokens),
            self._required(tensordict, keys.noise_key),
            self.num_draws,
            prompt_mask=None if prompt_mask is None else prompt_mask.bool(),
            stratified=self.stratified,
            coupled=self.coupled,
        )
        given = None if prompt_mask is None else ~states.free
        output = self.process.evaluate(self.policy_network, states.tokens, states.t, given)
        losses = denoising_loss(self.process, output, states, self.policy_network.parameterisation)
        return per_sequence(losses, self.num_draws)
