"""Objectives under drawn prompts: what a network says where a token is given is never read."""

from typing import Any, Literal

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.objectives import NeighboursForm, PathForm, PolicyGradientLoss, PPOLoss, ReinforceLoss, SEPOLoss, SNISForm
from agents.policies.rates import Critic, RatePolicy
from agents.training.batch import visited_states
from sepo_env import TorchRLEnv
from sepo_env.denoisers import Denoiser, TabularDenoiser
from sepo_env.diffusion.guided import Guiding
from sepo_env.tasks import make
from tests.comparisons import assert_same


class NoisyWhereGiven(Denoiser, Guiding):
    """Random numbers in the place of its output at given positions."""

    def __init__(self, denoiser: TabularDenoiser, noise: float) -> None:
        super().__init__()
        self.denoiser, self.noise = denoiser, noise
        self.num_tokens, self.length = denoiser.num_tokens, denoiser.length
        self.parameterisation = denoiser.parameterisation
        self.time_conditioned = denoiser.time_conditioned

    @property
    def hides_prompt(self) -> bool:
        return False

    def forward(self, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.evaluate(tokens, time, None, None)

    def evaluate(
        self, tokens: torch.Tensor, time: torch.Tensor, prompt_mask: torch.Tensor | None, mask_token: int | None
    ) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(tokens, time)
        if prompt_mask is None or self.noise == 0.0:
            return output
        numbers = torch.randn(output.shape, generator=torch.Generator().manual_seed(int(tokens.sum())))
        numbers = (self.noise * numbers).to(output)
        if self.parameterisation == "posterior":
            numbers = numbers.log_softmax(-1)
        return torch.where(prompt_mask[..., None], numbers, output)


FORMS: dict[str, Any] = {
    "path": lambda p, task, **o: SEPOLoss(p, task.process, form=PathForm(), **o),
    "path-step": lambda p, task, **o: SEPOLoss(p, task.process, form=PathForm(), clip_level="step", **o),
    "neighbours": lambda p, task, **o: SEPOLoss(p, task.process, form=NeighboursForm(), **o),
    "snis": lambda p, task, **o: SEPOLoss(p, task.process, form=SNISForm(num_draws=2, time=0.2), **o),
    "reinforce": lambda p, task, **o: ReinforceLoss(p, task.process, **o),
    "ppo": lambda p, task, **o: PPOLoss(p, task.process, Critic.of(task.process, conditional=True).double(), **o),
}


@st.composite
def prompts_of_rows(draw: st.DrawFn, length: int) -> list[str]:
    """Prompts of three rows that leave something free, as the toy's letters A and B."""
    prompts = []
    for _ in range(3):
        letters = draw(st.lists(st.sampled_from("AB?"), min_size=length, max_size=length))
        letters[draw(st.integers(0, length - 1))] = "?"
        prompts.append("".join(letters))
    return prompts


@given(
    st.sampled_from([(form, graph) for form in FORMS for graph in ("absorbing", "uniform")]),
    st.sampled_from(["posterior", "score"]),
    prompts_of_rows(3),
    st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_what_a_network_says_where_a_token_is_given_is_never_read(
    case: tuple[str, str], parameterisation: Literal["posterior", "score"], prompts: list[str], seed: int
) -> None:
    form, graph = case
    if form == "neighbours" and graph == "uniform":
        return
    options: dict[str, Any] = {"num_tokens": 2, "length": 3, "graph": graph, "parameterisation": parameterisation}
    task = make("toy", **options)
    table, old, reference = (make("toy", **options, seed=s).load_denoiser().double() for s in range(3))
    env = TorchRLEnv(task, num_envs=3, num_steps=2, seed=seed, conditional=True)
    policy = RatePolicy(make("toy", **options, seed=1).load_denoiser(), task.process, num_steps=2)
    with torch.no_grad():
        trajectories = env.rollout(2, policy, auto_reset=False, tensordict=env.reset(prompt=prompts))
    generator = torch.Generator().manual_seed(seed)
    trajectories["advantage"] = torch.randn(3, 2, 1, dtype=torch.float64, generator=generator)
    trajectories["value_target"] = torch.randn(3, 2, 1, dtype=torch.float64, generator=generator)
    states = visited_states(trajectories, torch.arange(2).repeat(3, 1), inclusion_weight=1.0)
    found = []
    for noise in (0.0, 5.0):
        torch.manual_seed(seed)
        states["old_log_prob"] = FORMS[form](NoisyWhereGiven(old, noise), task).log_probs(states)
        more = {"kl_coeff": 0.3, "entropy_coeff": 0.2, "reference": NoisyWhereGiven(reference, 2 * noise)}
        torch.manual_seed(seed)
        loss: PolicyGradientLoss = FORMS[form](NoisyWhereGiven(table, noise), task, **more)
        out = loss(states)
        parameter = next(p for name, p in loss.named_parameters() if "policy" in name and p.requires_grad)
        gradients = [
            torch.autograd.grad(out[key], parameter, retain_graph=True, allow_unused=True)[0]
            for key in ("loss_objective", "loss_kl", "loss_entropy")
        ]
        zero = torch.zeros_like(parameter)
        found.append(
            [states["old_log_prob"], loss.log_probs(states), *(zero if g is None else g for g in gradients)]
            + [out[key].detach() for key in out.keys()]  # noqa: SIM118 - iterating over a tensordict walks its batch
        )
    for clean, noisy in zip(*found, strict=True):
        assert_same(noisy, clean)
