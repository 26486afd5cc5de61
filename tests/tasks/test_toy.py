"""The toy knows everything about itself: its exact figures against brute force, finite differences and sampling."""

import itertools

import pytest
import torch

from sepo_env import tasks
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion.enumeration import all_states
from sepo_env.diffusion.random import keys_from_seed
from sepo_env.diffusion.sampler import first_hitting, sample
from sepo_env.errors import HeldOutRewardError, InvalidArgumentError, UnknownOptionError


def double(task):
    return task.load_denoiser().double()


def test_one_step_samples_every_position_from_the_first_posterior():
    task = tasks.make("toy", num_tokens=2, length=3, num_steps=1)
    p = task.denoiser(torch.tensor([[2, 2, 2]]), torch.ones(1)).detach().double().exp()[0]
    by_hand = [float(p[0, a] * p[1, b] * p[2, c]) for a, b, c in itertools.product(range(2), repeat=3)]
    torch.testing.assert_close(task.exact_law(task.denoiser), torch.tensor(by_hand, dtype=torch.float64))
    returned = sum(x * float(r) for x, r in zip(by_hand, task.reward_table, strict=True))
    assert task.exact_return(task.denoiser).item() == pytest.approx(returned)


@pytest.mark.parametrize("options", [{}, {"graph": "uniform"}, {"prompted": True}, {"parameterisation": "score"}])
def test_the_gradient_is_that_of_finite_differences(options):
    task = tasks.make("toy", num_tokens=2, length=2, num_steps=3, **options)
    denoiser = double(task)
    gradient = task.exact_gradient(denoiser)["logits"]
    assert gradient.shape == denoiser.logits.shape
    for index in [(0, 0, 0), (1, 1, 1), (-1, 1, 0), (-1, 0, 1)]:
        returns = []
        for sign in (1, -1):
            moved = double(task)
            with torch.no_grad():
                moved.logits[index] += sign * 1e-5
                returns.append(task.exact_return(moved).item())
        assert float(gradient[index]) == pytest.approx((returns[0] - returns[1]) / 2e-5, abs=1e-9)


def test_the_return_agrees_with_samples():
    task = tasks.make("toy")
    tokens = sample(task.process, task.denoiser, 4000, 4, num_steps=8, seed=1)
    rewards = task.make_reward()(tokens)
    deviation = float(rewards.std()) / 4000**0.5
    assert abs(float(rewards.mean()) - task.exact_return(task.denoiser).item()) < 4 * deviation
    tokens = first_hitting(task.process, task.denoiser, 4000, 4, seed=1)
    exact = task.exact_return(task.denoiser, sampler="first-hitting").item()
    assert abs(float(task.make_reward()(tokens).mean()) - exact) < 4 * deviation


def test_the_best_return_is_reached_and_never_exceeded():
    task = tasks.make("toy", num_tokens=2, length=3)
    assert task.best_return == float(task.reward_table.max()) == 1.0
    best = all_states(2, 3)[task.reward_table.argmax()]
    certain = TabularDenoiser(2, 3, 3)
    with torch.no_grad():
        certain.logits[:, torch.arange(3), best] = 50.0
    assert task.exact_return(certain).item() == pytest.approx(1.0)
    assert task.exact_return(task.denoiser).item() < 1.0


def test_the_best_return_of_a_prompted_toy_is_the_mean_over_prompts():
    task = tasks.make("toy", num_tokens=2, length=2, prompted=True)
    table = task.reward_table.reshape(2, 2)
    by_hand = torch.cat([table.amax(1), table.amax(0)]).mean()
    assert task.best_return == pytest.approx(float(by_hand))
    assert task.best_return < 1.0


def test_prompts_are_drawn_evenly_from_all_of_them():
    task = tasks.make("toy", num_tokens=2, length=3, prompted=True)
    drawn = task.prompt(keys_from_seed(torch.arange(6000)))
    every = task.all_prompts()
    assert every.shape == (6, 3)
    share = (drawn[:, None] == every).all(-1).double().mean(0)
    assert bool((share > 0).all())
    torch.testing.assert_close(share, torch.full((6,), 1 / 6, dtype=torch.float64), atol=0.02, rtol=0)
    assert tasks.make("toy").prompt(keys_from_seed(torch.arange(3))) is None


def test_the_law_of_a_prompted_toy_is_the_mean_over_its_prompts():
    task = tasks.make("toy", num_tokens=2, length=2, prompted=True, num_steps=2)
    laws = [task.exact_law(task.denoiser, prompt=prompt) for prompt in task.all_prompts()]
    torch.testing.assert_close(torch.stack(laws).mean(0), task.exact_law(task.denoiser))
    assert float(laws[0].detach() @ (all_states(2, 2)[:, 0] != 0).double()) == 0.0  # the first prompt is A?


def test_rewards_look_the_table_up():
    task = tasks.make("toy")
    states = all_states(3, 4)
    assert torch.equal(task.make_reward()(states), task.reward_table)
    assert (float(task.reward_table.min()), float(task.reward_table.max())) == (0.0, 1.0)
    assert torch.equal(task.judge()(states), task.held_out_table)
    assert task.make_reward("share_of_a")(torch.tensor([[0, 1, 0, 0]])).tolist() == [0.75]


@pytest.mark.parametrize("seed", range(5))
def test_the_judge_is_related_to_the_training_reward_and_another_one(seed):
    task = tasks.make("toy", seed=seed)
    tables = torch.stack([task.reward_table, task.held_out_table])
    assert 0.2 < float(tables.corrcoef()[0, 1]) < 0.95
    assert (float(task.held_out_table.min()), float(task.held_out_table.max())) == (0.0, 1.0)
    assert (task.make_reward().role, task.judge().role) == ("training", "held_out")
    with pytest.raises(HeldOutRewardError):
        task.make_reward("held_out_table")
    with pytest.raises(HeldOutRewardError):
        task.judge("table")


def test_the_training_table_is_the_one_that_it_was():
    """Figures of runs on the toy stay comparable."""
    table = tasks.make("toy", num_tokens=2, length=2).reward_table
    torch.testing.assert_close(table, torch.tensor([0.594657, 0.937752, 0.0, 1.0]), rtol=1e-5, atol=1e-6)


def test_seeds_fix_the_world():
    one, same, other = tasks.make("toy"), tasks.make("toy"), tasks.make("toy", seed=1)
    assert torch.equal(one.reward_table, same.reward_table)
    assert torch.equal(one.denoiser.logits, same.denoiser.logits)
    assert not torch.equal(one.reward_table, other.reward_table)
    assert not torch.equal(one.denoiser.logits, other.denoiser.logits)


def test_metrics_are_those_of_the_tokens():
    task = tasks.make("toy")
    tokens = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    figures = task.metrics(tokens)
    assert figures["uniqueness"] == pytest.approx(2 / 3)
    assert figures["mean_hamming"] == pytest.approx(2 / 3)
    assert figures["nearest_hamming"] == pytest.approx(1 / 3)
    assert figures["training_median"] == pytest.approx(float(task.reward_table[0]))
    assert figures["held_out_median"] == pytest.approx(float(task.held_out_table[0]))


@pytest.mark.parametrize("options", [{"num_tokens": 5}, {"num_tokens": 1}, {"length": 1}, {"length": 7}])
def test_worlds_that_cannot_be_enumerated_are_refused(options):
    with pytest.raises(InvalidArgumentError):
        tasks.make("toy", **options)


@pytest.mark.parametrize(("num_tokens", "length"), [(2, 2), (4, 6)])
def test_the_smallest_and_the_largest_world(num_tokens, length):
    task = tasks.make("toy", num_tokens=num_tokens, length=length)
    assert len(task.reward_table) == num_tokens**length
    assert "".join(task.token_texts) == "ABCD"[:num_tokens]


def test_options_that_it_does_not_take_are_named():
    words = "the task 'toy' got an unexpected keyword argument 'artefacts'. It takes: .*length"
    with pytest.raises(UnknownOptionError, match=words):
        tasks.make("toy", artefacts="DRAKES_data")
