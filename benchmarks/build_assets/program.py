"""How the scripts are called: flags of numbers in their ranges, and one line for what goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from sepo_env.arguments import Count, NonNegative, Positive, Seed, check_argument
from sepo_env.errors import SepoEnvError


def _flag(read: Callable[[str], Any], hint: Any, name: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return check_argument("it", read(text), hint)

    parse.__name__ = name  # for the parser, which says "invalid ... value"
    return parse


count = _flag(int, Count, "count, a whole number of at least 1,")
seed = _flag(int, Seed, "seed, a whole number of at least 0,")
positive = _flag(float, Positive, "finite number above 0,")
non_negative = _flag(float, NonNegative, "finite number of at least 0,")


def run(main: Callable[[], None]) -> None:
    """Carry out a script; what it refuses, or what the disk refuses it, ends it with a line on standard error."""
    try:
        main()
    except (SepoEnvError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
