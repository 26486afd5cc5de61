"""The shipped language world is as good as its cards say."""

import re

import numpy as np
import pytest
import torch

from sepo_env.assets import asset_path
from sepo_env.denoisers import TransformerDenoiser, load_denoiser
from sepo_env.tasks.codec import WordPieceCodec

ASSETS = ("text_denoiser.safetensors", "text_sentiment.safetensors", "text_sentiment_tables.npz")


@pytest.fixture(scope="module")
def tables() -> dict[str, np.ndarray]:
    with np.load(asset_path("text_sentiment_tables.npz")) as file:
        return dict(file)


def figure(tables: dict[str, np.ndarray], name: str) -> float:
    return float(tables[f"figure/{name}"])


@pytest.mark.parametrize("name", ASSETS)
def test_every_asset_has_a_card_with_data_licence_seed_and_command(name: str) -> None:
    card = asset_path(f"{name.partition('.')[0]}.md").read_text()
    for word in ("Licence", "Data", "Seed", "Command", "Limits", "python -m benchmarks.build_assets.text_"):
        assert word in card, word


def test_cards_state_the_figures_of_the_tables(tables) -> None:
    figures = [key.split("/") for key in tables if key.startswith("figure/")]
    assert {asset for _, asset, _ in figures} == {"denoiser", "sentiment"}
    for _, asset, name in figures:
        value = figure(tables, f"{asset}/{name}")
        card = asset_path(f"text_{asset}.md").read_text()
        assert re.search(rf"`{name}`[^\n]*{re.escape(f'{value:.4f}')}\b", card), name


def test_the_denoiser_beats_the_n_gram_models_and_does_not_recite(tables) -> None:
    bits = [figure(tables, f"denoiser/{name}_bits") for name in ("denoiser", "trigram", "bigram", "unigram")]
    assert bits == sorted(bits)
    assert bits[0] + 3 * figure(tables, "denoiser/denoiser_bits_error") < bits[1]
    assert figure(tables, "denoiser/samples_copied") < figure(tables, "denoiser/real_copied")
    assert figure(tables, "denoiser/samples_uniqueness") == 1.0


def test_the_classifier_beats_naive_bayes_and_agrees_with_the_judge(tables) -> None:
    for source in ("review", "clause"):
        assert figure(tables, f"sentiment/{source}_accuracy") > figure(tables, f"sentiment/{source}_bayes_accuracy")
    assert figure(tables, "sentiment/vader_pearson") > 0.5


def test_tables_hold_rising_percentiles(tables) -> None:
    percentiles = [key for key in tables if "_percentiles_" in key]
    assert len(percentiles) == 8
    for key in percentiles:
        assert tables[key].shape == (101,), key
        assert (np.diff(tables[key]) >= 0).all(), key
    bits = -tables["log_likelihood_percentiles_test"][50] / 24 / np.log(2)
    assert abs(bits - figure(tables, "denoiser/denoiser_bits")) < 0.2


def test_the_denoiser_completes_a_formula_of_the_book() -> None:
    codec = WordPieceCodec.load(asset_path("text_codec.json"))
    denoiser = load_denoiser(asset_path("text_denoiser.safetensors"))
    assert isinstance(denoiser, TransformerDenoiser)
    assert (denoiser.num_tokens, denoiser.length, denoiser.time_conditioned) == (codec.num_tokens, 24, False)
    assert denoiser.bias.dtype == torch.float32
    tokens = codec.encode(["and it came to _"], 24, "_")
    with torch.no_grad():
        likeliest = denoiser(tokens, torch.ones(1))[0, 4].argmax()
    assert codec.pieces()[likeliest] == " pass"
