"""How much of each thing a pickle may take."""

MOST_OPCODES = 1 << 20
"""Steps of a program; a tensor takes about forty."""
LONGEST_PROGRAM = 1 << 26
"""Bytes of a program; the numbers of tensors stand beside it."""
LONGEST_TEXT = 1 << 24
"""Bytes of a text: the files of a tokenizer are the longest that checkpoints bring along."""
LONGEST_NAME = 1 << 10
"""Letters of a module's name, or of a class's within it."""
LONGEST_NUMBER = 1 << 8
"""Bytes or digits of a number."""
MOST_NAMES = 1 << 16
"""Names of classes and functions; a pickler writes each once."""
MOST_CONTAINERS = 1 << 19
"""Containers and inert objects; a tensor takes about five."""
MOST_ARGUMENTS = 16
"""Of a function that is known."""
DEEPEST = 1_000
"""Containers within containers."""
MOST_COPIED = 1 << 20
"""Entries of containers that are made of other containers."""
MOST_INTEGER_KEYS = 1 << 16
"""Integers of 64 bits among keys of dictionaries and members of sets: which of them collide is known beforehand."""
MOST_ODD_KEYS = 1_000
"""Keys that are neither text nor integers of 64 bits; likewise."""
LARGEST_KEY = 64
"""Parts of a tuple that is a key: it is hashed part by part, wherever it stands."""


class LimitError(ValueError):
    """A file that takes more of something than any checkpoint does."""
