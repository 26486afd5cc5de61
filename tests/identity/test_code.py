"""Code is known again in another process, and other code is other code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sepo_env.identity import describe_callable, is_library
from sepo_env.identity.code import code_digest

SOURCE = '''
import math
import numpy as np
WEIGHT = 2.0

def helper(text):
    return WEIGHT * len(text)

class Scale:
    factor = 3
    def of(self, value):
        return self.factor * value

def score(sequences, letter="A", *, power=1):
    """How it is worth."""
    scale = Scale()
    def one(text):
        found = [c for c in text if c in {"A", "B", "CC", "D"}]
        try:
            return helper(text) + math.sqrt(len(found)) ** power
        except ValueError:
            return scale.of(np.float64(0.5))
    return [one(text) + text.count(letter) for text in sequences]
'''

PRINT = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location(sys.argv[2], sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from sepo_env.identity import describe_callable
print(json.dumps(describe_callable(module.score)))
"""


def described(source: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "of_the_users_own"}
    exec(compile(source, "anywhere.py", "exec"), names)
    return describe_callable(names["score"])


def in_another_process(path: Path, module: str, seed: str, root: Path) -> dict[str, object]:
    environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PRINT, str(path), module]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def test_the_same_file_is_the_same_code_in_every_process(tmp_path: Path, project_root: Path) -> None:
    first, second = tmp_path / "one.py", tmp_path / "deeper" / "two.py"
    second.parent.mkdir()
    first.write_text(SOURCE)
    # Elsewhere, further down, and with another docstring and comments.
    second.write_text("# A comment.\n\n\n" + SOURCE.replace("How it is worth.", "What it is worth.  # really"))
    found = [in_another_process(*case, project_root) for case in ((first, "one", "1"), (second, "two", "77"))]
    assert found[0] == found[1] == described(SOURCE)
    assert "cannot be told" not in json.dumps(found[0])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("text.count(letter)", "-text.count(letter)"),
        ('letter="A"', 'letter="B"'),
        ("power=1", "power=2"),
        ("WEIGHT = 2.0", "WEIGHT = 3.0"),
        ("WEIGHT * len(text)", "WEIGHT + len(text)"),
        ('"CC", "D"', '"CC", "E"'),
        ("math.sqrt", "math.cbrt"),
        ("except ValueError", "except TypeError"),
        ("factor = 3", "factor = 4"),
        ("self.factor * value", "self.factor - value"),
        ("np.float64(0.5)", "np.float64(1.5)"),
        ("import numpy as np", "import math as np"),
        ("2.0", "2"),
    ],
)
def test_other_code_is_told_apart(old: str, new: str) -> None:
    """Wherever it stands: in the function, within it, in what it reads, its defaults or constants."""
    assert old in SOURCE
    assert json.dumps(described(SOURCE.replace(old, new))) != json.dumps(described(SOURCE))


def test_running_and_watching_change_nothing() -> None:
    names: dict[str, object] = {"__name__": "of_the_users_own"}
    exec(SOURCE, names)
    score = names["score"]
    before = describe_callable(score)
    for _ in range(200):  # the interpreter specialises code that runs often
        score(["ABCA"])
    watched: list[str] = []

    def watch(frame, event, argument):
        watched.append(event)
        return watch

    old = sys.gettrace()
    sys.settrace(watch)
    try:
        score(["ABCA"])
        after = describe_callable(score)
    finally:
        sys.settrace(old)
    assert watched
    assert after == before


def test_constants_are_told_by_their_kind() -> None:
    digests = {code_digest(compile(f"x = ({value},)", "f", "exec")) for value in ("1", "1.0", "True", "'1'", "-0.0")}
    assert len(digests) == 5


def test_what_is_installed_is_known_by_its_name() -> None:
    assert all(
        is_library(name)
        for name in ("json", "numpy.linalg", "torch", "sepo_env.rewards", "agents.algorithms.sepo", "sys")
    )
    assert not any(is_library(name) for name in ("__main__", __name__, "of_the_users_own"))


def test_a_module_of_ones_own_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, factor in (("own_helpers_a", 1), ("own_helpers_b", 2)):
        (tmp_path / f"{name}.py").write_text(f"FACTOR = {factor}\ndef scale(x):\n    return FACTOR * x\n")
    source = "import {} as own\ndef score(sequences):\n    return [own.scale(1.0) for _ in sequences]\n"
    one, other = (described(source.format(name)) for name in ("own_helpers_a", "own_helpers_b"))
    assert one["code"] == other["code"]
    assert one["reads"]["own.scale"]["reads"] == {"FACTOR": 1}
    assert other["reads"]["own.scale"]["reads"] == {"FACTOR": 2}
