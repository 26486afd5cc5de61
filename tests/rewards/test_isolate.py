"""Calling a function so that one bad sequence does not hide the others."""

import io
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepo_env.rewards import isolate


def inverse(numbers):
    return [1 / n for n in numbers]


def test_a_sound_batch_is_one_call():
    calls = []

    def spy(batch):
        calls.append(list(batch))
        return batch

    assert isolate.attempt(spy, [1, 2, 3], fail_fast=True) == ([(0, 3, [1, 2, 3])], {}, None, ())
    assert calls == [[1, 2, 3]]


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=8))
def test_every_sequence_is_scored_or_has_its_error(numbers):
    result = isolate.attempt(inverse, numbers, fail_fast=False)
    bad = {row for row, n in enumerate(numbers) if n == 0}
    assert set(result.errors) == bad
    scored = {start + i: v for start, _, raw in result.pieces for i, v in enumerate(raw)}
    assert scored == {row: 1 / n for row, n in enumerate(numbers) if n != 0}


def test_fail_fast_stops_at_the_first():
    seen = []

    def spy(batch):
        seen.extend(batch if len(batch) == 1 else [])
        return inverse(batch)

    result = isolate.attempt(spy, [1, 0, 2, 0], fail_fast=True)
    assert list(result.errors) == [1]
    assert seen == [1, 0]


def test_a_fault_of_the_batch_alone():
    def single_minded(batch):
        if len(batch) > 1:
            raise TypeError("one at a time")
        return batch

    result = isolate.attempt(single_minded, [5, 6], fail_fast=True)
    assert result.errors == {}
    assert str(result.batch_error) == "one at a time"
    assert result.pieces == [(0, 1, [5]), (1, 2, [6])]


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_messages_come_through_whole(messages):
    stream = io.BytesIO()
    for message in messages:
        isolate.send(stream, message)
    stream.seek(0)
    assert [isolate.receive(stream) for _ in messages] == messages
    with pytest.raises(EOFError):
        isolate.receive(stream)


def test_exceptions_travel_with_their_traceback():
    def fail():
        raise KeyError("lost")

    with pytest.raises(KeyError) as caught:
        fail()
    copy = pickle.loads(pickle.dumps(isolate.sendable(caught.value)))
    assert isinstance(copy, KeyError)
    assert "in fail" in copy.__notes__[0]


def test_exceptions_that_cannot_travel_send_a_likeness():
    class Local(Exception):
        pass

    likeness = isolate.sendable(Local("hidden"))
    assert type(likeness) is RuntimeError
    assert str(likeness) == "Local: hidden"
