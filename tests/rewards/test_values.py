"""Reading what a reward returned."""

import math
from collections import deque
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.masked import masked_tensor

from sepo_env.errors import RewardError
from sepo_env.rewards.values import read_values, shorten


def show(row: int) -> str:
    return f"sequence {row}"


class Labelled(torch.Tensor):
    """Somebody else's kind of tensor."""


@pytest.mark.parametrize(
    "raw",
    [
        [1, 2.5, -3],
        (1, 2.5, -3),
        [Fraction(1), Fraction(5, 2), -3],
        [Decimal(1), Decimal("2.5"), -3],
        deque([1, 2.5, -3]),
        np.array([1, Fraction(5, 2), Decimal(-3)], dtype=object),
        np.array([1, 2.5, -3], dtype=">f8"),
        np.array([1, 2.5, -3], dtype=np.longdouble),
        np.ma.array([1, 2.5, -3]),
        pd.Series([1, 2.5, -3], index=[7, 0, 1]),
        pd.Series([1, 2.5, -3], dtype="Float64"),
        [torch.tensor(1.0, requires_grad=True), 2.5, np.array(-3)],
        torch.tensor([1, 2.5, -3]).to_sparse(),
        torch.tensor([1, 2.5, -3]).to(torch.float8_e5m2),
        torch.tensor([1, 2.5, -3]).as_subclass(Labelled),
        nn.Parameter(torch.tensor([1, 2.5, -3])),
        [torch.tensor(1.0), torch.tensor(2.5), torch.tensor(-3.0)],
        [np.float64(1), np.float16(2.5), np.int8(-3)],
        np.array([1, 2.5, -3]),
        np.array([1, 2.5, -3], dtype=np.float16),
        torch.tensor([1, 2.5, -3]),
        torch.tensor([1, 2.5, -3], dtype=torch.bfloat16),
        torch.tensor([1, 2.5, -3], dtype=torch.float64, requires_grad=True),
    ],
)
def test_real_numbers_of_any_kind_become_float32(raw):
    outcome = read_values(raw, 3, "r", show)
    assert outcome.failures == ()
    assert type(outcome.values) is torch.Tensor
    assert outcome.values.dtype == torch.float32
    assert outcome.values.tolist() == [1.0, 2.5, -3.0]
    assert not outcome.values.requires_grad


@pytest.mark.parametrize(
    "raw",
    [np.array([7, 8], dtype=np.uint8), torch.tensor([7, 8]), [7, 8], pd.Series([7, 8], dtype="Int64"), range(7, 9)],
)
def test_integers_become_float32(raw):
    outcome = read_values(raw, 2, "r", show)
    assert outcome.values.dtype == torch.float32
    assert outcome.values.tolist() == [7.0, 8.0]


@pytest.mark.parametrize(
    ("raw", "dtype"),
    [
        (torch.tensor([True, False]), "torch.bool"),
        (torch.tensor([1j, 2j]), "torch.complex64"),
        (np.array([True, False]), "bool"),
        ([True, False], "bool"),
        ([1j, 2j], "complex128"),
        (np.array(["2020", "2021"], dtype="datetime64"), r"datetime64\[Y\]"),
        (["1.0", "2.0"], "<U3"),
    ],
)
def test_other_dtypes_are_named(raw, dtype):
    with pytest.raises(RewardError, match=f"'r' returned values of dtype {dtype}, from sequence 0 on; return real"):
        read_values(raw, 2, "r", show)


class Hostile:
    """Somebody else's object, of which nothing works."""

    def __array__(self, *args, **kwargs):
        raise KeyError("no array")

    def __repr__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "raw",
    [
        None,
        1.0,
        "12",
        b"12",
        {"a": 1},
        {1.0, 2.0},
        {"a": 1, "b": 2}.values(),
        (x for x in (1, 2)),
        torch.tensor(1.0),
        np.float64(1),
        np.array(1.0),
        torch.zeros(2, device="meta"),
        Hostile(),
        pd.DataFrame({"a": [1.0, 2.0]}),
    ],
)
def test_what_is_no_list_is_refused(raw):
    with pytest.raises(RewardError, match=r"'r' returned .* 2 sequences"):
        read_values(raw, 2, "r", show)


def test_wrong_length_names_the_first_sequence_without_a_value():
    with pytest.raises(RewardError, match=r"returned 3 values for 4 sequences, none for sequence 3; return one number"):
        read_values([1, 2, 3], 4, "r", show)
    with pytest.raises(RewardError, match=r"returned 3 values for 2 sequences; return one number"):
        read_values(torch.zeros(3), 2, "r", show)


def test_wrong_rank_is_refused():
    with pytest.raises(RewardError, match=r"shape \(2, 1\) for 2 sequences, expected \(2,\)"):
        read_values(torch.zeros(2, 1), 2, "r", show)
    with pytest.raises(RewardError, match="not a list of numbers"):
        read_values([[1.0], [1.0, 2.0]], 2, "r", show)


def test_each_value_that_is_no_finite_number_is_a_failure_of_its_sequence():
    outcome = read_values([1.0, math.nan, math.inf, -math.inf, 5.0], 5, "r", show)
    assert [(f.row, f.cause) for f in outcome.failures] == [
        (1, "returned nan"),
        (2, "returned inf"),
        (3, "returned -inf"),
    ]
    assert outcome.values[[0, 4]].tolist() == [1.0, 5.0]


def test_objects_among_the_numbers_are_failures():
    raw = [1.0, None, True, 10**400, "1.0", 1j, [1.0], np.True_, torch.tensor(True), Decimal("sNaN"), Hostile()]
    outcome = read_values(raw, len(raw), "r", show)
    assert [f.row for f in outcome.failures] == list(range(1, len(raw)))
    assert [f.cause for f in outcome.failures] == [
        *("returned None", "returned True", "returned inf", "returned '1.0'", "returned 1j", "returned [1.0]"),
        *(f"returned {np.True_!r}", "returned True", "returned Decimal('sNaN')", "returned <Hostile>"),
    ]


@pytest.mark.parametrize(
    "raw",
    [
        np.ma.masked_equal([1.0, -9999.0, 2.0], -9999.0),
        np.ma.masked_equal([1, -9999, 2], -9999),
        list(np.ma.masked_equal([1.0, -9999.0, 2.0], -9999.0)),
        [np.ma.array(1.0), np.ma.array(-9999.0, mask=True), np.ma.array(2.0)],
        deque([1.0, np.ma.masked, 2.0]),
    ],
)
def test_what_a_mask_hides_is_no_value(raw):
    outcome = read_values(raw, 3, "r", show)
    assert [(f.row, f.cause) for f in outcome.failures] == [(1, "returned a masked value")]
    assert outcome.values[[0, 2]].tolist() == [1.0, 2.0]
    assert outcome.values[1].isnan()


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors is in prototype stage")
def test_what_a_masked_tensor_hides_is_no_value():
    raw = masked_tensor(torch.tensor([1.0, -9999.0]), torch.tensor([True, False]))
    outcome = read_values(raw, 2, "r", show)
    assert [(f.row, f.cause) for f in outcome.failures] == [(1, "returned a masked value")]


@pytest.mark.parametrize("raw", [pd.Series([1.0, None]), pd.Series([1.5, pd.NA], dtype="Float64"), [1.0, pd.NA]])
def test_what_is_missing_in_a_series_is_a_failure(raw):
    outcome = read_values(raw, 2, "r", show)
    assert [f.row for f in outcome.failures] == [1]
    assert outcome.failures[0].cause in ("returned nan", "returned <NA>")


@pytest.mark.parametrize("raw", [torch.ones(2), np.ones(2, np.float32), torch.ones(1).expand(2)])
def test_the_values_are_a_copy(raw):
    values = read_values(raw, 2, "r", show).values
    raw[:1] = 7.0
    assert values.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("raw", [[1e300], np.array([1e300]), torch.tensor([1e300], dtype=torch.float64)])
def test_what_float32_cannot_hold_is_a_failure(raw):
    outcome = read_values(raw, 1, "r", show)
    assert [f.cause for f in outcome.failures] == ["returned 1e+300, which float32 cannot hold"]


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1))
def test_failures_are_exactly_the_values_that_are_not_finite_in_float32(numbers):
    outcomes = [
        read_values(raw, len(numbers), "r", show)
        for raw in (numbers, np.array(numbers), torch.tensor(numbers, dtype=torch.float64))
    ]
    expected = torch.tensor(numbers, dtype=torch.float64).to(torch.float32)
    for outcome in outcomes:
        torch.testing.assert_close(outcome.values, expected, equal_nan=True, rtol=0, atol=0)
        assert [f.row for f in outcome.failures] == (~expected.isfinite()).nonzero().flatten().tolist()


@given(st.text(alphabet="ACGT", max_size=300))
def test_shortened_sequences_keep_both_ends(sequence):
    short = shorten(sequence)
    assert len(short) <= 51
    head, gap, tail = short.partition("...")
    assert sequence.startswith(head)
    assert sequence.endswith(tail)
    assert short == sequence or gap
