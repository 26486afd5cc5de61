"""The tabular denoiser: the row of a state is its number in base ``vocab_size``."""

import itertools

import pytest
import torch

from sepo_env.denoisers import TabularDenoiser
from sepo_env.errors import InvalidArgumentError, InvalidTokensError


def test_rows_count_the_states_in_lexicographic_order() -> None:
    model = TabularDenoiser(num_tokens=2, length=3, vocab_size=3)
    states = torch.tensor(list(itertools.product(range(3), repeat=3)))
    assert torch.equal(model.state_index(states), torch.arange(27))
    assert model.state_index(torch.tensor([[2, 0, 1]])).tolist() == [2 * 9 + 0 * 3 + 1]


def test_any_law_can_be_written_into_the_table() -> None:
    model = TabularDenoiser(2, 2, 3)
    state = torch.tensor([[2, 1]])
    model.logits.data[model.state_index(state), 0] = torch.tensor([0.3, 0.7]).log()
    out = model(torch.tensor([[2, 1], [2, 2]]), torch.ones(2)).exp()
    torch.testing.assert_close(out[0, 0], torch.tensor([0.3, 0.7]))
    torch.testing.assert_close(out[1], torch.full((2, 2), 0.5))


def test_gradient_reaches_the_visited_row_only() -> None:
    model = TabularDenoiser(2, 2, 3, generator=torch.Generator().manual_seed(0))
    model(torch.tensor([[2, 2]]), torch.ones(1))[..., 0].sum().backward()
    visited = model.logits.grad.abs().sum((1, 2)).nonzero().flatten()
    assert visited.tolist() == [8]


def test_generator_fixes_the_table() -> None:
    first, second = (TabularDenoiser(3, 2, 4, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first.logits, second.logits)
    assert first.logits.std() > 0.5


def test_score_of_the_current_token_is_one() -> None:
    model = TabularDenoiser(3, 2, 3, parameterisation="score", generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 2]])
    assert model(tokens, torch.ones(1)).gather(-1, tokens[..., None]).flatten().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("tokens", [[[0, 1, 0]], [[0, 3]], [[-1, 0]]])
def test_states_outside_of_the_table_are_refused(tokens: list[list[int]]) -> None:
    with pytest.raises(InvalidTokensError):
        TabularDenoiser(2, 2, 3)(torch.tensor(tokens), torch.ones(1))


def test_vocabulary_without_room_for_the_tokens_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="vocab_size"):
        TabularDenoiser(4, 2, 6)
