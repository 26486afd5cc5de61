"""Perplexity by hand on a tiny GPT-2; win rates whose answer is known."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from sepo_env.errors import CheckpointError, InvalidArgumentError, RewardError
from sepo_env.tasks.language_metrics import (
    Perplexity,
    length_controlled_win_rate,
    play,
    reward_judge,
)
from sepo_env.tasks.metrics import distinct_n

spec = importlib.util.spec_from_file_location("hf_models", Path(__file__).parents[1] / "hf_models.py")
hf_models = importlib.util.module_from_spec(spec)
sys.modules.setdefault("hf_models", hf_models)
spec.loader.exec_module(hf_models)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt2")
    tokenizer = hf_models.make_tokenizer()
    shape = {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    library = hf_models.transformers()
    torch.manual_seed(3)
    model = library.GPT2LMHeadModel(library.GPT2Config(vocab_size=len(tokenizer), **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def hand_log_likelihood(weights, ids):
    """GPT-2 with one block and two heads, written out one position at a time in float64."""
    w = {name: value.double() for name, value in weights.items()}

    def norm(x, name):
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    inputs = [w["wte.weight"][token] + w["wpe.weight"][place] for place, token in enumerate(ids)]
    parts = [dense(norm(x, "h.0.ln_1"), "h.0.attn.c_attn").split(8) for x in inputs]
    total = 0.0
    for place in range(len(ids) - 1):
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            query = parts[place][0][head]
            scores = torch.stack([query @ parts[j][1][head] / 2.0 for j in range(place + 1)]).softmax(0)
            heads.append(sum(scores[j] * parts[j][2][head] for j in range(place + 1)))
        x = inputs[place] + dense(torch.cat(heads), "h.0.attn.c_proj")
        inner = dense(norm(x, "h.0.ln_2"), "h.0.mlp.c_fc")
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = norm(x + dense(inner, "h.0.mlp.c_proj"), "ln_f")
        logits = w["wte.weight"] @ x
        total += float(logits[ids[place + 1]] - logits.exp().sum().log())
    return total


def test_perplexity_is_that_of_the_network_by_hand(folder) -> None:
    perplexity = Perplexity(folder, batch_size=2)
    weights = dict(perplexity.model.transformer.state_dict())
    texts = ["a b c d d", "b", "d a", "c c a"]
    ids = [[hf_models.LETTERS.index(letter) + 5 for letter in text.split()] for text in texts]
    by_hand = [hand_log_likelihood(weights, row) for row in ids]
    totals, counts = perplexity.log_likelihoods(texts)
    assert counts.tolist() == [4, 0, 1, 2]
    assert totals.tolist() == pytest.approx(by_hand, abs=1e-5)
    # Weighted by tokens: not the mean of the texts' perplexities.
    assert perplexity(texts) == pytest.approx(math.exp(-sum(by_hand) / 7), rel=1e-6)
    assert Perplexity(folder, batch_size=1)(texts) == pytest.approx(perplexity(texts), rel=1e-6)


def test_texts_are_cut_to_the_room_of_the_model(folder, tmp_path) -> None:
    perplexity = Perplexity(folder)
    assert perplexity.log_likelihoods(["a b c d " * 4])[1].tolist() == [7]
    assert Perplexity(folder, max_length=3).log_likelihoods(["a b c d"])[1].tolist() == [2]
    with pytest.raises(InvalidArgumentError, match="nothing to predict"):
        perplexity(["a", ""])
    with pytest.raises(CheckpointError, match="config.json"):
        Perplexity(tmp_path)


def test_a_bidirectional_model_is_refused(tmp_path) -> None:
    torch.manual_seed(0)
    bert = hf_models.save_masked_lm(tmp_path / "bert", tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match="BertLMHeadModel is not causal.*give a causal language model"):
        Perplexity(bert)
    library, tokenizer = hf_models.transformers(), hf_models.make_tokenizer()
    # As random as a fresh one: its attention hardly moves anything.
    library.BertForMaskedLM(hf_models.make_config("bert", tokenizer)).save_pretrained(tmp_path / "fresh")
    tokenizer.save_pretrained(tmp_path / "fresh")
    with pytest.raises(CheckpointError, match="not causal"):
        Perplexity(tmp_path / "fresh")
    library.BertLMHeadModel(hf_models.make_config("bert", tokenizer, is_decoder=True)).save_pretrained(tmp_path / "ok")
    tokenizer.save_pretrained(tmp_path / "ok")
    assert Perplexity(tmp_path / "ok")(["a b c"]) > 1


def test_a_prompt_is_context_and_not_predicted(folder) -> None:
    perplexity = Perplexity(folder, batch_size=2)
    weights = dict(perplexity.model.transformer.state_dict())
    texts, prompts = ["a b c d d", "a b c d d", "c c a", "d a b", "b"], ["a b", "", "c c a", "d", "b"]

    def by_hand(text, prompt):
        ids = [[hf_models.LETTERS.index(letter) + 5 for letter in part.split()] for part in (text, prompt)]
        return hand_log_likelihood(weights, ids[0]) - hand_log_likelihood(weights, ids[1])

    totals, counts = perplexity.log_likelihoods(texts, prompts)
    assert counts.tolist() == [3, 4, 0, 2, 0]
    assert totals.tolist() == pytest.approx([by_hand(*pair) for pair in zip(texts, prompts, strict=True)], abs=1e-5)
    assert perplexity(texts, prompts) == pytest.approx(math.exp(-float(totals.sum()) / 9))
    assert perplexity(texts, [""] * 5) == pytest.approx(perplexity(texts))
    for wrong, message in [(["a b"], "one for each"), (["b", *prompts[1:]], "does not begin with its prompt 'b'")]:
        with pytest.raises(InvalidArgumentError, match=message):
            perplexity(texts, wrong)


def test_a_token_across_the_border_is_the_responses(folder) -> None:
    perplexity = Perplexity(folder)
    perplexity.tokenizer = hf_models.make_tokenizer((*hf_models.SPECIALS, "a", "b", "ab", "d"))
    assert perplexity.log_likelihoods(["a ab d"], ["a a"])[1].tolist() == [2]


def test_a_tokenizer_without_offsets_finds_the_border_by_the_prompts_tokens(folder) -> None:
    perplexity, tokenizer = Perplexity(folder), hf_models.make_tokenizer((*hf_models.SPECIALS, "a", "b", "ab", "d"))

    class Slow:
        is_fast = False

        def __call__(self, text, return_offsets_mapping=False, **options):
            assert not return_offsets_mapping
            return tokenizer(text, **options)

    perplexity.tokenizer = Slow()
    assert perplexity.log_likelihoods(["a ab d", "a ab d"], ["a a", "a ab"])[1].tolist() == [2, 1]


def test_n_grams_are_counted_where_something_was_written() -> None:
    tokens = torch.tensor([[7, 7, 0, 0, 1], [7, 0, 0, 1, 2]])
    free = torch.tensor([[False, False, True, True, True], [False, True, True, True, False]])
    assert distinct_n(tokens, 1, free) == pytest.approx(2 / 6)
    assert distinct_n(tokens, 2, free) == pytest.approx(2 / 4)
    assert math.isnan(distinct_n(tokens, 4, free))
    assert distinct_n(tokens, 1) == pytest.approx(4 / 10)


def games(count=4000, theta=0.0, phi=0.0, mean=0.0, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.normal(mean, 10.0, count)
    probability = expit(theta + phi * np.tanh(lengths / lengths.std()))
    return probability, lengths


def test_the_model_that_made_the_probabilities_is_found() -> None:
    wins, lengths = games(theta=0.7, phi=1.5, mean=8.0)
    found = length_controlled_win_rate(wins, lengths, prior_sd=math.inf)
    assert found.length_controlled == pytest.approx(expit(0.7), abs=1e-5)
    assert found.length_effect == pytest.approx(1.5, abs=1e-4)
    assert found.raw == pytest.approx(wins.mean())
    assert found.raw > found.length_controlled + 0.05


def test_a_judge_that_only_likes_length_sees_no_winner() -> None:
    generator = np.random.default_rng(1)
    lengths = generator.normal(6.0, 10.0, 4000).round()
    wins = np.where(lengths == 0, 0.5, lengths > 0)  # ties are halves
    found = length_controlled_win_rate(wins, lengths)
    assert found.raw > 0.7
    assert found.length_controlled == pytest.approx(0.5, abs=0.03)
    assert found.length_effect > 5


@pytest.mark.parametrize("phi", [0.0, 2.0])
def test_swapping_the_sides_gives_one_less_the_rate(phi) -> None:
    probability, lengths = games(300, theta=0.4, phi=phi, mean=5.0)
    wins = np.random.default_rng(2).random(300) < probability
    one = length_controlled_win_rate(wins, lengths)
    other = length_controlled_win_rate(~wins, -lengths)
    assert one.raw + other.raw == pytest.approx(1.0)
    assert one.length_controlled + other.length_controlled == pytest.approx(1.0, abs=1e-6)
    assert one.length_effect == pytest.approx(other.length_effect, abs=1e-5)


def test_extreme_and_degenerate_games() -> None:
    assert length_controlled_win_rate([1.0, 0.5, 0.0, 0.5], [0, 0, 0, 0]).length_controlled == 0.5
    assert length_controlled_win_rate([0.5] * 4, [1, -2, 5, 9]).length_controlled == pytest.approx(0.5, abs=1e-9)
    always = length_controlled_win_rate([True] * 6, [3, -3, 1, -1, 2, -2])
    assert always.length_controlled > 0.999
    # A difference that never varies tells nothing of its effect; the raw rate is there all the same.
    constant = length_controlled_win_rate([1, 0, 1, 1], [4] * 4)
    assert constant.raw == 0.75
    assert math.isnan(constant.length_controlled)
    with pytest.raises(InvalidArgumentError, match="some game"):
        length_controlled_win_rate([], [])
    with pytest.raises(InvalidArgumentError, match="in \\[0, 1\\]"):
        length_controlled_win_rate([1.5, 0], [1, 2])


def test_both_orders_take_out_a_preference_for_the_first_place() -> None:
    ours, theirs = ["good", "bad!", "good one"], ["bad", "good", "bad"]

    def judge(prompt, first, second):
        return min(1.0, 0.3 + 0.5 * ("good" in first) + 0.0 * ("good" in second))

    assert play(judge, [""] * 3, ours, theirs).raw == pytest.approx((0.75 + 0.25 + 0.75) / 3)
    assert play(judge, [""] * 3, ours, theirs, both_orders=False).raw == pytest.approx((0.8 + 0.3 + 0.8) / 3)
    first = play(lambda p, a, b: True, [""] * 3, ours, theirs)
    assert (first.raw, first.num_games) == (0.5, 3)
    with pytest.raises(RewardError, match="answered 7 to"):
        play(lambda p, a, b: 7, ["say"], ["a"], ["b"])
    for answer in ("A", None, "0.5", [0.5], math.nan):
        with pytest.raises(RewardError, match="to the prompt 'say'; it must give the probability"):
            play(lambda p, a, b, answer=answer: answer, ["say"], ["a"], ["b"])
    with pytest.raises(InvalidArgumentError, match="as many of each"):
        play(judge, ["say"], ours, theirs)


def test_a_judge_that_fails_is_named_with_the_prompt() -> None:
    def judge(prompt, first, second):
        raise ConnectionError("no route to the service")

    with pytest.raises(RewardError, match="the prompt 'say' \\(ConnectionError: no route") as caught:
        play(judge, ["say"], ["a"], ["b"])
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_a_reward_model_judges_prompt_and_response_together() -> None:
    seen = []

    def score(texts):
        seen.extend(texts)
        return torch.tensor([2.0, 1.0])

    assert reward_judge(score)("say", "yes", ", no") == pytest.approx(expit(1.0))
    assert reward_judge(score)("say:\n", "yes", "") == pytest.approx(expit(1.0))
    assert seen == ["say yes", "say , no", "say:\nyes", "say:\n"]
