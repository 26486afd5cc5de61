"""What a training logs of its policy is what an evaluation, and enumeration, say of the same weights: every agent."""

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from agents import Agent, agent_class
from agents.objectives.sepo import FORMS
from agents.registry import learners
from agents.training.collect import collect, rollout_size
from agents.training.update import Updater
from sepo_env import TorchRLEnv
from sepo_env.denoisers import Denoiser
from sepo_env.diffusion.enumeration import state_laws
from sepo_env.errors import InvalidArgumentError
from sepo_env.tasks import make
from sepo_env.tasks.toy import ToyTask

K = 4
STILL: dict[str, Any] = {
    "num_iterations": 1,
    "num_steps": K,
    "learning_rate": 1e-12,
    "kl_coeff": 0.2,
    "entropy_coeff": 0.1,
    "eval_every": 1,
    "tensorboard": "off",
}


def choices(name: str) -> Iterator[dict[str, Any]]:
    """Every form of an agent, and its other ways to an advantage."""
    hints = get_type_hints(agent_class(name).config_class)
    forms = [{"form": form} for form in get_args(hints.get("form"))]
    yield from forms or [{}]
    if "critic" in str(hints.get("advantage")):
        yield from ({**form, "advantage": "critic"} for form in forms or [{}])


EVERY = [
    pytest.param(name, options, graph, id="-".join([name, *options.values(), graph]))
    for name in learners()
    for options in choices(name)
    for graph in ("absorbing", "uniform")
    if graph == "absorbing" or not (options.get("form") in FORMS and FORMS[options["form"]].needs_mask)
]


def moved(name: str, task: ToyTask, **options: Any) -> Agent:
    """An agent whose policy is no longer the pretrained denoiser."""
    agent = agent_class(name)(task, device="cpu", **(STILL | options))
    with torch.no_grad():
        for parameter in agent.denoiser.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
            parameter.add_(noise)
    return agent


def divergence_and_entropy(task: ToyTask, policy: Denoiser) -> tuple[float, float]:
    """The path KL to the pretrained denoiser, and the entropy of what the policy decides, by enumeration."""
    kl = entropy = 0.0
    laws = [state_laws(task.process, denoiser, task.length, K) for denoiser in (policy, task.denoiser)]
    with torch.no_grad():
        for (probability, _, _, law), (_, _, _, reference) in list(zip(*laws, strict=True))[:K]:
            kl += float(probability @ law.kl(reference).sum(-1))
            entropy += float(probability @ decided(law.log_probs.exp(), task.process.graph.mask_token).sum(-1))
    return kl, entropy


def decided(probs: Tensor, mask_token: int | None) -> Tensor:
    """Entropy of each position: of its step or, where the schedule decides when, of what a mask becomes, ``(S, L)``."""
    if mask_token is None:
        return -torch.special.xlogy(probs, probs).sum(-1)
    jumps = probs[..., :mask_token]
    filled = jumps.sum(-1, keepdim=True)
    # Visible tokens stay for certain: one entry is 1, and the entropy 0.
    return -torch.special.xlogy(jumps, jumps / filled.clamp(min=1e-300)).sum(-1)


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize(("name", "options", "graph"), EVERY)
def test_logged_figures_are_those_of_evaluation_and_enumeration(
    name: str, options: dict[str, Any], graph: str, kept: int
) -> None:
    task = make("toy", num_tokens=2, length=3, graph=graph)
    size = {"batch_size": 3000, "states_per_trajectory": kept, "eval_samples": 3000, "micro_batch_size": 4000}
    agent = moved(name, task, **options, **size)
    row = agent.train(progress=False)[-1]
    kl, entropy = divergence_and_entropy(task, agent.denoiser)
    assert kl > 0.4
    # One of four states, weighted by 4, spreads more widely than all of them.
    tolerance = 0.03 if kept == 0 else 0.08
    assert row["kl_reference"] == pytest.approx(kl, rel=tolerance)
    assert row["loss_kl"] == pytest.approx(0.2 * row["kl_reference"], rel=1e-5)
    assert row["kl"] == pytest.approx(kl, rel=0.03)
    assert row["entropy"] == pytest.approx(entropy, rel=tolerance)
    assert row["loss_entropy"] == pytest.approx(-0.1 * row["entropy"], rel=1e-5)
    with torch.no_grad():
        exact = float(task.exact_return(agent.denoiser, K))
    assert row["reward_mean"] == pytest.approx(exact, abs=4 * row["reward_std"] / 3000**0.5)
    assert row["eval_reward_mean"] == pytest.approx(exact, abs=4 * row["reward_std"] / 3000**0.5)


@pytest.mark.parametrize("corrector_steps", [0, 1])
@pytest.mark.parametrize(("name", "options", "graph"), EVERY)
def test_the_logged_divergence_is_that_of_the_trajectories(
    name: str, options: dict[str, Any], graph: str, corrector_steps: int
) -> None:
    """Up to rounding: the very trajectories of the batch, all steps of each, and the laws of both networks there."""
    task = make("toy", graph=graph, prompted=True)
    size = {"batch_size": 12, "group_size": 3, "states_per_trajectory": 0, "corrector_steps": corrector_steps}
    agent = moved(name, task, **options, **size)
    row = agent.train(progress=False)[-1]
    env = TorchRLEnv(task, num_envs=rollout_size(agent.config), num_steps=K, prompt_repeats=3, seed=0)
    batches = collect(env, agent.denoiser, agent.config, first_iteration=0)
    trajectories = next(batches)
    batches.close()
    expected = 0.0
    with torch.no_grad():
        for k in range(K):
            tokens, mask = trajectories["tokens"][:, k], trajectories["prompt_mask"][:, k]
            t, s = (time[:, k, 0].double() for time in (trajectories["time"], trajectories["next", "time"]))
            law, reference = (
                task.process.step_law(denoiser(tokens, t), tokens, t, s, denoiser.parameterisation, prompt_mask=mask)
                for denoiser in (agent.denoiser, task.denoiser)
            )
            expected += float(law.kl(reference).sum(-1).mean())
    assert expected > 0.1
    assert row["kl_reference"] == pytest.approx(expected, rel=1e-4)
    assert row["reward_mean"] == pytest.approx(float(trajectories["next", "reward"].sum((1, 2)).mean()), rel=1e-5)


@pytest.mark.parametrize("regularised", [False, True])
@pytest.mark.parametrize(("name", "options", "graph"), EVERY)
def test_an_update_works_on_as_many_states_as_the_config_says(
    name: str, options: dict[str, Any], graph: str, regularised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    update = Updater.update

    def count(self: Updater, states: Any, *rest: Any) -> Any:
        seen.append(len(states))
        weights = states["inclusion_weight"].reshape(6, -1).sum(-1)
        assert weights.tolist() == pytest.approx([K if len(states) > 6 else 1] * 6)
        return update(self, states, *rest)

    monkeypatch.setattr(Updater, "update", count)
    coefficients = {} if regularised else {"kl_coeff": 0.0, "entropy_coeff": 0.0}
    for kept in (0, 2, 3):
        agent = moved(
            name, make("toy", graph=graph), batch_size=6, states_per_trajectory=kept, **options, **coefficients
        )
        agent.train(progress=False)
        assert seen.pop() == agent.config.num_samples


def test_forms_that_sum_over_masks_are_refused_without() -> None:
    for form, kind in FORMS.items():
        if kind.needs_mask:
            with pytest.raises(InvalidArgumentError, match="has no mask"):
                moved("sepo", make("toy", graph="uniform"), form=form).train(progress=False)
