"""From trajectories to the batch that an update works on: advantages, and the states that are trained on.

Shapes: B trajectories of K steps; n states kept of each, N = B n.
"""

from __future__ import annotations

import warnings

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives.value import GAE

from agents.config import PolicyGradientConfig
from agents.functional import ADVANTAGES, subsample_steps, subsample_steps_with_last
from agents.objectives import PolicyGradientLoss
from agents.policies.rates import Critic
from sepo_env.precision import float32_default, without_autocast

NOTHING_TO_COMPARE = (
    "every trajectory of the batch has a prompt of its own, so no other one gives a baseline; give group_size "
    "(trajectories that share each prompt), or use a critic."
)
# What TorchRL's average_gae divides by at least.
_LEAST_SCALE = 1e-4


def trajectory_rewards(trajectories: TensorDictBase) -> Tensor:
    """The reward of each finished trajectory ``(B, K)`` -> ``(B,)``; it comes with the last step."""
    return trajectories["next", "reward"].sum(dim=(1, 2))


def collected_rewards(collected: TensorDictBase) -> Tensor | None:
    """The rewards ``(B,)`` of what an iteration has scored; None where it has scored nothing.

    Those of trajectories come with their last step; whoever scores sequences of its own writes them as ``reward``.
    """
    if ("next", "reward") in collected.keys(include_nested=True):
        return trajectory_rewards(collected)
    reward = collected.get("reward", None)
    return None if reward is None else reward.reshape(-1)


def reward_figures(reward: Tensor | None) -> dict[str, float | None]:
    """Mean, median and standard deviation of the rewards of an iteration, None where there are none."""
    if reward is None:
        return dict.fromkeys(("reward_mean", "reward_median", "reward_std"))
    figures = (reward.mean(), reward.median(), reward.std())
    return dict(zip(("reward_mean", "reward_median", "reward_std"), map(float, figures), strict=True))


def prompt_groups(trajectories: TensorDictBase) -> Tensor | None:
    """Which trajectories share a prompt: ids int64 ``(B,)``, or None where nothing is prompted."""
    prompt_mask = trajectories.get("prompt_mask", None)
    if prompt_mask is None:
        return None
    # Gymnasium shows the mask as whole numbers.
    prompt = torch.where(prompt_mask[:, 0].bool(), trajectories["tokens"][:, 0], -1)
    return prompt.unique(dim=0, return_inverse=True)[1]


def alone(group: Tensor) -> Tensor:
    """Which trajectories share their prompt with no other one: ids ``(B,)`` -> bool ``(B,)``."""
    return (group.bincount() == 1)[group]


def prompt_figures(trajectories: TensorDictBase) -> dict[str, float]:
    """How the prompts of a batch repeat: ``prompts``, different ones, and ``lone_share``, trajectories without company.

    Empty where nothing is prompted.
    """
    group = prompt_groups(trajectories)
    if group is None:
        return {}
    return {"prompts": int(group.max()) + 1, "lone_share": float(alone(group).float().mean())}


def all_alone(trajectories: TensorDictBase) -> bool:
    """Whether no prompt of a batch ``(B, K)`` occurs twice, so that nothing in it can be compared."""
    group = prompt_groups(trajectories)
    return group is not None and bool(alone(group).all())


@without_autocast()
def add_group_advantages(trajectories: TensorDictBase, kind: str) -> None:
    r"""Write ``advantage`` ``(B, K, 1)``: that of the whole trajectory, the same at all of its steps.

    A baseline never mixes prompts, so a trajectory that is alone with its prompt has none. It takes no part in the
    update (advantage 0, nor does it shift anybody's baseline), and `prompt_figures` says how many these are; a
    ``group_size`` leaves none. A batch of which every one is alone has advantages 0, and a warning says so.

    Args:
        trajectories: ``(B, K)``.
        kind: a name in `agents.functional.ADVANTAGES`.
    """
    reward = trajectory_rewards(trajectories)
    group = prompt_groups(trajectories)
    if group is None:
        advantage = ADVANTAGES[kind](reward, None)
    else:
        compared = ~alone(group)
        advantage = torch.zeros_like(reward)
        if bool(compared.any()):
            advantage[compared] = ADVANTAGES[kind](reward[compared], group[compared])
        else:
            warnings.warn(f"all advantages are 0: {NOTHING_TO_COMPARE}", stacklevel=3)
    trajectories["advantage"] = advantage[:, None, None].expand(*trajectories.batch_size, 1)


@torch.no_grad()
@without_autocast()
@float32_default()  # the estimator keeps its lambda in torch's default dtype
def add_critic_advantages(
    trajectories: TensorDictBase, critic: Critic, *, gae_lambda: float, micro_batch_size: int
) -> None:
    r"""Write ``advantage`` and ``value_target`` ``(B, K, 1)`` by generalised advantage estimation (arXiv 1506.02438).

    .. math:: A_k = \sum_j \lambda^j \delta_{k + j}, \quad \delta_k = r_k + V(x_{k + 1}, t_{k + 1}) - V(x_k, t_k)

    There is no discount: the number of reverse steps says how finely time is cut, not how far away the reward is.
    Advantages are standardised (mean 0, standard deviation 1) over all steps of the trajectories that share a prompt,
    as TorchRL's ``average_gae`` does over a batch, and over the whole batch where nothing is prompted: a batch-wide
    mean would be a baseline that mixes prompts. A trajectory that is alone with its prompt would lose its signal by
    that, so such ones keep the sign and the relative size that the critic alone gives them: they are divided by the
    root mean square over all of them, and nothing is subtracted.

    Args:
        trajectories: ``(B, K)``.
        critic: the value network.
        gae_lambda: 0 trusts the critic, 1 the rewards.
        micro_batch_size: states per evaluation of the critic.
    """
    states = trajectories.select(*critic.in_keys).reshape(-1)
    values = [critic.value(part) for part in states.split(micro_batch_size)]
    value = torch.cat(values).reshape(*trajectories.batch_size, 1)
    trajectories["state_value"] = value
    # Steps follow one another in the same trajectory, and after the last one there is nothing left to earn.
    trajectories["next", "state_value"] = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    estimator = GAE(gamma=1.0, lmbda=gae_lambda, value_network=None, device=value.device)
    estimator(trajectories, time_dim=1)
    trajectories["advantage"] = _standardised(trajectories["advantage"], prompt_groups(trajectories))


def _standardised(advantage: Tensor, group: Tensor | None) -> Tensor:
    """Advantages ``(B, K, 1)`` made comparable, those of each group ``(B,)`` among themselves."""
    if group is None:
        return (advantage - advantage.mean()) / advantage.std().clamp_min(_LEAST_SCALE)
    lone, standardised = alone(group), torch.empty_like(advantage)
    standardised[lone] = advantage[lone] / advantage[lone].square().mean().sqrt().clamp_min(_LEAST_SCALE)
    for shared in group[~lone].unique():
        rows = group == shared
        standardised[rows] = _standardised(advantage[rows], None)
    return standardised


def choose_steps(
    loss: PolicyGradientLoss, config: PolicyGradientConfig, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which steps of each trajectory an update uses, so that every sum of the loss is unbiased.

    A form whose terms stand at the end of a trajectory gets that end for certain, and other states only where something
    else is summed over the path.

    Args:
        loss: says what it sums, and where.
        config: how many states of a trajectory, at most.
        generator: draws them, on the CPU.
        device: of the trajectories.

    Returns:
        Steps int64 ``(B, n)`` and their inclusion weights ``(B, n)``.
    """
    kept, num_steps = config.kept_steps, config.num_steps
    everywhere = loss.form.evaluates_visited_states
    if not everywhere:
        # One state besides the last stands for all steps before it.
        kept = min(max(kept, 2), num_steps) if loss.sums_over_path else 1
    if not everywhere and kept == 1:
        uniforms = torch.zeros(config.batch_size, dtype=torch.float64)  # nothing is left to chance
    else:
        uniforms = torch.rand(config.batch_size, generator=generator, dtype=torch.float64)
    if not everywhere:
        return subsample_steps_with_last(uniforms.to(device), num_steps, kept)
    steps, weight = subsample_steps(uniforms.to(device), num_steps, kept)
    return steps, torch.full(steps.shape, weight, dtype=torch.float64, device=device)


def visited_states(
    trajectories: TensorDictBase, steps: Tensor, inclusion_weight: float | Tensor, first_id: int = 0
) -> TensorDict:
    """The states of some steps of each trajectory as a flat batch ``[N]``, as the losses read it.

    Args:
        trajectories: ``(B, K)`` with ``advantage``.
        steps: int64 ``(B, n)``.
        inclusion_weight: the inverse of the probability that a step is among them, of all or ``(B, n)``.
        first_id: id of the first trajectory; the others follow.

    Returns:
        N = B n states, trajectory by trajectory.
    """
    num_trajectories, num_kept = steps.shape
    rows = torch.arange(num_trajectories, device=steps.device)[:, None].expand_as(steps)
    keys = ["tokens", "time", "advantage", ("next", "tokens"), ("next", "time"), "prompt_mask", "value_target"]
    chosen = trajectories.select(*keys, strict=False)[rows.reshape(-1), steps.reshape(-1)]
    final_tokens = trajectories["next", "tokens"][:, -1]
    states = TensorDict(chosen.to_dict(), batch_size=[num_trajectories * num_kept])
    states["final_tokens"] = final_tokens.repeat_interleave(num_kept, dim=0)
    states["trajectory"] = rows.reshape(-1) + first_id
    states["step"] = steps.reshape(-1)
    weights = torch.as_tensor(inclusion_weight).expand_as(steps).reshape(-1, 1)
    states["inclusion_weight"] = weights.to(states["advantage"])
    states["num_trajectories"] = torch.full_like(states["inclusion_weight"], num_trajectories)
    return states
