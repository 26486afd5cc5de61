"""Train the DNA denoiser and report its held-out figures.

Run ``python -m benchmarks.build_assets.denoiser --help``. A run that was stopped goes on where its last checkpoint
stands, with the same result as one that was not.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.build_assets import program
from benchmarks.build_assets.data import LENGTH, load_dhs
from benchmarks.build_assets.denoiser_training import Recipe, TrainingOptions, evaluate_bits, fit, make_parser, start
from benchmarks.build_assets.training import random_strand
from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig, Denoiser

RECIPE = Recipe(warmup_steps=500, weight_decay=0.01, average_decay=0.999)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options(TrainingOptions):
    """The command line."""

    channels: int
    kernel_size: int
    dilations: tuple[int, ...]


def train(options: Options) -> Denoiser:
    """Return the averaged weights; a run that was stopped goes on."""
    splits = load_dhs(options.work_dir)
    training = torch.from_numpy(splits["training"].tokens)

    def draw_batch(size: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(training), (size,), generator=generator)
        return random_strand(training[rows], generator)

    config = ConvDenoiserConfig(
        channels=options.channels, kernel_size=options.kernel_size, dilations=options.dilations, length=LENGTH
    )
    validation = torch.from_numpy(splits["validation"].tokens)[::4]  # the file is sorted by cell line
    return fit(lambda: ConvDenoiser(config), draw_batch, validation, options, RECIPE)


def parse(arguments: list[str] | None = None) -> Options:
    """Return the options of a command line."""
    parser = make_parser(__doc__, steps=22000)
    parser.add_argument("--channels", type=program.count, default=64, help="width of the residual stream")
    parser.add_argument("--kernel-size", type=program.count, default=9, help="width of the residual convolutions")
    parser.add_argument("--dilations", type=program.count, nargs="+", default=[1, 3, 9, 2], help="one block for each")
    options = vars(parser.parse_args(arguments))
    return Options(**{**options, "dilations": tuple(options["dilations"])})


def main() -> None:
    """Train, then report."""
    options = parse()
    start(options)
    denoiser = train(options)
    test = torch.from_numpy(load_dhs(options.work_dir)["test"].tokens)
    log.info("chr1: %.4f +- %.4f bits a base", *evaluate_bits(denoiser, test, num_masks=16, seed=0))


if __name__ == "__main__":
    program.run(main)
