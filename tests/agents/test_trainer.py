"""The loop: cost, budgets, micro-batches, resumption, interruption, divergence, evaluation."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import DDPO, PPO, REINFORCE, SEPO, Agent
from agents.training.collect import derived_seed
from agents.training.logs import METRICS_FILE, Row, read_metrics
from agents.training.recovery import checkpoint_path
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion.enumeration import state_laws
from sepo_env.errors import CheckpointError, DivergenceError, RewardError
from sepo_env.rewards import Reward
from sepo_env.tasks import make

B, K = 8, 4
SMALL: dict[str, Any] = {
    "kl_coeff": 0.0,
    "num_iterations": 4,
    "batch_size": B,
    "num_steps": K,
    "states_per_trajectory": 3,
    "learning_rate": 0.05,
    "eval_every": 2,
    "eval_samples": 10,
    "tensorboard": "off",
}


def small(kind: type[Agent] = SEPO, **overrides: Any) -> Agent:
    task = overrides.pop("task", None) or make("toy", num_tokens=2, length=3)
    reward = overrides.pop("reward", None)
    return kind(task, reward=reward, device="cpu", **(SMALL | overrides))


def run(agent: Agent, **options: Any) -> list[Row]:
    return agent.train(progress=False, **options)


def timeless(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "wall_time"} for row in rows]


def same_parameters(one: Agent, other: Agent) -> bool:
    theirs = other.denoiser.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.denoiser.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "settings", "update"),
    [
        (SEPO, {}, 3 * 24),
        (SEPO, {"states_per_trajectory": 0}, 3 * 32),
        (SEPO, {"inner_epochs": 2, "minibatches": 3}, 24 + 2 * 3 * 24),  # the old policy is asked once more
        (SEPO, {"kl_coeff": 0.1}, (3 + 1) * 24),  # and so is the reference
        (DDPO, {"inner_epochs": 3, "kl_coeff": 0.1}, 24 + 3 * (3 + 1) * 24),
        (PPO, {"inner_epochs": 1}, 3 * 24),  # the critic is no denoiser
        (REINFORCE, {}, 3 * 24),
    ],
)
def test_cost_is_what_it_should_be(kind: type[Agent], settings: dict[str, Any], update: int) -> None:
    rows = run(small(kind, **settings))
    assert [row["nfe"] for row in rows] == [n * (B * K + update) for n in range(1, 5)]
    assert [row["reward_calls"] for row in rows] == [n * B for n in range(1, 5)]


def test_correctors_and_evaluations_are_counted() -> None:
    rows = run(small(corrector_steps=2))
    sampling = K + 2 * (K - 1)
    assert rows[-1]["nfe"] == 4 * (B * sampling + 3 * 24)
    # Two evaluations of 10 sequences: the policy with its correctors, the reference at each step; two rewards.
    assert [row["eval_nfe"] for row in rows] == [0, 10 * (sampling + K), 10 * (sampling + K), 20 * (sampling + K)]
    assert [row["eval_reward_calls"] for row in rows] == [0, 20, 20, 40]


@pytest.mark.parametrize("eval_every", [0, 1])
@pytest.mark.parametrize(
    ("budget", "iterations"),
    [
        ({"max_nfe": 3 * 104}, 3),
        ({"max_nfe": 3 * 104 - 1}, 2),
        ({"max_nfe": 4 * 104 - 1}, 3),
        ({"max_reward_calls": 2 * B}, 2),
        ({"max_reward_calls": 2 * B + 7}, 2),
        ({"max_reward_calls": 2 * B, "max_nfe": 104}, 1),
        ({"max_reward_calls": B - 1}, 0),
        ({"max_nfe": B * K - 1}, 0),
    ],
)
def test_budgets_stop_before_they_would_be_exceeded(budget: dict[str, int], iterations: int, eval_every: int) -> None:
    rows = run(small(num_iterations=10, eval_every=eval_every, **budget))
    assert len(rows) == iterations


@pytest.mark.parametrize(("kind", "settings"), [(PPO, {}), (SEPO, {"form": "snis", "entropy_coeff": 0.1})])
def test_micro_batches_change_nothing(kind: type[Agent], settings: dict[str, Any]) -> None:
    # Figures of ratios are means over the micro-batches of means over those that have any.
    skipped = {"wall_time", "ess", "kl_approx", *(["clip_fraction"] if "form" in settings else [])}
    agents = [small(kind, micro_batch_size=size, inner_epochs=2, kl_coeff=0.1, **settings) for size in (1000, 5)]
    whole, parts = (run(agent) for agent in agents)
    one, other = (dict(agent.denoiser.state_dict()) for agent in agents)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for row, other_row in zip(whole, parts, strict=True):
        for column, value in row.items():
            if column not in skipped and value is not None:
                assert other_row[column] == pytest.approx(value, rel=1e-3, abs=1e-5), column


def test_minibatches_have_gradients_of_the_whole_batchs_size() -> None:
    """With a step size of nearly 0, the mean over equal minibatches is the loss of the whole batch."""
    settings = {"learning_rate": 1e-12, "num_iterations": 1, "eval_every": 0}
    whole = run(small(**settings))[0]
    parts = run(small(**settings, minibatches=4))[0]
    for column in ("loss_objective", "entropy"):
        assert parts[column] == pytest.approx(whole[column], rel=1e-5)


def test_warmup_raises_the_step_size_linearly() -> None:
    rows = run(small(warmup_iterations=3, learning_rate=0.3))
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.1, 0.2, 0.3, 0.3])


def test_evaluation_uses_the_training_sampler() -> None:
    agent = small(num_iterations=2, corrector_steps=1, seed=5)
    row = run(agent)[-1]
    tokens = agent.sample_tokens(10, seed=derived_seed(5, -1))
    values = agent.task.judge()(tokens)
    assert row["held_out_reward"] == float(values.median())
    assert row["held_out_reward_mean"] == pytest.approx(float(values.mean()))
    trained_on = agent.reward(tokens)
    assert row["eval_reward"] == float(trained_on.median())
    assert row["eval_reward_mean"] == pytest.approx(float(trained_on.mean()))
    assert abs(row["eval_reward_mean"] - row["held_out_reward_mean"]) > 0.01  # two rewards, of which one judges


def test_kl_column_is_the_path_divergence() -> None:
    """0 for an untrained policy; for a trained one, the divergence that enumeration gives."""
    untrained = run(small(num_iterations=1, eval_every=1, learning_rate=1e-12))[0]
    assert untrained["kl"] == pytest.approx(0.0, abs=1e-6)
    agent = small(num_iterations=3, eval_every=3, learning_rate=0.3, eval_samples=4000)
    row = run(agent)[-1]
    exact = 0.0
    with torch.no_grad():
        paths = (state_laws(agent.task.process, d, agent.task.length, K) for d in (agent.denoiser, agent.task.denoiser))
        for (probability, _, _, law), (_, _, _, reference) in zip(*paths, strict=True):
            exact += float(probability @ law.kl(reference).sum(-1))
    assert exact > 0.1
    assert row["kl"] == pytest.approx(exact, rel=0.05)


def test_raw_rewards_are_logged() -> None:
    agent = small(reward=lambda sequences: [1000.0 + s.count("A") for s in sequences], num_iterations=1)
    row = run(agent)[0]
    assert 1000 <= row["reward_mean"] <= 1003
    assert row["reward_std"] > 0


def test_rows_have_the_same_columns_and_stand_in_the_table(tmp_path: Path) -> None:
    agent = small(log_dir=str(tmp_path), kl_coeff=0.1, entropy_coeff=0.1)
    rows = run(agent)
    assert agent.history == rows
    assert len({tuple(row) for row in rows}) == 1
    assert read_metrics(tmp_path) == rows
    assert [row["held_out_reward"] is None for row in rows] == [True, False, True, False]
    assert all(math.isfinite(value) for row in rows for value in row.values() if value is not None)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (SEPO, {"inner_epochs": 2, "minibatches": 2, "kl_coeff": 0.05, "corrector_steps": 1}),
        (SEPO, {"form": "snis", "advantage": "leave-one-out"}),
        (PPO, {"warmup_iterations": 3}),
        (DDPO, {"form": "sf", "states_per_trajectory": 0}),
        (REINFORCE, {"max_nfe": 10_000}),
    ],
)
def test_resumed_run_is_the_uninterrupted_one(tmp_path: Path, kind: type[Agent], settings: dict[str, Any]) -> None:
    whole = small(kind, log_dir=str(tmp_path / "whole"), **settings)
    run(whole)
    parted = str(tmp_path / "parted")
    run(small(kind, log_dir=parted, num_iterations=2, **settings))
    torch.randn(7)  # what happens in between does not matter
    resumed = small(kind, log_dir=parted, **settings)
    run(resumed, resume=True)
    assert same_parameters(whole, resumed)
    assert timeless(resumed.history) == timeless(whole.history)
    assert timeless(read_metrics(parted)) == timeless(whole.history)


def test_budget_can_be_raised_on_resume(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert len(run(small(log_dir=folder, num_iterations=9, max_nfe=2 * 104))) == 2
    assert len(run(small(log_dir=folder, num_iterations=9, max_nfe=3 * 104), resume=True)) == 3


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    run(small(log_dir=str(tmp_path), num_iterations=1))
    with pytest.raises(CheckpointError, match=r"seed was 0, is 1"):
        run(small(log_dir=str(tmp_path), seed=1), resume=True)
    with pytest.raises(CheckpointError, match="agent was 'sepo', is 'reinforce'"):
        run(small(REINFORCE, log_dir=str(tmp_path)), resume=True)
    with pytest.raises(CheckpointError, match="task.length was 3, is 4"):
        run(small(task=make("toy", num_tokens=2, length=4), log_dir=str(tmp_path)), resume=True)
    with pytest.raises(CheckpointError, match="reward was 'table', is 'share_of_a'"):
        run(small(reward="share_of_a", log_dir=str(tmp_path)), resume=True)


def test_resume_needs_a_whole_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no log_dir"):
        run(small(), resume=True)
    with pytest.raises(CheckpointError, match="there is no such file"):
        run(small(log_dir=str(tmp_path)), resume=True)
    run(small(log_dir=str(tmp_path), num_iterations=1))
    path = checkpoint_path(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        run(small(log_dir=str(tmp_path)), resume=True)


def test_a_new_run_does_not_overwrite_an_old_one(tmp_path: Path) -> None:
    run(small(log_dir=str(tmp_path), num_iterations=1))
    before = checkpoint_path(tmp_path).read_bytes(), (tmp_path / METRICS_FILE).read_bytes()
    with pytest.raises(CheckpointError, match="resume=True"):
        run(small(log_dir=str(tmp_path)))
    assert (checkpoint_path(tmp_path).read_bytes(), (tmp_path / METRICS_FILE).read_bytes()) == before


def test_checkpoints_are_written_when_they_are_due_and_at_the_end(tmp_path: Path) -> None:
    path, seen = checkpoint_path(tmp_path), []
    agent = small(log_dir=str(tmp_path), num_iterations=5, checkpoint_every=2)
    run(agent, callbacks=[lambda row: seen.append(path.read_bytes() if path.exists() else b"")])
    assert seen[0] == b""
    assert seen[1] == seen[2] != b""
    assert seen[3] == seen[4] != seen[2]
    assert path.read_bytes() != seen[4]


class Stops(Reward):
    """Counts A, and raises once, at a given call."""

    name = "stops"

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.left = at
        self.error = error

    def score(self, tokens: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise self.error("stop")
        return (tokens == 0).float().sum(-1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RewardError])
def test_whatever_stops_an_iteration_leaves_the_last_whole_one(tmp_path: Path, error: type[BaseException]) -> None:
    settings: dict[str, Any] = {"eval_every": 0, "inner_epochs": 2}
    whole = small(reward=Stops(-1, error), **settings)
    run(whole)
    stopped = small(reward=Stops(3, error), log_dir=str(tmp_path), **settings)
    with pytest.raises(error) as caught:
        run(stopped)
    note = caught.value.__notes__[-1]
    assert "last whole iteration is 2" in note
    assert str(checkpoint_path(tmp_path)) in note
    assert len(stopped.history) == 2
    resumed = small(reward=Stops(-1, error), log_dir=str(tmp_path), **settings)
    run(resumed, resume=True)
    assert same_parameters(whole, resumed)
    assert timeless(resumed.history) == timeless(whole.history)


def test_interruption_between_iterations(tmp_path: Path) -> None:
    def stop(row: Row) -> None:
        if row["iteration"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small(log_dir=str(tmp_path)), callbacks=[stop])
    seen: list[Row] = []
    run(small(log_dir=str(tmp_path)), resume=True, callbacks=[seen.append])
    assert [row["iteration"] for row in seen] == [4]


class Poisoned(TabularDenoiser):
    """Answers NaN to whoever wants to learn from it, once it is told to."""

    poison = False

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        output = super().forward(tokens, time)
        return output * math.nan if self.poison and torch.is_grad_enabled() else output


def test_nan_stops_the_run_and_spares_the_checkpoint(tmp_path: Path) -> None:
    task = make("toy", num_tokens=2, length=3, denoiser=Poisoned(2, 3, vocab_size=3))
    agent = small(task=task, log_dir=str(tmp_path), checkpoint_every=100)
    good: list[Tensor] = []

    def poison(row: Row) -> None:
        if row["iteration"] == 2:
            agent.denoiser.poison = True
            good.append(agent.denoiser.logits.detach().clone())

    with pytest.raises(
        DivergenceError, match=r"iteration 3: loss_objective is nan.*last whole iteration is 2"
    ) as caught:
        run(agent, callbacks=[poison])
    assert str(checkpoint_path(tmp_path)) in str(caught.value)
    rescued = SEPO.load(checkpoint_path(tmp_path), task=task, learning_rate=1e-3)
    assert torch.equal(rescued.denoiser.logits, good[0])
    assert torch.isfinite(agent.denoiser.logits).all()
    assert rescued.config.learning_rate == 1e-3


def test_exploding_ratio_stops_the_run() -> None:
    settings = {"inner_epochs": 8, "learning_rate": 2.0, "max_ratio": 1.5, "num_iterations": 20}
    with pytest.raises(DivergenceError, match=r"ratio_max has reached.*max_ratio is 1.5.*no log_dir was given"):
        run(small(**settings))


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(small(PPO))
    assert torch.equal(torch.rand(3), expected)


def test_runs_are_functions_of_their_seed() -> None:
    def train(kind: type[Agent], seed: int) -> Agent:
        agent = small(kind, seed=seed)
        run(agent)
        return agent

    assert same_parameters(train(PPO, 1), train(PPO, 1))
    assert not same_parameters(train(PPO, 1), train(PPO, 2))


def test_prompted_task_is_learnt() -> None:
    """Four prompts of two letters: which letter follows is learnt for each, against the others of the same prompt."""
    task = make("toy", num_tokens=2, length=2, prompted=True)
    agent = small(task=task, batch_size=64, learning_rate=0.2, num_iterations=20, eval_every=0)
    run(agent)
    assert task.exact_return(agent.denoiser.requires_grad_(False), K) > 0.95 * task.best_return


def test_progress_bar_shows_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    small(kl_coeff=0.1).train()
    shown = capsys.readouterr().err
    assert "4/4" in shown
    for label in ("sepo", "reward=", "held-out=", "KL="):
        assert label in shown


@pytest.mark.parametrize("budget", [{"max_nfe": 2 * 104}, {"max_reward_calls": 2 * B}])
def test_progress_bar_knows_the_budget(capsys: pytest.CaptureFixture[str], budget: dict[str, int]) -> None:
    small(num_iterations=50, **budget).train()
    assert "2/2" in capsys.readouterr().err
