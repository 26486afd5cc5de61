"""The convolutional denoiser: normalised, local where it should be, global through its context."""

import copy

import pytest
import torch

from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig
from sepo_env.errors import InvalidArgumentError

SMALL = ConvDenoiserConfig(channels=8, stem_size=3, kernel_size=3, dilations=(1, 2), length=None)


def randomised(config: ConvDenoiserConfig) -> ConvDenoiser:
    """Return a model whose head, which starts at zero, is random."""
    torch.manual_seed(0)
    model = ConvDenoiser(config)
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.mark.parametrize("length", [1, 5, 33])
def test_posterior_is_normalised_over_the_visible_tokens(length: int) -> None:
    log_p = randomised(SMALL)(torch.randint(0, 5, (3, length)), torch.rand(3))
    assert log_p.shape == (3, length, 4)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, length))


def test_untrained_head_is_the_uniform_posterior() -> None:
    log_p = ConvDenoiser(SMALL)(torch.full((2, 7), 4), torch.ones(2))
    torch.testing.assert_close(log_p.exp(), torch.full((2, 7, 4), 0.25))


def test_a_far_token_acts_only_through_the_global_context() -> None:
    model = randomised(SMALL)
    tokens = torch.zeros(1, 60, dtype=torch.int64)
    changed = tokens.clone()
    changed[0, 50] = 3
    time = torch.ones(1)
    assert not torch.equal(model(tokens, time)[0, 0], model(changed, time)[0, 0])
    for block in model.blocks:
        torch.nn.init.zeros_(block.context.weight)
    # Half widths: stem 1, blocks 1 and 2, so position 50 reaches 46..54 and nothing else.
    change = (model(tokens, time) - model(changed, time)).abs().amax(-1)[0]
    differs = (change > 1e-5).nonzero().flatten()
    assert differs.min() == 46
    assert differs.max() == 54


def test_time_is_read_only_where_the_model_is_conditioned_on_it() -> None:
    tokens = torch.randint(0, 5, (2, 9))
    early, late = torch.full((2,), 0.1), torch.full((2,), 0.9)
    plain = randomised(SMALL)
    assert torch.equal(plain(tokens, early), plain(tokens, late))
    timed = randomised(ConvDenoiserConfig(**{**vars(SMALL), "time_conditioned": True}))
    assert not torch.allclose(timed(tokens, early), timed(tokens, late))


def test_score_of_the_current_token_is_one() -> None:
    config = ConvDenoiserConfig(**{**vars(SMALL), "vocab_size": 4, "parameterisation": "score"})
    tokens = torch.randint(0, 4, (2, 9))
    log_score = randomised(config)(tokens, torch.rand(2))
    current = log_score.gather(-1, tokens[..., None])
    assert torch.equal(current, torch.zeros_like(current))
    assert (log_score != 0).sum() == 2 * 9 * 3


def test_training_and_evaluation_mode_agree_and_rows_are_independent() -> None:
    model = randomised(SMALL)
    tokens, time = torch.randint(0, 5, (4, 21)), torch.rand(4)
    whole = model.train()(tokens, time)
    torch.testing.assert_close(model.eval()(tokens, time), whole)
    torch.testing.assert_close(model(tokens[2:3], time[2:3]), whole[2:3])
    torch.testing.assert_close(copy.deepcopy(model)(tokens, time), whole)


@pytest.mark.parametrize("change", [{"vocab_size": 6}, {"stem_size": 4}, {"kernel_size": 0}])
def test_sizes_that_cannot_work_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(change))):
        ConvDenoiserConfig(**change)


def test_unbatched_tokens_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"\(B, L\)"):
        ConvDenoiser(SMALL)(torch.zeros(5, dtype=torch.int64), torch.ones(1))
