"""The machine that follows a pickle: a stack, a memo, and a step for each opcode."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sepo_env.loading.inert import Inert, shown
from sepo_env.pickles.containers import Containers
from sepo_env.pickles.limits import (
    LONGEST_NAME,
    LONGEST_NUMBER,
    LONGEST_PROGRAM,
    LONGEST_TEXT,
    MOST_ARGUMENTS,
    MOST_NAMES,
    MOST_OPCODES,
    LimitError,
)

# A defaultdict has a function in front of its entries; Lightning keeps a model's arguments in a dict of its own.
_DICTS = (
    "collections.OrderedDict",
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
_SETS = ("__builtin__.set", "builtins.set")
"""The first is its name in the protocol that torch writes."""
_WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
"""Makes a tensor that was given attributes: of a function, a class, the function's arguments, and the attributes."""
_INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_LITERALS = frozenset({*_INTEGERS, *_TEXTS, *_BYTES, "FLOAT", "BINFLOAT"})
_NUMBERS = frozenset({"INT", "LONG", "LONG1", "LONG4", "FLOAT", "GET", "PUT"})
"""Opcodes whose argument is a number that may be of any length."""
_WIDTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
"""Bytes of the length that stands in front of an argument."""


class PickleReader:
    """Runs one pickle, once.

    Args:
        program: the pickle.
        functions: what may be called, by ``module.name``; they get plain and inert arguments, whatever they expect.
        values: what may be named, likewise; nothing that can be changed.
        persistent: reads what the pickle refers to outside of itself.
    """

    def __init__(
        self,
        program: bytes,
        *,
        functions: Mapping[str, Callable[..., Any]],
        values: Mapping[str, Any],
        persistent: Callable[[Any], Any],
    ) -> None:
        self._program = program
        self._file = io.BytesIO(program)
        self.containers = containers = Containers(*{type(value) for value in values.values()})
        # None of them refers to the reader: with what is in its memo it is gone when the pickle has been read.
        self._functions: dict[str, Callable[..., Any]] = {
            **dict.fromkeys(_DICTS, containers.dict_of),
            **dict.fromkeys(_SETS, containers.set_of),
            "torch.Size": lambda sizes: tuple(containers.copied(sizes)),
            **functions,
        }
        self._values = values
        self.persistent = persistent
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # what lies under each mark
        self._memo: dict[int, Any] = {}
        self._steps = self._names = 0

    def load(self) -> Any:
        """What the pickle builds.

        Raises:
            LimitError: it takes more than any checkpoint does.
            ValueError: it is damaged, or does what no checkpoint does; damage may raise others, too.
        """
        if len(self._program) > LONGEST_PROGRAM:
            raise LimitError(f"the pickle has more than {LONGEST_PROGRAM:,} bytes")
        for self._steps in range(MOST_OPCODES):
            opcode = _OPCODES.get(self._file.read(1))
            if opcode is None:
                raise ValueError("the pickle ends too early, or has an opcode that there is not")
            argument = None if opcode.arg is None else self._argument(opcode.name, opcode.arg)
            if opcode.name == "STOP":
                return self.pop()
            if opcode.name in _LITERALS:
                self.stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            else:  # extensions, and buffers beside the file
                raise ValueError(f"the pickle has the opcode {opcode.name}, which no checkpoint has")
        raise LimitError(f"the pickle has more than {MOST_OPCODES:,} opcodes")

    def _argument(self, name: str, kind: Any) -> Any:
        """The argument of an opcode; its length is compared before it is read."""
        start, length = self._file.tell(), 0
        if kind.n == pickletools.UP_TO_NEWLINE:
            length = self._program.find(b"\n", start) - start
        elif kind.n in _WIDTHS:
            length = int.from_bytes(self._program[start : start + _WIDTHS[kind.n]], "little")
        what, longest = ("number", LONGEST_NUMBER) if name in _NUMBERS else ("text", LONGEST_TEXT)
        if length > longest:
            raise LimitError(f"the pickle has a {what} of more than {longest:,} bytes")
        return kind.reader(self._file)

    def pop(self) -> Any:
        """Take the top of the stack."""
        if not self.stack:
            raise ValueError("the pickle finds too little on the stack")
        return self.stack.pop()

    def top(self) -> Any:
        """The top of the stack, which stays there."""
        if not self.stack:
            raise ValueError("the pickle finds too little on the stack")
        return self.stack[-1]

    def push(self, made: Any, entries: Collection[Any] = ()) -> None:
        """Put something new on the stack; if it is a container, with what is in it."""
        self.stack.append(self.containers.enter(made, entries))

    def mark(self) -> None:
        """Begin a stack of its own for what follows."""
        self._below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        if not self._below:
            raise ValueError("the pickle finds no mark on the stack")
        entries, self.stack = self.stack, self._below.pop()
        return entries

    def remember(self, index: int | None = None) -> None:
        """Write the top of the stack into the memo."""
        index = len(self._memo) if index is None else index
        # Other numbers than those that a pickler counts up could collide.
        if not 0 <= index <= self._steps:
            raise ValueError(f"the memo index {index} after {self._steps} opcodes")
        self._memo[index] = self.top()

    def recall(self, index: int) -> None:
        """Put an entry of the memo on the stack."""
        if index not in self._memo:
            raise ValueError(f"the memo has nothing at {index}")
        self.stack.append(self._memo[index])

    def tuple_of(self, length: int) -> None:
        """Make a tuple of the top of the stack."""
        entries = [self.pop() for _ in range(length)][::-1]
        self.push(tuple(entries), entries)

    def named(self, module: Any, name: Any) -> Any:
        """What a pickle names: a value that is known, or else an `Inert`, be it a class or anything else.

        Raises:
            LimitError: a name of too many letters.
            ValueError: no name.
        """
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("the pickle names a class by something else than text")
        if max(len(module), len(name)) > LONGEST_NAME:
            raise LimitError(f"the pickle names a class by more than {LONGEST_NAME:,} letters")
        self._names += 1
        if self._names > MOST_NAMES:
            raise LimitError(f"the pickle has more than {MOST_NAMES:,} names of classes")
        described = f"{module}.{name}"
        return self._values[described] if described in self._values else self.containers.enter(Inert(described))

    def call(self, function: Any, arguments: Any) -> Any:
        """What a function that is known returns; an `Inert` in the place of what any other would.

        Raises:
            ValueError: it is no name, or the arguments are no tuple, or too many; known functions raise their own.
        """
        if not isinstance(function, Inert) or type(arguments) is not tuple:
            raise ValueError(f"the pickle calls {shown(function)} with {shown(arguments)}")
        if function.described == _WITH_ATTRIBUTES and len(arguments) == 4:
            return self.call(arguments[0], arguments[2])
        known = self._functions.get(function.described)
        if known is None:
            return self.containers.enter(Inert(function.described))
        if len(arguments) > MOST_ARGUMENTS:
            raise ValueError(f"the pickle calls {shown(function)} with {len(arguments)} arguments")
        return self.containers.enter(known(*arguments), arguments)

    def instance(self, function: Any, arguments: list[Any]) -> None:
        """Put on the stack what a class makes of its arguments."""
        self.stack.append(self.call(function, tuple(arguments)))


_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_Step = Callable[[PickleReader, Any], Any]


def _of_all(kind: Callable[[list[Any]], Any]) -> _Step:
    """A container of what lies above the last mark."""

    def step(reader: PickleReader, _: Any) -> None:
        entries = reader.pop_mark()
        reader.push(kind(entries), entries)

    return step


def _dictionary(reader: PickleReader, _: Any) -> None:
    entries = reader.pop_mark()
    reader.push({})
    reader.containers.set_items(reader.top(), entries)


def _frozen_set(reader: PickleReader, _: Any) -> None:
    entries = reader.pop_mark()
    reader.push(frozenset(map(reader.containers.key, entries)), entries)


def _extend_by_one(reader: PickleReader, _: Any) -> None:
    entry = reader.pop()
    reader.containers.extend(reader.top(), [entry])


def _extend(reader: PickleReader, _: Any) -> None:
    entries = reader.pop_mark()
    reader.containers.extend(reader.top(), entries)


def _set_item(reader: PickleReader, _: Any) -> None:
    value, key = reader.pop(), reader.pop()
    reader.containers.set_items(reader.top(), [key, value])


def _set_items(reader: PickleReader, _: Any) -> None:
    entries = reader.pop_mark()
    reader.containers.set_items(reader.top(), entries)


def _build(reader: PickleReader, _: Any) -> None:
    state = reader.pop()
    reader.containers.set_state(reader.top(), state)


def _stack_global(reader: PickleReader, _: Any) -> None:
    name, module = reader.pop(), reader.pop()
    reader.stack.append(reader.named(module, name))


def _reduce(reader: PickleReader, _: Any) -> None:
    arguments, function = reader.pop(), reader.pop()
    reader.stack.append(reader.call(function, arguments))


def _reduce_with_names(reader: PickleReader, _: Any) -> None:
    reader.pop()  # arguments by name, which none of the known functions has
    _reduce(reader, None)


def _instance(reader: PickleReader, names: str) -> None:
    reader.instance(reader.named(*names.split(" ", 1)), reader.pop_mark())


def _instance_on_the_stack(reader: PickleReader, _: Any) -> None:
    function, *arguments = reader.pop_mark() or [None]
    reader.instance(function, arguments)


_STEPS: dict[str, _Step] = {
    "PROTO": lambda reader, _: None,
    "FRAME": lambda reader, _: None,
    "NONE": lambda reader, _: reader.stack.append(None),
    "NEWTRUE": lambda reader, _: reader.stack.append(True),
    "NEWFALSE": lambda reader, _: reader.stack.append(False),
    "MARK": lambda reader, _: reader.mark(),
    "POP": lambda reader, _: reader.stack.pop() if reader.stack else reader.pop_mark(),
    "POP_MARK": lambda reader, _: reader.pop_mark(),
    "DUP": lambda reader, _: reader.stack.append(reader.top()),
    "MEMOIZE": lambda reader, _: reader.remember(),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), PickleReader.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), PickleReader.recall),
    "GLOBAL": lambda reader, names: reader.stack.append(reader.named(*names.split(" ", 1))),
    "STACK_GLOBAL": _stack_global,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _reduce),
    "NEWOBJ_EX": _reduce_with_names,
    "INST": _instance,
    "OBJ": _instance_on_the_stack,
    "BUILD": _build,
    "BINPERSID": lambda reader, _: reader.push(reader.persistent(reader.pop())),
    "EMPTY_DICT": lambda reader, _: reader.push({}),
    "EMPTY_LIST": lambda reader, _: reader.push([]),
    "EMPTY_SET": lambda reader, _: reader.push(set()),
    "EMPTY_TUPLE": lambda reader, _: reader.push(()),
    "TUPLE1": lambda reader, _: reader.tuple_of(1),
    "TUPLE2": lambda reader, _: reader.tuple_of(2),
    "TUPLE3": lambda reader, _: reader.tuple_of(3),
    "TUPLE": _of_all(tuple),
    "LIST": _of_all(list),
    "DICT": _dictionary,
    "FROZENSET": _frozen_set,
    "APPEND": _extend_by_one,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _extend),
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
}
