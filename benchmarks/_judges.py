"""Who judges pairs of responses: a function of the user's own, by the name of its file."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from sepo_env.errors import InvalidArgumentError
from sepo_env.tasks.language_metrics import Judge


def load_judge(name: str) -> Judge:
    """The function that ``FILE.py:NAME`` names; the file is executed.

    As with a script, modules beside the file can be imported: its folder goes to the front of ``sys.path``.

    Raises:
        InvalidArgumentError: no such file or function, or a file that fails.
    """
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        raise InvalidArgumentError(f"the judge {name!r} names no file; give FILE.py:NAME, such as my_judge.py:ask.")
    # Not the file's own name, which may be that of a package; dataclasses look their module up.
    module_name = f"_judge_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    folder = os.path.abspath(os.path.dirname(path))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        del sys.modules[module_name]
        raise InvalidArgumentError(f"{path} fails with {type(error).__name__}: {error}; mend it.") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise InvalidArgumentError(f"{path} has no function {function!r}; give FILE.py:NAME of one that it has.")
    return found


def judges_what_it_trained(judge_model: str | os.PathLike[str] | None, reward_model: object) -> bool:
    """Whether the reward model that judges is the one that was trained on."""
    if judge_model is None or not isinstance(reward_model, (str, os.PathLike)):
        return False
    return os.path.realpath(judge_model) == os.path.realpath(reward_model)
