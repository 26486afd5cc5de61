"""The dilated CNN that can be told a class: computed by hand from a state dict in the published layout."""

import pytest
import torch
from torch.nn import functional as F

from sepo_env.denoisers import (
    ClassDNAConvConfig,
    ClassDNAConvDenoiser,
    ClassifierFreeGuidance,
    load_denoiser,
    load_drakes,
)
from sepo_env.errors import CheckpointError, InvalidArgumentError, InvalidShapeError
from tests.comparisons import assert_same

CHANNELS, DILATIONS = 8, (1, 1, 4, 16, 64)


def published_state(num_classes=2):
    """Tensors of one stack by the published names, in the order of their parameters."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) / 3

    def layer(name, *shape):
        return {f"backbone.{name}.weight": draw(*shape), f"backbone.{name}.bias": draw(shape[0])}

    state = layer("linear", CHANNELS, 5, 9)
    state |= {"backbone.time_embedder.0.W": draw(CHANNELS // 2)}
    state |= layer("time_embedder.1", CHANNELS, CHANNELS)
    for i in range(5):
        state |= layer(f"convs.{i}", CHANNELS, CHANNELS, 9)
    for i in range(5):
        state |= layer(f"time_layers.{i}.dense", CHANNELS, CHANNELS)
    for i in range(5):
        state |= layer(f"norms.{i}", CHANNELS)
    state |= layer("final_conv.0", CHANNELS, CHANNELS, 1) | layer("final_conv.2", 5, CHANNELS, 1)
    state |= {"backbone.cls_embedder.weight": draw(num_classes + 1, CHANNELS)}
    for i in range(5):
        state |= layer(f"cls_layers.{i}.dense", CHANNELS, CHANNELS)
    return state


def by_hand(state, tokens, labels):
    """The network at the noise 0, which is what one without time conditioning sees: sines are 0, cosines 1."""
    weights = {name.removeprefix("backbone."): value.double() for name, value in state.items()}

    def conv(name, x, dilation=1):
        kernel = weights[f"{name}.weight"]
        padding = dilation * (kernel.shape[-1] // 2)
        return F.conv1d(x, kernel, weights[f"{name}.bias"], padding=padding, dilation=dilation)

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    waves = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat_interleave(CHANNELS // 2)
    time = linear("time_embedder.1", waves[None]).relu()
    classes = weights["cls_embedder.weight"][labels]
    hidden = conv("linear", F.one_hot(tokens, 5).double().mT).relu()
    for i, dilation in enumerate(DILATIONS):
        x = hidden + (linear(f"time_layers.{i}.dense", time) + linear(f"cls_layers.{i}.dense", classes))[..., None]
        x = F.layer_norm(x.mT, (CHANNELS,), weights[f"norms.{i}.weight"], weights[f"norms.{i}.bias"]).mT
        hidden = hidden + conv(f"convs.{i}", x, dilation).relu()
    logits = conv("final_conv.2", conv("final_conv.0", hidden).relu()).mT
    return logits[..., :4].log_softmax(-1).float()


@pytest.fixture
def file(tmp_path):
    torch.save(published_state(), tmp_path / "classes.ckpt")
    return tmp_path / "classes.ckpt"


def test_it_is_the_network_by_hand(file):
    model = load_denoiser(file)
    assert isinstance(model, ClassDNAConvDenoiser)
    assert model.config == ClassDNAConvConfig(channels=CHANNELS, num_stacks=1, num_classes=2)
    tokens, labels, time = torch.randint(5, (6, 40)), torch.tensor([0, 1, 2, 0, 1, 2]), torch.full((6,), 0.5)
    expected = by_hand(published_state(), tokens, labels)
    torch.testing.assert_close(model(tokens, time, labels), expected, rtol=0, atol=1e-5)
    # Without a label it is told that there is none: the last embedding.
    torch.testing.assert_close(model(tokens, time)[2], expected[2], rtol=0, atol=1e-5)
    assert float((expected[0] - by_hand(published_state(), tokens, torch.ones_like(labels))[0]).abs().max()) > 0.01
    one_hot = F.one_hot(tokens, 5).float()
    assert_same(model.logits(one_hot, time, labels), model.logits(tokens, time, labels))


def test_guided_by_a_class(file):
    model = load_drakes(file)
    tokens, time = torch.randint(5, (3, 20)), torch.ones(3)
    high, none = (by_hand(published_state(), tokens, torch.full((3,), label)) for label in (1, 2))
    expected = (11 * high - 10 * none).log_softmax(-1)
    guided = ClassifierFreeGuidance(model, 10.0, label=1)
    torch.testing.assert_close(guided(tokens, time), expected, rtol=0, atol=2e-4)
    with pytest.raises(InvalidArgumentError, match="0 to 1"):
        ClassifierFreeGuidance(model, 1.0, label=2)


def test_averages_come_in_the_order_of_the_parameters(tmp_path):
    state = published_state()
    averages = [value + 1 for name, value in state.items() if not name.endswith("time_embedder.0.W")]
    torch.save({"state_dict": state, "ema": {"shadow_params": averages}}, tmp_path / "classes.ckpt")
    model = load_drakes(tmp_path / "classes.ckpt", weights="ema")
    assert torch.equal(model.cls_layers[4]["dense"].bias, state["backbone.cls_layers.4.dense.bias"] + 1)


def test_what_does_not_fit_is_refused(file):
    state = published_state()
    del state["backbone.cls_layers.3.dense.bias"]
    torch.save(state, file)
    with pytest.raises(CheckpointError, match="missing: .*cls_layers.3.dense.bias"):
        load_denoiser(file)
    torch.save(published_state(num_classes=0), file)
    with pytest.raises(CheckpointError, match="num_classes is 0, but must be"):
        load_denoiser(file)
    with pytest.raises(InvalidShapeError, match="tokens"):
        ClassDNAConvDenoiser(ClassDNAConvConfig(channels=8))(torch.zeros(3, dtype=torch.int64), torch.ones(1))
