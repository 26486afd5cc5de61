"""Train the denoiser of the language world and report its held-out figures.

Run ``python -m sepo_env.assets.build.text_denoiser --help``. A run that was stopped goes on where its last checkpoint
stands, with the same result as one that was not.
"""

import argparse
import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import trange

from sepo_env.assets import asset_path
from sepo_env.assets.build.denoiser import bound_nats, evaluate_bits
from sepo_env.assets.build.text_data import LENGTH, load_windows
from sepo_env.assets.build.training import save_atomically, update_average, warmup_cosine
from sepo_env.denoisers import Denoiser, TransformerDenoiser, TransformerDenoiserConfig, load_denoiser, save_denoiser
from sepo_env.tasks.codec import WordPieceCodec

CHECKPOINT_SECONDS = 60.0
WARMUP_STEPS = 200
EMA_DECAY = 0.998
WEIGHT_DECAY = 0.05
GRADIENT_NORM = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The command line."""

    work_dir: Path
    export: Path
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    threads: int
    width: int
    depth: int
    heads: int


def train(options: Options) -> Denoiser:
    """Return the averaged weights after ``options.steps`` steps, resuming where a checkpoint exists."""
    codec = WordPieceCodec.load(asset_path("text_codec.json"))
    splits = load_windows(options.work_dir, codec)
    training = torch.from_numpy(splits["training"])
    validation = torch.from_numpy(splits["validation"])[::8]  # neighbours overlap
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    config = TransformerDenoiserConfig(
        codec.num_tokens, codec.num_tokens + 1, LENGTH, options.width, options.depth, options.heads
    )
    model = TransformerDenoiser(config)
    with torch.no_grad():  # it starts as the unigram model, which would take hundreds of steps to learn
        model.bias.copy_((training.flatten().bincount(minlength=codec.num_tokens) + 1.0).log())
        model.bias.sub_(model.bias.logsumexp(0))
    average = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
    )
    checkpoint = options.work_dir / f"{options.export.stem}.checkpoint.pt"
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
        step = state["step"]

    def save() -> None:
        save_atomically(
            {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "generator": generator.get_state(),
                "step": step,
            },
            checkpoint,
        )
        # Half precision on disk, to be read as float32: half the size.
        half = copy.deepcopy(average).half()
        save_denoiser(half, options.export, {"licence": "MIT", "seed": str(options.seed), "steps": str(step)})

    saved, running = time.monotonic(), 0.0
    progress = trange(step, options.steps, initial=step, total=options.steps, mininterval=10)
    for step in progress:
        factor = warmup_cosine(step, options.steps, WARMUP_STEPS)
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * factor
        rows = torch.randint(len(training), (options.batch_size,), generator=generator)
        loss = bound_nats(model, training[rows], generator).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimiser.step()
        update_average(average, model, step, EMA_DECAY)
        running = loss.item() if running == 0.0 else 0.99 * running + 0.01 * loss.item()
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            step += 1
            save()
            bits, error = evaluate_bits(average, validation, num_masks=1, seed=1)
            log.info("step %d: training %.4f nats, validation %.4f +- %.4f bits", step, running, bits, error)
            saved = time.monotonic()
    step = options.steps
    save()
    return average


def parse(arguments: list[str] | None = None) -> Options:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="data and checkpoints; outside of the repository")
    parser.add_argument("--export", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the peak")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the masks")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--width", type=int, default=128, help="of the residual stream")
    parser.add_argument("--depth", type=int, default=4, help="blocks")
    parser.add_argument("--heads", type=int, default=4, help="of the attention")
    return Options(**vars(parser.parse_args(arguments)))


def main() -> None:
    """Train, then report."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = parse()
    torch.set_num_threads(options.threads)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    train(options)
    denoiser = load_denoiser(options.export)
    codec = WordPieceCodec.load(asset_path("text_codec.json"))
    test = torch.from_numpy(load_windows(options.work_dir, codec)["test"])
    log.info("test: %.4f +- %.4f bits a token", *evaluate_bits(denoiser, test, num_masks=4, seed=0))


if __name__ == "__main__":
    main()
