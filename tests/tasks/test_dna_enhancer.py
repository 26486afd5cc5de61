"""The flagship task on its shipped assets."""

import numpy as np
import pytest
import scipy.stats
import torch

from sepo_env import tasks
from sepo_env.diffusion.sampler import sample
from sepo_env.errors import HeldOutRewardError, InvalidTokensError
from sepo_env.tasks import metrics
from sepo_env.tasks.motif_metrics import motif_counts
from sepo_env.tasks.motifs import shipped_motifs


@pytest.fixture(scope="module")
def task():
    return tasks.make("dna_enhancer")


@pytest.fixture(scope="module")
def samples(task):
    """Sixteen sequences of the pretrained denoiser in few steps."""
    return sample(task.process, task.denoiser, 16, 200, num_steps=8, seed=0)


def test_the_world_is_200_bp_of_dna(task):
    assert (task.alphabet, task.length, task.num_steps, task.num_tokens) == ("ACGT", 200, 128, 4)
    assert task.denoiser.num_tokens == 4
    log_p = task.denoiser(torch.full((1, 200), 4), torch.ones(1)).detach()
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(1, 200))


def test_the_denoiser_knows_more_than_the_composition_of_dna(task, samples):
    # Half masked, it must beat 2 bits a base on its own samples, by far on real DNA (see its card).
    keep = torch.rand(samples.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    log_p = task.denoiser(torch.where(keep, samples, 4), torch.full((16,), 0.5))
    bits = -log_p.gather(-1, samples[..., None])[..., 0][~keep].mean() / np.log(2)
    assert bits < 1.98


@pytest.mark.parametrize("name", ["activity", "activity_lcb", "held_out_activity", "accessibility", "gc"])
def test_every_reward_scores_sequences(task, samples, name):
    reward = task.rewards()[name]()
    values = reward(samples)
    assert reward.name == name
    assert values.shape == (16,)
    assert bool(torch.isfinite(values).all())


def test_roles_are_kept_apart(task):
    assert task.make_reward().name == "activity"
    assert task.make_reward().role == "training"
    assert task.judge().name == "held_out_activity"
    assert task.judge().role == "held_out"
    for spec in ("held_out_activity", {"gc": 1.0, "held_out_activity": 1.0}):
        with pytest.raises(HeldOutRewardError):
            task.make_reward(spec)
    for name in ("activity", "activity_lcb"):
        with pytest.raises(HeldOutRewardError):
            task.judge(name)


def test_the_lower_bound_is_one_deviation_below_the_mean(task, samples):
    mean, bound = task.make_reward("activity"), task.make_reward("activity_lcb")
    deviation = mean.ensemble(samples).std(0, correction=0)
    torch.testing.assert_close(bound(samples), mean(samples) - deviation)


def test_the_two_activity_oracles_are_different_networks(task):
    training, held_out = task.make_reward().ensemble, task.judge().ensemble
    assert training.config.architecture != held_out.config.architecture
    assert training.units == held_out.units == "log2(RNA/DNA)"


def test_metrics_are_what_their_parts_say(task, samples):
    figures = task.metrics(samples, likelihood_samples=4)
    held_out, training = task.judge()(samples), task.make_reward()(samples)
    assert figures["held_out_median"] == pytest.approx(float(np.median(held_out)))
    assert figures["held_out_q95"] == pytest.approx(float(np.quantile(held_out, 0.95)))
    assert figures["training_median"] == pytest.approx(float(np.median(training)))
    assert figures["oracle_gap"] == pytest.approx(float(np.median(training) - np.median(held_out)), abs=1e-6)
    accessible = task.judge("accessibility")(samples)
    assert figures["accessibility_rate"] == float((accessible > 0.5).double().mean())
    reference = task.reference["three_mers_top_0_1_percent"]
    counts = metrics.kmer_counts(samples, 3, 4).numpy()
    assert figures["kmer_correlation"] == pytest.approx(np.corrcoef(counts, reference)[0, 1])
    sites = motif_counts(samples, shipped_motifs()).numpy()
    expected = scipy.stats.spearmanr(sites, task.reference["motifs_top_0_1_percent"]).statistic
    assert figures["motif_correlation"] == pytest.approx(expected)
    likelihood = task.log_likelihood(samples[:4], num_steps=128)
    assert figures["log_likelihood_median"] == pytest.approx(float(np.median(likelihood)))
    low, high = task.reference["log_likelihood_percentiles_dhs_test"][[5, 95]]
    assert figures["likely_as_real"] == float(((likelihood >= low) & (likelihood <= high)).double().mean())
    assert figures["uniqueness"] == 1.0
    assert 100 < figures["mean_hamming"] < 170
    assert 0 < figures["nearest_hamming"] <= figures["mean_hamming"]
    assert 1.0 < figures["position_entropy"] <= 2.0
    assert "log_likelihood_median" not in task.metrics(samples, likelihood_samples=0)


def test_sequences_are_called_likely_only_where_real_ones_were_measured_alike(task, samples):
    given = torch.zeros_like(samples[:4], dtype=torch.bool)
    given[:, :10] = True
    options = {"likelihood_samples": 2, "num_likelihood_steps": 2}
    for prompt_mask, names in ((None, {"log_likelihood_median"}), (given, {"log_likelihood_median"})):
        figures = task.metrics(samples[:4], prompt_mask=prompt_mask, **options)
        assert {name for name in figures if "like" in name} == names
    bound = task.log_likelihood(samples[:2], num_steps=2, prompt_mask=given[:2])
    assert figures["log_likelihood_median"] == pytest.approx(float(np.median(bound)))
    assert bool((bound > task.log_likelihood(samples[:2], num_steps=2)).all())  # ten bases fewer to be surprised at
    other = tasks.make("dna_enhancer", denoiser=task.load_denoiser())
    assert "likely_as_real" not in other.metrics(samples[:4], likelihood_samples=1)


def test_likelihoods_do_not_depend_on_the_batch(task, samples):
    together = task.log_likelihood(samples, num_steps=3, seed=5)
    torch.testing.assert_close(task.log_likelihood(samples[:3], num_steps=3, seed=5), together[:3])
    # Nats a sequence: 200 bases at somewhat under two bits each.
    assert bool(((together > -330) & (together < -150)).all())


def test_masked_sequences_are_not_scored(task, samples):
    unfinished = samples.clone()
    unfinished[0, 0] = 4
    with pytest.raises(InvalidTokensError):
        task.make_reward()(unfinished)


def test_names_are_the_alphabets(task, samples):
    assert task.encode(task.decode(samples)).equal(samples)
