"""Keys, dispatch and settings: what TorchRL expects of a loss module."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from agents.objectives import ActorCriticLoss, DDPOLoss, PolicyGradientLoss, PPOLoss, SEPOLoss
from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig, TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear, Uniform
from sepo_env.errors import InvalidArgumentError, InvalidShapeError, UnknownNameError

MASK = 2
PROCESS = DiffusionProcess(Absorbing(2), LogLinear())


def test_out_keys_are_what_comes_out(losses, table, visited_states, name):
    regularised = {"reference": table(1), "kl_coeff": 0.1, "entropy_coeff": 0.1}
    for options in ({}, {"reference": table(1)}, regularised):
        loss = losses[name](table(), **options)
        out = loss(visited_states())
        assert set(out.keys()) == set(loss.out_keys)
        assert all(value.shape == () for value in out.values())
        assert all(value.requires_grad == key.startswith("loss_") for key, value in out.items())


def test_renamed_and_nested_keys(losses, table, visited_states, name):
    states = visited_states()
    loss, renamed = losses[name](table()), losses[name](table())
    renamed.set_keys(tokens=("agent", "state", "x"), advantage=("agent", "adv"), next_time="s", trajectory="episode")
    moved = states.clone()
    moved["agent", "state", "x"] = moved["tokens"]
    for old, new in ((("next", "time"), "s"), ("advantage", ("agent", "adv")), ("trajectory", "episode")):
        moved.rename_key_(old, new)
    if not isinstance(loss, ActorCriticLoss):  # whose critic keeps reading "tokens"
        del moved["tokens"]
    assert ("agent", "state", "x") in renamed.in_keys
    assert "advantage" not in renamed.in_keys
    torch.testing.assert_close(renamed(moved)["loss_objective"], loss(states)["loss_objective"])
    renamed.set_keys(tokens=None)  # back to the default
    assert renamed.tensor_keys.tokens == renamed.default_keys().tokens == "tokens"


def test_unknown_key_is_refused(losses, table, name):
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        losses[name](table()).set_keys(logits="x")


def keyword_arguments(loss: PolicyGradientLoss, states: TensorDict) -> dict[str, torch.Tensor]:
    return {
        "_".join(key) if isinstance(key, tuple) else key: states[key]
        for key in loss.in_keys
        if key in states.keys(include_nested=True)
    }


@pytest.mark.parametrize("nested", [False, True])
def test_dispatch(losses, table, visited_states, name, nested):
    states, loss = visited_states(), losses[name](table())
    expected = loss(states)
    inputs = keyword_arguments(loss, states)
    if nested:
        loss.set_keys(advantage=("agent", "advantage"))
        inputs["agent_advantage"] = inputs.pop("advantage")
    outputs = dict(zip(loss.out_keys, loss(**inputs), strict=True))
    for key, value in outputs.items():
        torch.testing.assert_close(value, expected[key])


def test_select_out_keys(losses, table, visited_states, name):
    states, loss = visited_states(), losses[name](table())
    expected = loss(states)["loss_objective"]
    selected = loss.select_out_keys("loss_objective")(**keyword_arguments(loss, states))
    torch.testing.assert_close(selected, expected)


@pytest.mark.parametrize("key", ["tokens", "time", ("next", "tokens"), ("next", "time"), "final_tokens", "advantage"])
def test_missing_entry_is_named(losses, table, visited_states, name, key):
    with pytest.raises((InvalidArgumentError, KeyError), match=str(key if isinstance(key, str) else key[1])):
        losses[name](table())(visited_states().exclude(key))


def test_number_of_trajectories_must_be_known(losses, table, visited_states):
    loss = losses["sepo-path"](table())
    with pytest.raises(InvalidArgumentError, match="trajectory"):
        loss(visited_states().exclude("trajectory"))


def test_parameters_are_those_of_the_policy(losses, table, visited_states, total, name):
    denoiser = table()
    loss = losses[name](denoiser, reference=table(1))
    total(loss(visited_states())).backward()
    assert denoiser.logits.grad.abs().sum() > 0
    assert any(parameter is denoiser.logits for parameter in loss.parameters())
    assert loss.reference.logits.grad is None
    assert not any(parameter is loss.reference.logits for parameter in loss.parameters())


def test_reference_must_not_move_with_the_policy(table):
    denoiser = table()
    with pytest.raises(InvalidArgumentError, match="copy.deepcopy"):
        SEPOLoss(denoiser, PROCESS, reference=denoiser, kl_coeff=0.1)


def test_settings_are_checked(losses, table):
    with pytest.raises(InvalidArgumentError, match="give reference="):
        SEPOLoss(table(), PROCESS, kl_coeff=0.1)
    with pytest.raises(InvalidArgumentError, match="entropy_coeff"):
        SEPOLoss(table(), PROCESS, entropy_coeff=-1.0)
    with pytest.raises(InvalidArgumentError, match="clip_epsilon"):
        SEPOLoss(table(), PROCESS, clip_epsilon=0.0)
    with pytest.raises(InvalidArgumentError, match="critic_coeff"):
        losses["ppo"](table(), critic_coeff=-0.5)
    with pytest.raises(InvalidArgumentError, match="no mask; use 'path'"):
        SEPOLoss(table(vocab_size=2), DiffusionProcess(Uniform(2), LogLinear()), form="neighbours")
    with pytest.raises(UnknownNameError, match="did you mean 'neighbours'"):
        SEPOLoss(table(), PROCESS, form="neighbors")
    with pytest.raises(UnknownNameError, match="clip_level"):
        DDPOLoss(table(), PROCESS, clip_level="sequence")
    with pytest.raises(UnknownNameError, match="form"):
        DDPOLoss(table(), PROCESS, form="pf")


def test_old_log_prob_of_another_form_is_refused(table, visited_states):
    states = visited_states()
    states["old_log_prob"] = torch.zeros(len(states), 3)
    with pytest.raises(InvalidShapeError, match="old_log_prob"):
        SEPOLoss(table(), PROCESS, form="snis")(states)


def test_score_networks_train_like_posteriors(losses, table, visited_states, name):
    """An absorbing score network with the same conditionals has the same terms, up to what the schedule adds."""
    states, posterior = visited_states(), table()
    score = TabularDenoiser(2, 3, 3, parameterisation="score").double()
    with torch.no_grad():
        score.logits.copy_(posterior.logits)
    torch.testing.assert_close(losses[name](score).log_probs(states), losses[name](posterior).log_probs(states))


def test_a_convolutional_denoiser_in_float32(losses, visited_states, total, name):
    process = DiffusionProcess(Absorbing(4), LogLinear())
    denoiser = ConvDenoiser(ConvDenoiserConfig(length=3, channels=8, dilations=(1,)))
    states = visited_states()
    for key in ("tokens", ("next", "tokens")):
        states[key] = torch.where(states[key] == MASK, 4, states[key])
    loss = losses[name](denoiser, process).float()
    out = loss(states)
    assert out["loss_objective"].dtype == torch.float32
    total(out).backward()
    assert all(parameter.grad.isfinite().all() for parameter in denoiser.parameters() if parameter.grad is not None)
    assert out["ratio_max"].item() == 1.0


def test_a_critic_of_other_keys(table, visited_states):
    """Any tensordict module may judge, whatever it reads."""
    states = visited_states()
    judge = TensorDictModule(nn.Linear(3, 1, dtype=torch.float64), in_keys=["features"], out_keys=["v"])
    states["features"] = states["tokens"].double()
    loss = PPOLoss(table(), PROCESS, judge)
    loss.set_keys(value="v")
    assert "features" in loss.in_keys
    assert "v" not in loss.in_keys
    error = (judge.module(states["features"]) - states["value_target"]).square()
    expected = 0.5 * 0.25 * error.sum() / 6  # steps of 1/4
    torch.testing.assert_close(loss(states)["loss_critic"], expected)
