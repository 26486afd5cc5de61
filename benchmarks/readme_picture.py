"""Draw the README's picture: a sequence denoising, and the held-out reward of a comparison's agents.

::

    python benchmarks/readme_picture.py --curves benchmarks/results/full/curves.csv
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # run as a file
    import _checkout  # noqa: F401

import gymnasium as gym
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import sepo_env  # noqa: F401 - registers the environments
from agents.command_line import DONE
from benchmarks._files import read_table
from benchmarks._program import PathOption, run_program
from benchmarks.comparison.figures import STYLE, draw_learning_curve
from sepo_env.arguments import Seed, Size, check_fields
from sepo_env.files import replacing

_RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """Draw the README's picture."""

    curves: PathOption = _RESULTS / "full" / "curves.csv"
    """Tidy table of a comparison."""
    output: PathOption = _RESULTS / "readme.png"
    """The picture to write."""
    seed: Seed = 0
    """Of the episode on the left."""
    num_steps: Size = 64
    """Reverse steps of that episode."""

    def __post_init__(self) -> None:
        """Check the types and ranges of all flags."""
        check_fields(self)


def episode(seed: int, num_steps: int) -> np.ndarray:
    """The token-by-time picture of one episode under the pretrained denoiser, uint8 ``(H, W, 3)``."""
    env: Any = gym.make("DNAEnhancer-v0", num_steps=num_steps, render_mode="rgb_array")
    env.reset(seed=seed)
    terminated = False
    while not terminated:
        *_, terminated, _, _ = env.step(env.unwrapped.pretrained_action())
    picture = env.render()
    env.close()
    return np.asarray(picture)


def main(options: Options, command: str) -> int:
    """Draw and write.

    Raises:
        CheckpointError: the table cannot be read, or is not that of a comparison.
        FolderError: the picture cannot be written.
    """
    numbers = ["seed", "iteration", "nfe", "held_out_reward"]
    curves = read_table(Path(options.curves), "give the curves.csv of a comparison", numbers=numbers, texts=["agent"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.0))
        left, right = figure.subplots(1, 2, width_ratios=[1.5, 1.0])
        left.imshow(episode(options.seed, options.num_steps), aspect="auto", interpolation="nearest")
        left.set(xlabel="position in the sequence", ylabel="denoising steps, top to bottom", xticks=[], yticks=[])
        left.set_title("an episode: masks (grey) turn into bases")
        left.grid(visible=False)
        draw_learning_curve(right, curves, "nfe")
        right.set(xlabel="network evaluations", ylabel="predicted activity, held-out oracle")
        right.set_title("agents at equal cost")
        right.legend()
        with replacing(Path(options.output)) as path:
            figure.savefig(path, format="png", metadata={"Software": None})
    return DONE


if __name__ == "__main__":
    sys.exit(run_program(Options, main, file="readme_picture.py", description=__doc__))
