"""What is shipped: small, described, and as good as its cards say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sepo_env.assets import asset_path
from sepo_env.denoisers import load_denoiser
from sepo_env.errors import UnknownNameError

ASSETS = (
    "dna_denoiser.safetensors",
    "dna_activity_training.safetensors",
    "dna_activity_held_out.safetensors",
    "dna_accessibility.safetensors",
    "dna_enhancer_tables.npz",
    "dna_motifs.npz",
)
CARD_OF = {
    "denoiser": "dna_denoiser.md",
    "activity_training": "dna_activity_training.md",
    "activity_held_out": "dna_activity_held_out.md",
    "accessibility": "dna_accessibility.md",
    "motifs": "dna_motifs.md",
}


@pytest.fixture(scope="module")
def tables() -> dict[str, np.ndarray]:
    with np.load(asset_path("dna_enhancer_tables.npz")) as file, np.load(asset_path("dna_motifs.npz")) as motifs:
        return {**file, **motifs}


def figure(tables: dict[str, np.ndarray], name: str) -> float:
    return float(tables[f"figure/{name}"])


def test_everything_shipped_is_under_eight_megabytes() -> None:
    folder = asset_path(ASSETS[0]).parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8e6


@pytest.mark.parametrize("name", ASSETS)
def test_every_asset_has_a_card_with_data_licence_seed_and_command(name: str) -> None:
    card = asset_path(f"{Path(name).stem}.md").read_text()
    for word in ("Licence", "Data", "Seed", "Command", "Limits", "python -m benchmarks.build_assets."):
        assert word in card, word


def test_unknown_assets_are_refused_with_a_guess() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'dna_denoiser.safetensors'"):
        asset_path("dna_denoisr.safetensors")


def test_cards_state_the_figures_of_the_tables(tables: dict[str, np.ndarray]) -> None:
    for key, value in tables.items():
        if not key.startswith("figure/"):
            continue
        _, asset, name = key.split("/")
        card = asset_path(CARD_OF[asset]).read_text()
        assert re.search(rf"`{name}`[^\n]*\b{abs(float(value)):.4f}\b", card), key


def test_denoiser_beats_every_markov_model_on_the_held_out_chromosome(tables: dict[str, np.ndarray]) -> None:
    markov = [figure(tables, f"denoiser/markov_{order}_bits") for order in range(6)]
    assert markov == sorted(markov, reverse=True)
    error = figure(tables, "denoiser/denoiser_bits_error")
    assert figure(tables, "denoiser/denoiser_bits") + 3 * error < markov[-1]
    assert figure(tables, "denoiser/samples_three_mer_r") >= 0.97


def test_oracles_beat_the_linear_models_on_unseen_data(tables: dict[str, np.ndarray]) -> None:
    for name in ("activity_training", "activity_held_out"):
        assert figure(tables, f"{name}/pearson") > max(0.52, figure(tables, f"{name}/ridge_pearson"))
        assert figure(tables, f"{name}/shuffled_median") < figure(tables, f"{name}/real_median")
    assert figure(tables, "accessibility/auroc") > max(0.94, figure(tables, "accessibility/logistic_auroc"))


def test_tables_hold_counts_and_rising_percentiles(tables: dict[str, np.ndarray]) -> None:
    rows = {"top_0_1_percent": 22, "top_1_percent": 220}
    for name, number in rows.items():
        assert tables[f"num_rows_{name}"] == number
        assert tables[f"three_mers_{name}"].sum() == number * 198
    assert tables["three_mers_dhs_test"].sum() == 4565 * 198
    percentiles = [key for key in tables if "_percentiles" in key]
    assert len(percentiles) == 8
    for key in percentiles:
        assert tables[key].shape == (101,), key
        assert (np.diff(tables[key]) >= 0).all(), key
    likelihood = tables["log_likelihood_percentiles_dhs_test"]
    bits = -likelihood[50] / 200 / np.log(2)
    assert abs(bits - figure(tables, "denoiser/denoiser_bits")) < 0.03


def test_motifs_tell_real_sequences_from_shuffled_and_random_ones(tables: dict[str, np.ndarray]) -> None:
    samples, real = figure(tables, "motifs/samples_rho"), figure(tables, "motifs/real_rho")
    shuffled, random = figure(tables, "motifs/shuffled_rho"), figure(tables, "motifs/random_rho")
    assert min(samples, real) > max(shuffled, random) + 0.15


def test_denoiser_is_the_flagship_shape_and_prefers_a_repeat_to_its_breach() -> None:
    denoiser = load_denoiser(asset_path("dna_denoiser.safetensors"))
    assert (denoiser.num_tokens, denoiser.length, denoiser.parameterisation) == (4, 200, "posterior")
    assert not denoiser.time_conditioned
    # (CA)n microsatellites are the commonest repeats of the genome: inside of one, the next letter is known.
    tokens = torch.tensor([1, 0] * 100)[None]
    masked = tokens.clone()
    masked[0, 100] = 4
    with torch.no_grad():
        log_p = denoiser(masked, torch.tensor([0.005]))
    assert log_p[0, 100].argmax() == tokens[0, 100]
    assert log_p[0, 100].max().exp() > 0.5
