"""Pictures of denoising: a coloured line of text for terminals, a token-by-time image for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_DIM, _BRIGHT, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"
_LINE = 100
"""Letters a line of text."""

_BACKGROUND = (255, 255, 255)
_FUTURE = (246, 247, 249)
_MASK = (218, 222, 228)
_PALETTE = (
    (46, 139, 87),
    (38, 101, 189),
    (240, 160, 32),
    (204, 51, 63),
    (127, 86, 178),
    (23, 158, 168),
    (214, 96, 150),
    (122, 132, 40),
)
"""The first four are the usual colours of A, C, G and T; further tokens take lighter rounds of the eight."""
_LAPS = 3
"""Rounds until the colours come again: a fourth could not be told from white."""

_WIDTH, _HEIGHT = 800, 480
"""Pixels that the token-by-time part fills at most, as whole pixels a cell allow; long sequences take one a token."""
_LARGEST_CELL, _FRAMED_CELL = 48, 12
_STRIP = 20
"""Height of the present sequence below, at least."""
_MARGIN = 12

Tokens = npt.NDArray[np.int64]
Image = npt.NDArray[np.uint8]


def ansi(tokens: Tokens, previous: Tokens | None, letters: Sequence[str], *, step: int, time: float) -> str:
    """One state as text: masks dim, tokens that appeared in the last step bright.

    Args:
        tokens: ``(L,)``.
        previous: the state before, None at the start of an episode.
        letters: the text of each visible token, one letter or more, then that of MASK.
        step: steps made so far.
        time: t.
    """
    fresh = np.zeros(len(tokens), dtype=bool) if previous is None else tokens != previous
    mask = len(letters) - 1
    lines, width = [""], 0
    style = _PLAIN
    for token, is_fresh in zip(tokens, fresh, strict=True):
        if width and width + len(letters[token]) > _LINE:
            lines[-1] += _PLAIN if style != _PLAIN else ""
            lines.append("")
            width, style = 0, _PLAIN
        wanted = _DIM if token == mask else _BRIGHT if is_fresh else _PLAIN
        if wanted != style:
            # Dim and bright are switched off by plain only.
            lines[-1] += _PLAIN + (wanted if wanted != _PLAIN else "")
            style = wanted
        lines[-1] += letters[token]
        width += len(letters[token])
    lines[-1] += _PLAIN if style != _PLAIN else ""
    return "\n".join([f"step {step}, t = {time:.3f}", *lines])


def token_colours(num_tokens: int) -> npt.NDArray[np.uint8]:
    """One colour a visible token, ``(V, 3)``."""
    colours = []
    for token in range(num_tokens):
        lap, index = divmod(token % (_LAPS * len(_PALETTE)), len(_PALETTE))
        # Each lap goes half of the way that is left to white.
        colours.append([255 - round((255 - channel) * 0.5**lap) for channel in _PALETTE[index]])
    return np.array(colours, dtype=np.uint8)


class History:
    """The states of B episodes so far, to be drawn as a token-by-time picture.

    Args:
        num_envs: B.
        length: L.
        horizon: the most steps that an episode can make.
        num_tokens: V.
    """

    def __init__(self, num_envs: int, length: int, horizon: int, num_tokens: int) -> None:
        self._tokens = np.full((num_envs, horizon + 1, length), -1, dtype=np.int64)
        self._latest = np.zeros(num_envs, dtype=np.int64)
        # Row V is MASK's, and row -1, the last one, that of steps still to come.
        self._colours = np.vstack([token_colours(num_tokens), _MASK, _FUTURE]).astype(np.uint8)

    def record(self, tokens: Tokens, step: npt.NDArray[np.int64]) -> None:
        """Note the states ``(B, L)`` after ``step`` ``(B,)`` steps; step 0 begins a new picture."""
        rows = np.arange(len(step))
        self._tokens[step == 0] = -1
        self._tokens[rows, step] = tokens
        self._latest = step.copy()

    def previous(self, env: int) -> Tokens | None:
        """The state before the present one, or None at the start of an episode."""
        return self._tokens[env, self._latest[env] - 1] if self._latest[env] > 0 else None

    def image(self, env: int) -> Image:
        """The picture of one environment, uint8 ``(H, W, 3)``: time runs downwards, the present sequence below.

        Its size depends on L and the horizon alone.
        """
        grid = self._colours[self._tokens[env]]
        rows, length = grid.shape[:2]
        width, height = (min(_LARGEST_CELL, max(1, size)) for size in (_WIDTH // length, _HEIGHT // rows))
        upper = _paint(grid, width, height)
        present = _paint(grid[self._latest[env]][None], width, max(_STRIP, height))
        gap = np.full((_MARGIN, upper.shape[1], 3), _BACKGROUND, dtype=np.uint8)
        border: Any = ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0))
        picture: Image = np.pad(np.concatenate([upper, gap, present]), border, constant_values=255)
        return picture


def _paint(colours: Image, width: int, height: int) -> Image:
    """Colours ``(rows, columns, 3)`` as cells of ``width x height`` pixels, with a thin frame where there is room."""
    image: Image = colours.repeat(height, axis=0).repeat(width, axis=1)
    if min(width, height) >= _FRAMED_CELL:
        for offset in (0, -1):
            image[offset % height :: height] = _BACKGROUND
            image[:, offset % width :: width] = _BACKGROUND
    return image
