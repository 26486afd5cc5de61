"""The dilated CNN on its own: its shape, what it reads, and what is refused."""

import pytest
import torch

from sepo_env.denoisers import DNAConvConfig, DNAConvDenoiser
from sepo_env.errors import InvalidArgumentError, InvalidShapeError


def small(**settings) -> DNAConvDenoiser:
    return DNAConvDenoiser(DNAConvConfig(channels=8, num_stacks=2, **settings))


def test_the_defaults_are_the_published_model():
    with torch.device("meta"):
        model = DNAConvDenoiser(DNAConvConfig())
    assert len(model.convs) == 20
    assert [conv.dilation[0] for conv in model.convs] == [1] * 8 + [4] * 4 + [16] * 4 + [64] * 4
    assert {tuple(conv.weight.shape) for conv in model.convs} == {(128, 128, 9)}
    assert tuple(model.linear.weight.shape) == (128, 5, 9)


def test_the_convolutions_are_those_of_torch():
    model = small().double()
    tokens = torch.randint(5, (2, 30))
    hidden = torch.relu(model.linear(torch.nn.functional.one_hot(tokens, 5).double().mT))
    shift = torch.relu(model.time_embedder(torch.zeros(1, dtype=torch.float64)))
    for conv, time_layer, norm in zip(model.convs, model.time_layers, model.norms, strict=True):
        normed = norm((hidden + time_layer["dense"](shift)[..., None]).mT).mT
        hidden = hidden + torch.relu(conv(normed))
    expected = model.final_conv(hidden).mT
    torch.testing.assert_close(model.logits(tokens, torch.ones(2)), expected, atol=1e-12, rtol=0)


def test_training_mode_is_as_quiet_as_evaluation_mode():
    model, tokens = small().train(), torch.randint(5, (2, 12))
    assert torch.equal(model(tokens, torch.ones(2)), model(tokens, torch.ones(2)))


@pytest.mark.parametrize("conditioned", [False, True])
def test_time_enters_where_the_model_says_so(conditioned):
    model, tokens = small(time_conditioned=conditioned), torch.randint(5, (1, 12))
    early, late = (model(tokens, torch.tensor([time])) for time in (0.2, 0.7))
    assert model.time_conditioned is conditioned
    assert torch.equal(early, late) is not conditioned


def test_the_frequencies_are_not_trained():
    model = small()
    assert "time_embedder.0.W" in model.state_dict()
    assert "time_embedder.0.W" not in dict(model.named_parameters())


def test_other_shapes_and_sizes_are_refused():
    with pytest.raises(InvalidShapeError, match=r"tokens has shape \(3,\)"):
        small()(torch.zeros(3, dtype=torch.int64), torch.ones(1))
    with pytest.raises(InvalidShapeError, match=r"tokens has shape \(2, 0\), expected \(B, L\) with L >= 1"):
        small()(torch.zeros(2, 0, dtype=torch.int64), torch.ones(2))
    for settings in ({"channels": 7}, {"num_stacks": 0}, {"num_stacks": 1001}, {"num_tokens": 1}):
        with pytest.raises(InvalidArgumentError, match=f"{next(iter(settings))} is"):
            DNAConvConfig(**settings)
