"""Every Python block of the README runs, those that train with a budget of seconds."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What the README writes, and what runs in its place: the same call with a smaller budget.
SMALLER = {
    'SEPO("DNAEnhancer-v0")': 'SEPO("DNAEnhancer-v0", num_iterations=1, batch_size=2, num_steps=4)',
}


def blocks() -> list[tuple[int, str]]:
    """The line on which each block starts, and its text."""
    text = README.read_text()
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in BLOCK.finditer(text)]


def test_there_are_examples():
    assert len(blocks()) >= 3


@pytest.mark.parametrize("call", SMALLER)
def test_the_calls_that_are_made_smaller_stand_in_the_readme(call):
    assert any(call in code for _, code in blocks())


@pytest.mark.parametrize(("line", "code"), [pytest.param(*block, id=f"line-{block[0]}") for block in blocks()])
def test_the_block_runs(line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever it writes
    for call, smaller in SMALLER.items():
        code = code.replace(call, smaller)
    # Tracebacks show the README's own lines.
    program = compile("\n" * (line - 1) + code, str(README), "exec")
    exec(program, {"__name__": "__main__"})
