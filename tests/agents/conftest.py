"""Every loss by name, and chains small enough to list: every trajectory, its probability, every expectation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from agents.objectives import (
    ActorCriticLoss,
    DDPOLoss,
    PathForm,
    PolicyGradientLoss,
    PPOLoss,
    ReinforceLoss,
    SEPOLoss,
)
from agents.objectives.surrogates import ClippedSurrogate
from agents.policies.rates import Critic, ValueNetwork
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear, Uniform

V, L = 2, 3


@dataclass
class Chain:
    """All trajectories of a K-step chain, built from first principles rather than from the library's kernels.

    `states` holds every visited state of every trajectory; `row_of` maps them to their trajectory.
    """

    process: DiffusionProcess
    denoiser: TabularDenoiser
    reward: Tensor  # of each trajectory
    states: TensorDict  # [num_trajectories * K]
    row_of: Tensor
    log_prob: Callable[[TabularDenoiser], Tensor]  # of each trajectory, differentiable

    def objective(self, denoiser: TabularDenoiser) -> Tensor:
        """J = E R, differentiable."""
        return (self.log_prob(denoiser).exp() * self.reward).sum()

    def exact_gradient(self) -> Tensor:
        """The gradient of J with respect to the table."""
        return torch.autograd.grad(self.objective(self.denoiser), self.denoiser.logits)[0]

    def expected(self, **entries: Tensor) -> TensorDict:
        """All states, each weighted by the probability of its trajectory: a loss on them is its own expectation."""
        probability = self.log_prob(self.denoiser).detach().exp()
        weights = {
            "inclusion_weight": probability[self.row_of][:, None],
            "num_trajectories": torch.ones(len(self.row_of), 1, dtype=torch.float64),
            "advantage": self.reward[self.row_of][:, None],
        }
        return self.states.clone().update(weights | entries)


def _table(vocab_size: int, seed: int) -> TabularDenoiser:
    return TabularDenoiser(V, L, vocab_size, generator=torch.Generator().manual_seed(seed)).double()


def _joint_table(seed: int) -> TabularDenoiser:
    """The conditionals of one joint law over the V ** L sequences."""
    denoiser = _table(V + 1, seed)
    joint = torch.randn(V**L, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).softmax(0)
    sequences = torch.tensor(list(product(range(V), repeat=L)))
    states = torch.tensor(list(product(range(V + 1), repeat=L)))
    agrees = ((states[:, None] == sequences) | (states[:, None] == V)).all(-1)
    counts = torch.einsum("sx,xlv->slv", agrees * joint, torch.nn.functional.one_hot(sequences, V).double())
    with torch.no_grad():
        denoiser.logits.copy_(counts.clamp(min=1e-300).log())
    return denoiser


def _absorbing_chain(num_steps: int = 4, seed: int = 0, joint: bool = False) -> Chain:
    schedule = LogLinear(eps=1e-3)
    denoiser = _joint_table(seed) if joint else _table(V + 1, seed)
    grid = [1.0 - k / num_steps for k in range(num_steps + 1)]
    alpha = [1.0 - (1.0 - schedule.eps) * t for t in grid]
    alpha[-1] = 1.0
    fill = [(alpha[k + 1] - alpha[k]) / (1.0 - alpha[k]) for k in range(num_steps)]
    wait = torch.tensor([1.0, *(1.0 - f for f in fill)], dtype=torch.float64).cumprod(0)
    when = (wait[:num_steps] * torch.tensor(fill, dtype=torch.float64)).log()  # a position is filled at step k

    x_0 = torch.tensor(list(product(range(V), repeat=L))).repeat(num_steps**L, 1)
    filled_at = torch.tensor(list(product(range(num_steps), repeat=L))).repeat_interleave(V**L, dim=0)
    path = torch.stack([torch.where(filled_at < k, x_0, V) for k in range(num_steps + 1)], dim=1)  # (T, K + 1, L)

    def log_prob(table: TabularDenoiser) -> Tensor:
        total = torch.zeros(len(x_0), dtype=torch.float64)
        for i in range(L):
            before = path[torch.arange(len(x_0)), filled_at[:, i]]
            log_posterior = table(before, torch.ones(len(x_0), dtype=torch.float64))[:, i]
            total = total + when[filled_at[:, i]] + log_posterior.gather(1, x_0[:, i : i + 1])[:, 0]
        return total

    return _assemble(DiffusionProcess(Absorbing(V), schedule), denoiser, path, grid, log_prob)


def _uniform_chain(num_steps: int = 2, seed: int = 0) -> Chain:
    process = DiffusionProcess(Uniform(V), LogLinear(eps=1e-3))
    denoiser = _table(V, seed)
    grid = [1.0 - k / num_steps for k in range(num_steps + 1)]
    alpha = [1.0 - (1.0 - 1e-3) * t for t in grid]
    alpha[-1] = 1.0
    path = torch.tensor(list(product(product(range(V), repeat=L), repeat=num_steps + 1)))

    def forward(share: float) -> Tensor:  # q(noisy = column | clean = row)
        return share * torch.eye(V, dtype=torch.float64) + (1.0 - share) / V

    def log_prob(table: TabularDenoiser) -> Tensor:
        total = torch.full((len(path),), -L * math.log(V), dtype=torch.float64)
        for k in range(num_steps):
            x_t, x_s = path[:, k], path[:, k + 1]
            posterior = table(x_t, torch.ones(len(path), dtype=torch.float64)).exp()
            # Bayes' rule, one clean token at a time: q(x_s | x_t, x_0) = q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0).
            back = forward(alpha[k + 1]).T[x_s] / forward(alpha[k]).T[x_t]
            forth = forward(alpha[k] / alpha[k + 1])[x_s, x_t]
            total = total + ((posterior * back).sum(-1) * forth).log().sum(-1)
        return total

    return _assemble(process, denoiser, path, grid, log_prob)


def _assemble(
    process: DiffusionProcess,
    denoiser: TabularDenoiser,
    path: Tensor,
    grid: list[float],
    log_prob: Callable[[TabularDenoiser], Tensor],
) -> Chain:
    num_trajectories, num_steps = len(path), len(grid) - 1
    values = torch.randn(V**L, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    reward = values[(path[:, -1] * torch.tensor([V**2, V, 1])).sum(-1)]
    time = torch.tensor(grid, dtype=torch.float64).expand(num_trajectories, -1)
    row_of = torch.arange(num_trajectories).repeat_interleave(num_steps)
    states = TensorDict(
        {
            "tokens": path[:, :-1].reshape(-1, L),
            "time": time[:, :-1].reshape(-1, 1),
            "next": {"tokens": path[:, 1:].reshape(-1, L), "time": time[:, 1:].reshape(-1, 1)},
            "final_tokens": path[row_of, -1],
            "advantage": reward[row_of][:, None],
            "trajectory": row_of,
            "step": torch.arange(num_steps).repeat(num_trajectories),
        },
        batch_size=[len(row_of)],
    )
    return Chain(process, denoiser, reward, states, row_of, log_prob)


@pytest.fixture(scope="session")
def absorbing_chain() -> Callable[..., Chain]:
    """Make a masked chain: num_steps, seed, and whether the table's conditionals come from one joint law."""
    return _absorbing_chain


@pytest.fixture(scope="session")
def uniform_chain() -> Callable[..., Chain]:
    """Make a chain with uniform noise: num_steps, seed."""
    return _uniform_chain


@pytest.fixture(scope="session")
def make_table() -> Callable[[int, int], TabularDenoiser]:
    """Make a random float64 table: vocabulary size, seed."""
    return _table


_PROCESS = DiffusionProcess(Absorbing(V), LogLinear())


def _ppo(denoiser, process=_PROCESS, **options) -> PPOLoss:
    torch.manual_seed(5)
    return PPOLoss(denoiser, process, Critic(ValueNetwork(process)).double(), **options)


def _sepo_with_critic(denoiser, process=_PROCESS, **options) -> ActorCriticLoss:
    torch.manual_seed(5)
    critic = Critic(ValueNetwork(process)).double()
    surrogate = ClippedSurrogate(clip_epsilon=0.2, clip_level="token")
    return ActorCriticLoss(denoiser, process, critic, form=PathForm(), surrogate=surrogate, **options)


_LOSSES: dict[str, Callable[..., PolicyGradientLoss]] = {
    "sepo-path": lambda d, p=_PROCESS, **o: SEPOLoss(d, p, form="path", **o),
    "sepo-path-step": lambda d, p=_PROCESS, **o: SEPOLoss(d, p, form="path", clip_level="step", **o),
    "sepo-neighbours": lambda d, p=_PROCESS, **o: SEPOLoss(d, p, form="neighbours", **o),
    "sepo-neighbours-step": lambda d, p=_PROCESS, **o: SEPOLoss(d, p, form="neighbours", clip_level="step", **o),
    "sepo-snis": lambda d, p=_PROCESS, **o: SEPOLoss(d, p, form="snis", **o),
    "ppo": _ppo,
    "sepo-critic": _sepo_with_critic,
    "ddpo-is": lambda d, p=_PROCESS, **o: DDPOLoss(d, p, form="is", **o),
    "ddpo-sf": lambda d, p=_PROCESS, **o: DDPOLoss(d, p, form="sf", **o),
    "reinforce": lambda d, p=_PROCESS, **o: ReinforceLoss(d, p, **o),
}


def _visited_states(seed: int = 0, num_trajectories: int = 6, num_steps: int = 4) -> TensorDict:
    """Masked chains of random fills, all steps kept."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.randint(V, (num_trajectories, 1, L), generator=generator)
    filled_at = torch.randint(num_steps, (num_trajectories, 1, L), generator=generator)
    step = torch.arange(num_steps)[None, :, None]
    time = (1.0 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps).float()
    rows = num_trajectories * num_steps

    def repeated(values: torch.Tensor) -> torch.Tensor:
        return values.expand(num_trajectories, num_steps, 1).reshape(rows, 1)

    return TensorDict(
        {
            "tokens": torch.where(filled_at < step, x_0, V).reshape(rows, L),
            "time": repeated(time[None, :-1, None]),
            "next": {
                "tokens": torch.where(filled_at <= step, x_0, V).reshape(rows, L),
                "time": repeated(time[None, 1:, None]),
            },
            "final_tokens": x_0.expand(-1, num_steps, -1).reshape(rows, L),
            "advantage": torch.randn(rows, 1, dtype=torch.float64, generator=generator),
            "value_target": torch.randn(rows, 1, dtype=torch.float64, generator=generator),
            "trajectory": torch.arange(num_trajectories).repeat_interleave(num_steps),
        },
        batch_size=[rows],
    )


def _total(out: TensorDict) -> Tensor:
    return sum(value for key, value in out.items() if key.startswith("loss_"))


def _gradients(loss: PolicyGradientLoss, value: Tensor) -> dict[str, Tensor]:
    parameters = dict(loss.named_parameters())
    grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, grads, strict=True))


@pytest.fixture(params=_LOSSES)
def name(request: pytest.FixtureRequest) -> str:
    """The name of each loss in turn."""
    return request.param


@pytest.fixture(scope="session")
def losses() -> dict[str, Callable[..., PolicyGradientLoss]]:
    """Make a loss by name: denoiser, process, options."""
    return _LOSSES


@pytest.fixture(scope="session")
def table() -> Callable[..., TabularDenoiser]:
    """Make a random float64 table: seed, vocab_size."""
    return lambda seed=0, vocab_size=V + 1: _table(vocab_size, seed)


@pytest.fixture(scope="session")
def visited_states() -> Callable[..., TensorDict]:
    """Make masked chains of random fills, all steps kept: seed, num_trajectories, num_steps."""
    return _visited_states


@pytest.fixture(scope="session")
def total() -> Callable[[TensorDict], Tensor]:
    """Add the parts of a loss."""
    return _total


@pytest.fixture(scope="session")
def gradients() -> Callable[[PolicyGradientLoss, Tensor], dict[str, Tensor]]:
    """Gradients of a scalar with respect to a loss' parameters, by name; zeros where there is none."""
    return _gradients
