"""Train the denoiser of the language world and report its held-out figures.

Run ``python -m benchmarks.build_assets.text_denoiser --help``. A run that was stopped goes on where its last checkpoint
stands, with the same result as one that was not.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.build_assets import program
from benchmarks.build_assets.denoiser_training import Recipe, TrainingOptions, evaluate_bits, fit, make_parser, start
from benchmarks.build_assets.text_data import LENGTH, load_windows
from sepo_env.assets import asset_path
from sepo_env.denoisers import Denoiser, TransformerDenoiser, TransformerDenoiserConfig, load_denoiser
from sepo_env.tasks.codec import WordPieceCodec

RECIPE = Recipe(warmup_steps=200, weight_decay=0.05, average_decay=0.998, half_precision=True)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options(TrainingOptions):
    """The command line."""

    width: int
    depth: int
    heads: int


def train(options: Options) -> Denoiser:
    """Return the averaged weights; a run that was stopped goes on."""
    codec = WordPieceCodec.load(asset_path("text_codec.json"))
    splits = load_windows(options.work_dir, codec)
    training = torch.from_numpy(splits["training"])

    def make_model() -> Denoiser:
        model = TransformerDenoiser(
            TransformerDenoiserConfig(
                codec.num_tokens, codec.num_tokens + 1, LENGTH, options.width, options.depth, options.heads
            )
        )
        with torch.no_grad():  # it starts as the unigram model, which would take hundreds of steps to learn
            model.bias.copy_((training.flatten().bincount(minlength=codec.num_tokens) + 1.0).log())
            model.bias.sub_(model.bias.logsumexp(0))
        return model

    def draw_batch(size: int, generator: torch.Generator) -> Tensor:
        return training[torch.randint(len(training), (size,), generator=generator)]

    validation = torch.from_numpy(splits["validation"])[::8]  # neighbours overlap
    return fit(make_model, draw_batch, validation, options, RECIPE)


def parse(arguments: list[str] | None = None) -> Options:
    """Return the options of a command line."""
    parser = make_parser(__doc__, steps=5000)
    parser.add_argument("--width", type=program.count, default=128, help="of the residual stream")
    parser.add_argument("--depth", type=program.count, default=4, help="blocks")
    parser.add_argument("--heads", type=program.count, default=4, help="of the attention")
    return Options(**vars(parser.parse_args(arguments)))


def main() -> None:
    """Train, then report."""
    options = parse()
    start(options)
    train(options)
    denoiser = load_denoiser(options.export)
    codec = WordPieceCodec.load(asset_path("text_codec.json"))
    test = torch.from_numpy(load_windows(options.work_dir, codec)["test"])
    log.info("test: %.4f +- %.4f bits a token", *evaluate_bits(denoiser, test, num_masks=4, seed=0))


if __name__ == "__main__":
    program.run(main)
