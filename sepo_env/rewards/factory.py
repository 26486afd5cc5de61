"""Anything that scores sequences, made a reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping

from torch import nn

from sepo_env.arguments import Count, checked, shown
from sepo_env.errors import HeldOutRewardError, InvalidArgumentError, UnknownNameError
from sepo_env.rewards.activity import OracleReward
from sepo_env.rewards.adapters import Decode, FunctionReward, ModuleReward, OnError, ScoringOptions, Timeout, Workers
from sepo_env.rewards.base import Reward, RewardRole
from sepo_env.rewards.functions import RewardFunction, function_name, reward_function, token_reward
from sepo_env.rewards.oracles import OracleEnsemble
from sepo_env.rewards.weighted import WeightedSum, WeightedTerm

Registry = Mapping[str, Callable[[], Reward]]
FOR_TRAINING: frozenset[RewardRole] = frozenset({"training", "any"})
FOR_JUDGING: frozenset[RewardRole] = frozenset({"held_out", "any"})


@checked
def as_reward(
    spec: object,
    *,
    decode: Decode,
    registry: Registry,
    workers: Workers = 0,
    timeout: Timeout | None = None,
    on_error: OnError = "raise",
    floor: float | None = None,
    cache: bool | Count = False,
    allow_roles: Collection[RewardRole] = FOR_TRAINING,
    num_ids: Count | None = None,
) -> Reward:
    """Return the reward that ``spec`` stands for.

    Args:
        spec: a `Reward`; a function of ``list[str]`` or of a token tensor (told apart as `reward_function`
            says); a torch module ``tokens (B, L) -> (B,)``; an `OracleEnsemble`; a name in the registry; or a
            mapping of such things to weights, their weighted sum.
        decode: tokens ``(B, L)`` -> ``list[str]``.
        registry: the known rewards by name.
        workers: processes for functions of strings, see `ScoringOptions`, also for the arguments that follow.
        timeout: seconds for one batch.
        on_error: ``"raise"`` or ``"floor"``.
        floor: the value of sequences that fail.
        cache: score repeated sequences once.
        allow_roles: the roles that this use of the reward admits.
        num_ids: functions of tokens are asked to score the tokens 0 .. ``num_ids`` - 1 only; None: whatever they are.

    Raises:
        UnknownNameError: a name that is not in the registry.
        HeldOutRewardError: a role that is not allowed, anywhere inside.
        InvalidArgumentError: nothing that scores sequences, or options that it cannot use.

    Example:
        >>> import torch
        >>> from sepo_env.rewards import string_reward
        >>> decode = lambda tokens: ["".join("ACGT"[t] for t in row) for row in tokens.tolist()]
        >>> reward = as_reward(
        ...     {string_reward(lambda xs: [x.count("A") for x in xs], "a"): -1.0}, decode=decode, registry={}
        ... )
        >>> reward.terms(torch.tensor([[0, 0, 1]]))
        {'a': tensor([2.]), 'reward': tensor([-2.])}
    """
    options = ScoringOptions(workers, timeout, on_error, floor, cache)
    builder = _Builder(decode, registry, options, num_ids)
    reward = builder.build(spec)
    if workers and not any(function.reads == "strings" for function in builder.functions):
        raise InvalidArgumentError(
            f"workers={workers} spreads functions of strings over processes, but the reward {reward.name!r} "
            "has none; take workers=0."
        )
    _check_role(reward, allow_roles, registry)
    return reward


class _Builder:
    """The settings of one call of `as_reward`, and the functions it has met."""

    def __init__(self, decode: Decode, registry: Registry, options: ScoringOptions, num_ids: int | None) -> None:
        self.decode = decode
        self.registry = registry
        self.options = options
        self.num_ids = num_ids
        self.functions: list[RewardFunction] = []

    def build(self, spec: object) -> Reward:
        if isinstance(spec, str):
            if spec not in self.registry:
                raise UnknownNameError("reward", spec, self.registry)
            return self._wrap(self.registry[spec]())
        if isinstance(spec, Reward):
            return self._wrap(spec)
        if isinstance(spec, Mapping):
            return WeightedSum([WeightedTerm(_name(key), weight, self.build(key)) for key, weight in spec.items()])
        if isinstance(spec, OracleEnsemble):
            return self._wrap(OracleReward(spec))
        if isinstance(spec, nn.Module):
            return self._function(token_reward(ModuleReward(spec), function_name(spec)), _role(spec))
        if isinstance(spec, RewardFunction):
            return self._function(spec)
        if isinstance(spec, type) and issubclass(spec, (Reward, nn.Module)):
            raise InvalidArgumentError(f"{spec.__name__} is a class; give one of its objects, {spec.__name__}(...).")
        if callable(spec):
            return self._function(reward_function(spec))
        raise InvalidArgumentError(
            f"{shown(spec)} ({type(spec).__name__}) does not score sequences; give a function of list[str] or of a "
            f"token tensor, a torch module, a Reward, a name among {sorted(self.registry)}, or a mapping of "
            "these to weights."
        )

    def _function(self, function: RewardFunction, role: RewardRole = "any") -> Reward:
        self.functions.append(function)
        options = self.options
        if function.reads == "tokens":  # worker processes are for the functions of strings beside it
            options = dataclasses.replace(options, workers=0, timeout=None)
        num_ids = self.num_ids if function.reads == "tokens" else None  # `decode` says what it writes
        return FunctionReward(function, decode=self.decode, options=options, role=role, num_ids=num_ids)

    def _wrap(self, reward: Reward) -> Reward:
        """Give a ready reward the floor and the cache, where they are asked for."""
        if self.options.on_error == "raise" and self.options.cache is False:
            return reward
        if isinstance(reward, WeightedSum):
            weights = reward.weights
            terms = [WeightedTerm(name, weights[name], self._wrap(term)) for name, term in reward.rewards.items()]
            return WeightedSum(terms, reward.name)
        return self._function(token_reward(reward, reward.name), reward.role)


def _name(spec: object) -> str:
    if isinstance(spec, str):
        return spec
    if isinstance(spec, Reward):
        return spec.name
    return function_name(spec) if callable(spec) else repr(spec)


def _role(module: nn.Module) -> RewardRole:
    """The role of a module is that of the oracles in it; held out wins."""
    roles = {oracle.role for oracle in _oracles(module)}
    if "held_out" in roles:
        return "held_out"
    return "training" if "training" in roles else "any"


def _oracles(module: nn.Module) -> Iterator[OracleEnsemble]:
    return (part for part in module.modules() if isinstance(part, OracleEnsemble))


def _check_role(reward: Reward, allow_roles: Collection[RewardRole], registry: Registry) -> None:
    if reward.role in allow_roles:
        return
    if reward.role == "held_out":
        cause = "is held out: it judges what an agent has learnt, and would judge nothing once agents train on it"
    else:
        cause = "drives the training, so it cannot judge what the training has reached"
    raise HeldOutRewardError(
        f"the reward {reward.name!r} {cause}; take one with the role {' or '.join(sorted(allow_roles))}"
        + (f" (registered: {', '.join(sorted(registry))})." if registry else ".")
    )
