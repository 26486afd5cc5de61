"""Trajectories for training: their law, and what is kept of them."""

import gc

import pytest
import torch

from agents.config import PolicyGradientConfig
from agents.training.collect import collect, derived_seed, first_states, rollout_size
from sepo_env import TorchRLEnv
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion.sampler import sample
from sepo_env.tasks import make
from tests.comparisons import assert_same

B, K = 6, 5


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
@pytest.mark.parametrize("corrector_steps", [0, 2])
def test_trajectories_are_the_samplers(graph: str, corrector_steps: int) -> None:
    """Predictor and correctors in the environment draw, token by token, what the sampler draws from the same seed."""
    task = make("toy", graph=graph)
    denoiser = task.load_denoiser()
    config = PolicyGradientConfig(batch_size=B, num_steps=K, corrector_steps=corrector_steps, seed=3)
    env = TorchRLEnv(task, num_envs=B, num_steps=K, seed=0)
    batches = collect(env, denoiser, config, first_iteration=4)
    for iteration in (4, 5):
        trajectories = next(batches)
        expected = sample(
            task.process,
            denoiser,
            B,
            task.length,
            num_steps=K,
            seed=derived_seed(3, iteration),
            corrector_steps=corrector_steps,
        )
        assert trajectories.shape == (B, K)
        assert torch.equal(trajectories["next", "tokens"][:, -1], expected)
        assert_same(trajectories["next", "reward"][:, -1, 0], task.make_reward()(expected))
        assert_same(trajectories["next", "time"][0, :, 0], task.process.time_grid(K)[1:].float())
        continues = torch.equal(trajectories["tokens"][:, 1:], trajectories["next", "tokens"][:, :-1])
        assert continues == (corrector_steps == 0)
    batches.close()


class LiveRates(TabularDenoiser):
    """Counts, at each call, the tensors of the rates' shape that somebody still holds."""

    most = 0

    def forward(self, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        shape = (*tokens.shape, self.num_tokens)
        LiveRates.most = max(
            LiveRates.most, sum(type(x) is torch.Tensor and x.shape == shape for x in gc.get_objects())
        )
        return super().forward(tokens, time)


def test_rates_of_one_step_exist_at_a_time() -> None:
    task = make("toy", num_tokens=3, length=4)
    denoiser = LiveRates(3, 4, vocab_size=4)
    config = PolicyGradientConfig(batch_size=7, num_steps=12)
    batches = collect(TorchRLEnv(task, num_envs=7, num_steps=12, seed=0), denoiser, config, first_iteration=0)
    LiveRates.most = 0
    trajectories = next(batches)
    batches.close()
    assert LiveRates.most <= 1
    assert "action" not in trajectories.keys(include_nested=True)
    assert all(value.shape[-1] != 3 for value in trajectories.values(include_nested=True, leaves_only=True))


def test_a_batch_depends_on_seed_iteration_and_policy_alone() -> None:
    task = make("toy")
    denoiser = task.load_denoiser()
    config = PolicyGradientConfig(batch_size=B, num_steps=K)

    def batch(iteration: int, start: int, seed: int = 0) -> torch.Tensor:
        env = TorchRLEnv(task, num_envs=B, num_steps=K, seed=int(torch.randint(99, ())))
        batches = collect(env, denoiser, config.replace(seed=seed), start)
        for _ in range(iteration - start + 1):
            tokens = next(batches)["next", "tokens"]
        batches.close()
        return tokens

    assert torch.equal(batch(3, start=0), batch(3, start=3))
    assert not torch.equal(batch(3, start=3), batch(4, start=3))
    assert not torch.equal(batch(3, start=3), batch(3, start=3, seed=1))


@pytest.mark.parametrize(
    ("batch_size", "group_size", "micro_batch_size", "expected"),
    [(32, 0, 256, 32), (512, 0, 256, 256), (32, 0, 5, 4), (7, 0, 5, 1), (32, 8, 20, 16), (32, 8, 4, 8), (6, 3, 4, 3)],
)
def test_parts_of_a_batch_divide_it_and_keep_groups_together(
    batch_size: int, group_size: int, micro_batch_size: int, expected: int
) -> None:
    config = PolicyGradientConfig(batch_size=batch_size, group_size=group_size, micro_batch_size=micro_batch_size)
    assert rollout_size(config) == expected


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_a_batch_in_parts_is_the_batch_in_one_piece(graph: str) -> None:
    task = make("toy", graph=graph)
    task.start_from(["A???", "?B??", "??CA"])
    batches, starts = [], []
    for micro_batch_size in (64, 2):
        config = PolicyGradientConfig(
            batch_size=B, num_steps=K, group_size=2, corrector_steps=1, micro_batch_size=micro_batch_size
        )
        size = rollout_size(config)
        env = TorchRLEnv(task, num_envs=size, num_steps=K, prompt_repeats=2, seed=0)
        collector = collect(env, task.load_denoiser(), config, first_iteration=2)
        batches.append(next(collector))
        collector.close()
        starts.append(first_states(env, config, 2))
    assert size == 2 < B
    for whole, parts in (batches, starts):
        assert_same(parts, whole)
    assert torch.equal(starts[0]["tokens"], batches[0]["tokens"][:, 0])


def test_derived_seeds_are_unrelated() -> None:
    seeds = {derived_seed(seed, number) for seed in range(20) for number in range(-20, 20)}
    assert len(seeds) == 800
    assert min(abs(a - b) for a in sorted(seeds)[:100] for b in sorted(seeds)[:100] if a != b) > 10_000
    assert all(0 <= seed < 2**62 for seed in seeds)
