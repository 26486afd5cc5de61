"""The diffusion transformers on their own: gradients, memory, and what each part must and must not depend on."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sepo_env.denoisers import MDLMConfig, MDLMDenoiser, SEDDConfig, SEDDDenoiser
from sepo_env.denoisers import dit as dit_module
from sepo_env.denoisers.dit import DiT, DiTConfig
from sepo_env.errors import InvalidArgumentError, InvalidShapeError, UnknownNameError

SIZES = {"width": 8, "depth": 2, "heads": 2, "cond_width": 4}
BUILDERS = {
    "mdlm": lambda num_tokens: MDLMDenoiser(MDLMConfig(num_tokens, **SIZES)),
    "sedd-absorbing": lambda num_tokens: SEDDDenoiser(SEDDConfig(num_tokens, "absorbing", **SIZES)),
    "sedd-uniform": lambda num_tokens: SEDDDenoiser(SEDDConfig(num_tokens, "uniform", **SIZES)),
}


def shaken(model):
    """Untrained weights that are not zero anywhere: a fresh DiT has closed gates."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def tokens_for(model, batch=2, length=6):
    tokens = torch.randint(model.num_tokens, (batch, length))
    if model.backbone.config.vocab_size > model.num_tokens:
        tokens[:, ::2] = model.num_tokens
    return tokens


class LargeTensors(TorchDispatchMode):
    """Counts the operations that make a new tensor of at least so many numbers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.made: list[str] = []
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= 4 * self.size:
                address = tensor.untyped_storage().data_ptr()
                if address not in self.known:
                    self.known.add(address)
                    self.made.append(str(function))
        return result


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_a_forward_makes_one_tensor_of_the_size_of_its_output(name, monkeypatch):
    monkeypatch.setattr(dit_module, "_CHUNK_ENTRIES", 4000)
    model = shaken(BUILDERS[name](2000))
    tokens = tokens_for(model, batch=2, length=16)
    with LargeTensors(2 * 16 * 2000) as large:
        output = model(tokens, torch.full((2,), 0.5))
    assert len(large.made) == 1, large.made
    assert output.numel() == 2 * 16 * 2000


@pytest.mark.parametrize("chunk", [1, 30, 10_000])
def test_normalising_in_parts_changes_nothing(chunk, monkeypatch):
    model = shaken(BUILDERS["mdlm"](10))
    tokens, time = tokens_for(model, batch=3, length=7), torch.ones(3)
    expected = model(tokens, time).detach()
    monkeypatch.setattr(dit_module, "_CHUNK_ENTRIES", chunk)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, time), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(expected, F.log_softmax(model.logits(tokens, time)[..., :10], -1))


@pytest.mark.parametrize("name", BUILDERS)
def test_the_gradient_is_that_of_finite_differences(name):
    model = shaken(BUILDERS[name](3)).double()
    tokens, time = tokens_for(model), torch.tensor([0.3, 0.8])
    weights = torch.randn(2, 6, 3, dtype=torch.float64)
    linear = model.backbone.output_layer.linear

    def loss():
        return (model(tokens, time) * weights).sum()

    loss().backward()
    for parameter in (linear.bias, model.backbone.vocab_embed.embedding):
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for index in (0, 2, len(flat) - 1):
            kept = float(flat[index])
            values = []
            for step in (1e-6, -1e-6):
                flat[index] = kept + step
                values.append(float(loss().detach()))
            flat[index] = kept
            assert float(gradient[index]) == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-6)


def test_the_score_has_no_gradient_at_the_current_token():
    model = shaken(BUILDERS["sedd-uniform"](4))
    tokens = torch.full((1, 5), 2)
    log_score = model(tokens, torch.ones(1))
    (gradient,) = torch.autograd.grad(log_score[..., 2].sum(), model.backbone.output_layer.linear.bias)
    assert (gradient == 0).all()


def test_scaling_by_the_noise_subtracts_its_logarithm():
    plain, scaled = (
        shaken(SEDDDenoiser(SEDDConfig(5, "absorbing", scale_by_sigma=scale, **SIZES))).double()
        for scale in (False, True)
    )
    scaled.load_state_dict(plain.state_dict())
    tokens, time = torch.full((1, 3), 5), torch.tensor([0.5], dtype=torch.float64)
    # Log-linear noise: exp(sigma) - 1 = 0.4995 / 0.5005; six ids.
    expected = plain(tokens, time) - torch.tensor(0.4995 / 0.5005 * 5, dtype=torch.float64).log()
    torch.testing.assert_close(scaled(tokens, time), expected, atol=1e-12, rtol=0)


def test_time_zero_is_read_as_the_end_of_the_published_samplers():
    model = shaken(BUILDERS["sedd-absorbing"](4))
    tokens = tokens_for(model)
    at_zero, at_end = (model(tokens, torch.full((2,), time)) for time in (0.0, 1e-5))
    assert torch.isfinite(at_zero).all()
    torch.testing.assert_close(at_zero, at_end)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_noise_enters_where_the_model_says_so(name):
    model = shaken(BUILDERS[name](4))
    tokens = tokens_for(model)
    early, late = (model(tokens, torch.full((2,), time)) for time in (0.2, 0.7))
    assert model.time_conditioned is not torch.equal(early, late)


def test_only_distances_between_positions_count_and_order_does():
    model = shaken(DiT(DiTConfig(5, **SIZES))).double()
    rotation = dit_module._rotation(40, 4, torch.zeros(1, dtype=torch.float64))
    vectors = torch.randn(2, 4, dtype=torch.float64)
    turned = dit_module._rotate(vectors[:, None].expand(2, 40, 4), rotation)
    products = turned[0] @ turned[1].T
    torch.testing.assert_close(products[3, 10], products[23, 30], atol=1e-5, rtol=0)
    assert (products[3, 10] - products[10, 3]).abs() > 1e-6
    # Pairs are (i, i + half), turned by position and by 10,000^(-i / half): position 2 of the second pair.
    first, second = vectors[0, 1], vectors[0, 3]
    angle = torch.tensor(2 / 100.0)
    torch.testing.assert_close(turned[0, 2, 1], first * angle.cos() - second * angle.sin(), atol=1e-7, rtol=0)
    tokens = torch.tensor([[0, 1, 2, 3]])
    sigma = torch.zeros(1)
    assert not torch.allclose(model(tokens, sigma)[0], model(tokens.flip(1), sigma)[0].flip(0))


def test_a_fresh_model_predicts_the_uniform_law():
    model = BUILDERS["mdlm"](4)
    log_p = model(torch.full((1, 3), 4), torch.ones(1))
    torch.testing.assert_close(log_p.exp(), torch.full((1, 3, 4), 0.25))


@pytest.mark.parametrize("name", BUILDERS)
def test_tokens_of_another_shape_are_refused(name):
    with pytest.raises(InvalidShapeError, match=r"tokens has shape \(3,\), expected \(B, L\)"):
        BUILDERS[name](4)(torch.zeros(3, dtype=torch.int64), torch.ones(1))
    with pytest.raises(InvalidShapeError, match=r"tokens has shape \(2, 0\), expected \(B, L\) with L >= 1"):
        BUILDERS[name](4)(torch.zeros(2, 0, dtype=torch.int64), torch.ones(2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MDLMConfig(4, width=10, heads=4), "cannot be shared by 4 heads"),
        (lambda: SEDDConfig(4, depth=0), "depth is 0, but must be a whole number from 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(build, message):
    with pytest.raises(InvalidArgumentError, match=message):
        build()


def test_another_graph_is_refused_with_a_guess():
    with pytest.raises(UnknownNameError, match="unknown graph 'absorb'; did you mean 'absorbing'"):
        SEDDConfig(4, graph="absorb")
