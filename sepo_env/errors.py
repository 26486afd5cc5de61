"""Named exceptions; every message says the cause and the cure.

All of them derive from :class:`SepoEnvError`, so that one ``except`` catches whatever this library refuses, and
each also derives from the builtin that Python users expect (``ValueError``, ``RuntimeError``, ``ImportError``).
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Iterable
from os import PathLike

_LONGEST_NAME = 80


class SepoEnvError(Exception):
    """Base class of every error that this library raises on purpose."""


class _ComposedError(SepoEnvError):
    """An error that composes its message from other arguments, and keeps it when it crosses a process border."""

    def __reduce__(self) -> tuple[Callable[..., SepoEnvError], tuple[object, ...]]:
        # By default an exception is unpickled by calling its class with its message.
        return _restore, (type(self), *self.args)


def _restore(cls: type[_ComposedError], *args: object) -> SepoEnvError:
    return cls.__new__(cls, *args)


class InvalidArgumentError(SepoEnvError, ValueError):
    """A setting that cannot work: wrong range, wrong type, or two settings that exclude each other."""


class UnknownNameError(_ComposedError, ValueError):
    """A name that no registry entry carries; the message lists the known ones and the nearest guess.

    >>> str(UnknownNameError("schedule", "cosin", ["cosine", "linear"]))
    "unknown schedule 'cosin'; did you mean 'cosine'? Known: cosine, linear."
    """

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        known = sorted(known)
        guess = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else "."
        text = repr(name)
        text = text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."
        super().__init__(f"unknown {kind} {text}{hint} Known: {', '.join(known)}.")


class UnknownOptionError(SepoEnvError, TypeError):
    """An option that something does not take, in the words that Python uses: TorchRL reads them.

    Made of its message alone, because Gymnasium makes it again with a longer one.
    """

    @classmethod
    def of(cls, what: str, name: str, known: Iterable[str]) -> UnknownOptionError:
        """The error with the known options and the nearest guess.

        >>> str(UnknownOptionError.of("the task 'toy'", "lenght", ["length", "seed"]))
        "the task 'toy' got an unexpected keyword argument 'lenght'; did you mean 'length'? It takes: length, seed."
        """
        known = sorted(known)
        guess = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else "."
        return cls(f"{what} got an unexpected keyword argument {name!r}{hint} It takes: {', '.join(known)}.")


class InvalidCallError(SepoEnvError, TypeError):
    """A call with too many arguments, or without one that has no default."""


class InvalidShapeError(_ComposedError, ValueError):
    """A tensor whose shape does not fit the others.

    >>> str(InvalidShapeError("tokens", (3,), "(B, L)"))
    'tokens has shape (3,), expected (B, L).'
    """

    def __init__(self, name: str, got: Iterable[int], expected: str) -> None:
        super().__init__(f"{name} has shape {tuple(got)}, expected {expected}.")


class InvalidTokensError(SepoEnvError, ValueError):
    """Tokens outside of the alphabet, or of another dtype than int64."""


class InvalidActionError(SepoEnvError, ValueError):
    """An action that is not a matrix of finite, non-negative jump rates that the step can use."""


class InvalidDenoiserError(SepoEnvError, ValueError):
    """A network that is no denoiser of the task, or returns what is no output of one."""


class InvalidPromptError(SepoEnvError, ValueError):
    """A prompt that does not fit the task: wrong length, wrong letters, or nothing left to generate."""


class RewardError(SepoEnvError, RuntimeError):
    """A reward that raised, or whose values cannot be used; names the reward, the sequence and its index."""


class RewardTimeoutError(RewardError, TimeoutError):
    """A reward that did not answer within its time limit."""


class HeldOutRewardError(SepoEnvError, ValueError):
    """The held-out oracle asked for as a training reward, or the training oracle as the judge."""


class ArtefactsError(SepoEnvError, ValueError):
    """The folder of published artefacts cannot be used."""


class CheckpointError(_ComposedError, ValueError):
    r"""A file that is not what its reader expects: another architecture, missing or extra keys, truncated.

    The cause may quote the file; what a terminal would obey, a line break among it, is spelled out.

    >>> str(CheckpointError("model.safetensors", "truncated", "copy the file again"))
    'model.safetensors: truncated; copy the file again.'
    >>> print(CheckpointError("a.ckpt", "its name is '\x1b[31m'", "rename it"))
    a.ckpt: its name is '\x1b[31m'; rename it.
    """

    def __init__(self, path: str | PathLike[str], cause: str, cure: str) -> None:
        message = f"{path}: {cause}; {cure}."
        super().__init__("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message))


class FolderError(SepoEnvError, OSError):
    """A file or a folder that cannot be written: no space, no permission, no such place."""

    @classmethod
    def of(cls, path: str | PathLike[str], error: OSError) -> FolderError:
        """The error of a write that the system refused.

        >>> str(FolderError.of("runs/a/metrics.csv", OSError(errno.ENOSPC, "No space left on device")))
        'runs/a/metrics.csv: cannot be written (No space left on device); free some space, or choose another folder.'
        """
        cause = " ".join((error.strerror or str(error) or type(error).__name__).split())
        cure = _WRITE_CURES.get(error.errno or 0, "see to the folder, or choose another one")
        return cls(f"{path}: cannot be written ({cause}); {cure}.")


_WRITE_CURES = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some space, or choose another folder",
    errno.EFBIG: "raise the limit on the size of files, or choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOTDIR: "a file stands where a folder is wanted: choose another one",
    errno.EEXIST: "a file stands where a folder is wanted: choose another one",
    errno.EISDIR: "a folder stands where a file is wanted: choose another one",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class FolderInUseError(FolderError):
    """A folder in which another run is at work."""


class MissingExtraError(_ComposedError, ImportError):
    """An optional dependency that is not installed.

    >>> str(MissingExtraError("tensorboard", "logs"))
    "tensorboard is not installed; it comes with the extra 'logs': pip install -e '.[logs]' in sepo-env's folder."
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; it comes with the extra {extra!r}: pip install -e '.[{extra}]' in sepo-env's "
            "folder."
        )


class DivergenceError(SepoEnvError, RuntimeError):
    """Training met a NaN or an exploding importance ratio and stopped; the last good checkpoint is named."""
