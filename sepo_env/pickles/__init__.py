"""Foreign pickles, followed step by step: what they build is plain or inert, and what that costs is bounded.

A pickle is a program for a machine with a stack: it may name any function, call it, and set the attributes of what it
gets. The machine here builds numbers, texts and containers, all of them made in this one reading. Whatever else a
pickle names, calls or restores is an `Inert` that keeps the name and the state, unread; a few functions are known by
name, and theirs are the only calls. So nothing in a file reaches an object that outlives its reading.

Time and memory grow with the length of the program and no faster: each opcode is a step of bounded cost, and the
limits (`sepo_env.pickles.limits`) are far beyond what checkpoints hold.
"""

from sepo_env.pickles.limits import LimitError
from sepo_env.pickles.machine import PickleReader

__all__ = ["LimitError", "PickleReader"]
