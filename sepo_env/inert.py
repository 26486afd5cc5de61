"""Foreign pickles, unpickled without running code of theirs, and told in a few words.

A pickle is a program, and may call any function. Here numbers, strings and containers are built; of everything else
the name and the state are kept, unread. The program is looked through before it runs, for one that calls nothing can
still fill the memory, or nest so deep that the interpreter itself crashes.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

_QUOTES = "'\""
_MAX_NESTING = 1_000
_MAX_HANDLED = 10_000_000
_PUTS, _GETS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"}), frozenset({"GET", "BINGET", "LONG_BINGET"})
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"})
# They name what other code registered, or buffers beside the file; no checkpoint has them.
_REFUSED = frozenset({"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"})

_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # its name in the pickle protocol that torch writes
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    # Lightning keeps a model's arguments in a dict of its own.
    ("lightning_fabric.utilities.data", "AttributeDict"): dict,
    ("lightning.fabric.utilities.data", "AttributeDict"): dict,
    ("pytorch_lightning.utilities.parsing", "AttributeDict"): dict,
}
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {("collections", "defaultdict"): lambda *args: {}}


class Inert:
    """What stands in the place of an object whose class is not known to be harmless; it swallows all that it is given.

    Attributes:
        described: ``module.name`` of that class.
        state: what the object would have been restored from, itself plain or inert; None where there was nothing.
    """

    described: str = "?"
    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Take any arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        """A function that the pickle calls returns another inert object."""
        return type(self)()

    def __setstate__(self, state: Any) -> None:
        """Keep it, unread."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore it."""

    def append(self, value: Any) -> None:
        """Ignore it."""

    def extend(self, values: Any) -> None:
        """Ignore them."""

    def add(self, value: Any) -> None:
        """Ignore it."""

    def __hash__(self) -> int:
        """Let it be a key."""
        return id(self)

    def __repr__(self) -> str:
        return f"<{self.described}, not loaded>"


class InertUnpickler(pickle.Unpickler):
    """Finds harmless classes only.

    Args:
        program: the pickle; `check_program` has looked through it.
        values: further classes, by module and name.
        functions: further functions, likewise.
        persistent: reads what the pickle refers to outside of itself.
    """

    def __init__(
        self,
        program: bytes,
        *,
        values: Mapping[tuple[str, str], Any],
        functions: Mapping[tuple[str, str], Callable[..., Any]],
        persistent: Callable[[Any], Any],
    ) -> None:
        super().__init__(io.BytesIO(program), encoding="utf-8")
        self._values = {**_ALLOWED, **values}
        self._functions = {**_FUNCTIONS, **functions}
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        if (function := self._functions.get((module, name))) is not None:
            # A pickle may set attributes of what it is given, so that functions are handed out as throw-away copies.
            return lambda *args: function(*args)
        if (module, name) in self._values:
            return self._values[module, name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        return type("Inert", (Inert,), {"described": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        return self._persistent(pid)


def check_program(program: bytes) -> None:
    """Follow a pickle's stack without building anything, and refuse what would crash or fill the memory.

    The unpickler makes its memo as long as the largest index in it, and hashing a tuple recurses into its entries
    without a limit, once for each time that an entry stands in it.

    Raises:
        ValueError: a memo index that the opcodes before it cannot have used up, nesting beyond 1,000 levels, shared
            tuples that unfold without end, or an opcode that no checkpoint has; pickletools raises others where the
            pickle is damaged.
    """
    # For each object how deep it is, and how many entries it has with those of the tuples in it.
    stack: list[tuple[int, int]] = []
    below: list[list[tuple[int, int]]] = []  # what lies under each mark
    memo: dict[int, tuple[int, int]] = {}
    handled = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        name, takes = opcode.name, opcode.stack_before
        if name in _REFUSED:
            raise ValueError(f"the pickle has the opcode {name}")
        if name in _PUTS or name == "MEMOIZE":
            index = len(memo) if name == "MEMOIZE" else int(argument or 0)
            if index > count:
                raise ValueError(f"the memo index {index} after {count} opcodes")
            memo[index] = stack[-1]
        elif name in _GETS:
            stack.append(memo[int(argument or 0)])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name == "POP" and not stack:  # it takes the mark
            stack = below.pop()
        else:
            changed = None
            if pickletools.markobject in takes:
                entries, stack = stack, below.pop()
                if takes[0] is not pickletools.markobject:
                    changed = stack.pop()
            else:
                if len(stack) < len(takes):
                    raise ValueError(f"the opcode {name} finds too little on the stack")
                entries = [stack.pop() for _ in takes][::-1]
                if len(takes) > 1 and name not in _TUPLES:
                    changed = entries.pop(0)
            depth = 1 + max((entry[0] for entry in entries), default=0)
            size = 1 + sum(entry[1] for entry in entries)
            handled += size
            if depth > _MAX_NESTING or handled > _MAX_HANDLED + 100 * count:
                raise ValueError(f"containers nested deeper than {_MAX_NESTING}, or sharing their entries endlessly")
            if opcode.stack_after:
                depth = depth if changed is None else max(changed[0], depth)
                stack.append((depth, size if name in _TUPLES else 1))


class _Short(reprlib.Repr):
    """Cuts long texts and deep containers."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80


def shown(value: Any) -> str:
    """A value in a few words, whatever it is."""
    try:
        return _Short().repr(value)[:300]
    except Exception:  # an integer of too many digits, a container too deep
        return f"one of type {type(value).__name__}"


def outline(found: Any) -> str:
    """Say in a few words what was read."""
    if not isinstance(found, Mapping):
        return type(found).__name__
    some = [(key, value) for key, (key, value) in zip(range(6), found.items(), strict=False)]
    names = [f"{shown(key)[:60].strip(_QUOTES)}: {type(value).__name__}" for key, value in some]
    return f"{len(found)} entries ({', '.join(names)}{', ...' if len(found) > len(names) else ''})"
