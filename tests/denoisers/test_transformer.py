"""The small transformer, against loops over positions and heads written out."""

import math

import pytest
import torch
from torch.nn import functional as F

from sepo_env.denoisers import TransformerDenoiser, TransformerDenoiserConfig, load_denoiser, save_denoiser
from sepo_env.errors import InvalidArgumentError

CONFIG = TransformerDenoiserConfig(num_tokens=6, vocab_size=7, width=8, depth=2, heads=2)


@pytest.fixture
def model() -> TransformerDenoiser:
    model = TransformerDenoiser(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.double()


def by_hand(model: TransformerDenoiser, tokens: torch.Tensor) -> torch.Tensor:
    """One sequence (L,) -> (L, V), position by position and pair by pair."""
    width, heads, size = 8, 2, 4
    hidden = model.embedding.weight[tokens] * math.sqrt(width)
    for block in model.blocks:
        normed = F.layer_norm(hidden, (width,), block.attention_norm.weight, block.attention_norm.bias)
        queries, keys, values = (normed @ block.queries_keys_values.weight.T).chunk(3, dim=-1)
        mixed = torch.zeros_like(hidden)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            turned = []
            for vectors in (queries[:, part], keys[:, part]):
                rows = []
                for position, vector in enumerate(vectors):
                    row = vector.clone()
                    for pair in range(size // 2):
                        angle = position * 10_000 ** (-2 * pair / size)
                        a, b = vector[pair], vector[pair + size // 2]
                        row[pair] = a * math.cos(angle) - b * math.sin(angle)
                        row[pair + size // 2] = b * math.cos(angle) + a * math.sin(angle)
                    rows.append(row)
                turned.append(torch.stack(rows))
            weights = (turned[0] @ turned[1].T / math.sqrt(size)).softmax(-1)
            mixed[:, part] = weights @ values[:, part]
        hidden = hidden + mixed @ block.attention_out.weight.T
        normed = F.layer_norm(hidden, (width,), block.mlp_norm.weight, block.mlp_norm.bias)
        inner = F.gelu(normed @ block.mlp_in.weight.T + block.mlp_in.bias)
        hidden = hidden + inner @ block.mlp_out.weight.T + block.mlp_out.bias
    hidden = F.layer_norm(hidden, (width,), model.norm.weight, model.norm.bias)
    return (hidden @ model.embedding.weight[:6].T + model.bias).log_softmax(-1)


def test_it_computes_what_it_says(model) -> None:
    tokens = torch.randint(7, (2, 4))
    log_p = model(tokens, torch.ones(3))
    for row, expected in zip(log_p, map(lambda row: by_hand(model, row), tokens), strict=True):
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-5)


def test_only_distances_count(model) -> None:
    # Rotary positions: were all positions shifted by one, queries and keys would turn alike.
    block, hidden = model.blocks[0], torch.randn(1, 6, 8).double()
    from sepo_env.denoisers.transformer import _rotation

    cosine, sine = _rotation(9, 4, hidden)
    first, later = (block(hidden, (cosine[start : start + 6], sine[start : start + 6])) for start in (0, 3))
    torch.testing.assert_close(first, later, rtol=1e-6, atol=1e-6)


def test_every_position_sees_every_other_one(model) -> None:
    tokens = torch.randint(6, (1, 5))
    for changed in range(5):
        other = tokens.clone()
        other[0, changed] = (tokens[0, changed] + 1) % 6
        difference = (model(tokens, torch.ones(1)) - model(other, torch.ones(1))).abs().amax(-1)[0]
        assert (difference > 1e-9).all()


def test_a_score_is_zero_where_nothing_changes() -> None:
    config = TransformerDenoiserConfig(num_tokens=3, vocab_size=3, width=8, depth=1, heads=2, parameterisation="score")
    tokens = torch.tensor([[0, 1, 2, 1]])
    scores = TransformerDenoiser(config)(tokens, torch.ones(1))
    assert scores.gather(-1, tokens[..., None]).eq(0).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"vocab_size": 9}, "vocab_size is 9"), ({"width": 10}, "width of 10"), ({"depth": 0}, "depth is 0, but must be")],
)
def test_sizes_that_do_not_fit_are_refused(changes, words) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        TransformerDenoiserConfig(**{"num_tokens": 6, "vocab_size": 7, "width": 8, "heads": 2, **changes})


def test_tokens_have_two_axes(model) -> None:
    with pytest.raises(InvalidArgumentError, match=r"\(B, L\)"):
        model(torch.zeros(5, dtype=torch.int64), torch.ones(1))


def test_half_precision_on_disk_comes_back_as_float32(tmp_path, model) -> None:
    path = tmp_path / "denoiser.safetensors"
    save_denoiser(model.half(), path)
    loaded = load_denoiser(path)
    assert isinstance(loaded, TransformerDenoiser)
    assert loaded.config == CONFIG
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].float())
