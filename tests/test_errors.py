"""Errors keep their message and their type across processes."""

import copy
import inspect
import pickle

import pytest

from sepo_env import errors

EXAMPLES = [
    errors.UnknownNameError("graph", "absorbin", ["absorbing"]),
    errors.InvalidShapeError("tokens", (3,), "(B, L)"),
    errors.UnknownOptionError.of("the task 'toy'", "lenght", ["length"]),
    errors.CheckpointError("a.safetensors", "truncated", "copy it again"),
    errors.FolderError.of("runs/a", OSError(28, "No space left on device")),
    errors.FolderInUseError("runs/a: another run writes there"),
    errors.MissingExtraError("tensorboard", "logs"),
    errors.RewardTimeoutError("no answer"),
    errors.DivergenceError("NaN"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copier", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_errors_survive_pickling(error, copier):
    restored = copier(error)
    assert type(restored) is type(error)
    assert str(restored) == str(error)


def test_what_a_file_says_is_told_in_one_line_that_a_terminal_does_not_obey():
    error = errors.CheckpointError("a\n.ckpt", "found 'x\x1b[31m\ud800é\n'", "rename it")
    assert str(error) == "a\\n.ckpt: found 'x\\x1b[31m\\ud800é\\n'; rename it."


def test_every_error_is_ours_and_a_builtin_too():
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)]
    assert len(classes) > 10
    for cls in classes:
        assert issubclass(cls, errors.SepoEnvError)
        if cls is not errors.SepoEnvError and not cls.__name__.startswith("_"):
            bases = set(cls.__mro__) - {Exception, BaseException, object}
            assert any(base.__module__ == "builtins" for base in bases)
