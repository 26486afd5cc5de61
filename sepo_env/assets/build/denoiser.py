"""Train the DNA denoiser and report its held-out figures.

Run ``python -m sepo_env.assets.build.denoiser --help``. A run that was stopped goes on where its last checkpoint
stands, with the same result as one that was not.
"""

import argparse
import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import trange

from sepo_env.assets.build.data import LENGTH, load_dhs
from sepo_env.assets.build.training import random_strand, save_atomically, update_average, warmup_cosine
from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig, Denoiser, save_denoiser

MASK = 4
CHECKPOINT_SECONDS = 60.0
WARMUP_STEPS = 500
EMA_DECAY = 0.999
WEIGHT_DECAY = 0.01
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
    channels: int
    kernel_size: int
    dilations: tuple[int, ...]


def mask_tokens(tokens: Tensor, generator: torch.Generator, mask_token: int = MASK) -> tuple[Tensor, Tensor]:
    r"""Return noisy tokens ``(B, L)`` and the number of masks ``(B,)``, stratified over the batch.

    The continuous-time bound of an absorbing process under the log-linear schedule,
    :math:`\int_0^1 t^{-1} E \sum_{i\,masked} -\log p(x_0^i | x_t) dt`, equals :math:`\sum_n (L/n)/L\, E_n[\ldots]` with
    ``n`` masks, ``n`` uniform on 1..L (arXiv:2110.02037). Fixing the count takes the noise of the binomial out of the
    weight 1/t, and stratifying it over the batch most of what is left.
    """
    batch, length = tokens.shape
    offset = torch.rand(1, generator=generator)
    count = (((torch.arange(batch) + offset) / batch) * length).long() + 1  # (B,) in 1..L
    rank = torch.rand(batch, length, generator=generator).argsort(dim=-1).argsort(dim=-1)
    return tokens.masked_fill(rank < count[:, None], mask_token), count


def bound_nats(denoiser: Denoiser, tokens: Tensor, generator: torch.Generator) -> Tensor:
    r"""Return an unbiased estimate ``(B,)`` of the negative bound, in nats a token.

    .. math:: \frac{1}{n} \sum_{i\,masked} -\log p_\theta(x_0^i \mid x_t), \quad n \sim U\{1..L\}
    """
    noisy, count = mask_tokens(tokens, generator, denoiser.num_tokens)
    log_p = denoiser(noisy, count / tokens.shape[1])
    cross_entropy = -log_p.gather(-1, tokens[..., None]).squeeze(-1)
    return (cross_entropy * (noisy == denoiser.num_tokens)).sum(-1) / count


@torch.no_grad()
def evaluate_bits(denoiser: Denoiser, tokens: Tensor, num_masks: int, seed: int) -> tuple[float, float]:
    """Return the bound in bits a token over ``tokens`` ``(N, L)`` and its standard error, ``num_masks`` draws a row.

    The error counts the draws of the masks as well as the choice of the sequences.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for _ in range(num_masks):
        order = torch.randperm(len(tokens), generator=generator)
        for rows in order.split(256):
            total[rows] += bound_nats(denoiser, tokens[rows], generator).double()
    bits = total / num_masks / torch.tensor(2.0, dtype=torch.float64).log()
    return bits.mean().item(), (bits.std() / len(bits) ** 0.5).item()


def train(options: Options) -> Denoiser:
    """Return the averaged weights after ``options.steps`` steps, resuming where a checkpoint exists."""
    splits = load_dhs(options.work_dir)
    training = torch.from_numpy(splits["training"].tokens)
    validation = torch.from_numpy(splits["validation"].tokens)[::4]  # the file is sorted by cell line
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = ConvDenoiser(
        ConvDenoiserConfig(
            channels=options.channels,
            kernel_size=options.kernel_size,
            dilations=options.dilations,
            length=LENGTH,
        )
    )
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
        save_denoiser(average, options.export, {"licence": "MIT", "seed": str(options.seed), "steps": str(step)})

    saved, running = time.monotonic(), 0.0
    progress = trange(step, options.steps, initial=step, total=options.steps, mininterval=10)
    for step in progress:
        factor = warmup_cosine(step, options.steps, WARMUP_STEPS)
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * factor
        rows = torch.randint(len(training), (options.batch_size,), generator=generator)
        loss = bound_nats(model, random_strand(training[rows], generator), generator).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimiser.step()
        update_average(average, model, step, EMA_DECAY)
        running = loss.item() if running == 0.0 else 0.995 * running + 0.005 * loss.item()
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            step += 1
            save()
            bits, error = evaluate_bits(average, validation, num_masks=1, seed=1)
            log.info("step %d: training %.4f nats, chr2 %.4f +- %.4f bits", step, running, bits, error)
            saved = time.monotonic()
    step = options.steps
    save()
    return average


def parse(arguments: list[str] | None = None) -> Options:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="data and checkpoints; outside of the repository")
    parser.add_argument("--export", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--steps", type=int, default=22000, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the peak")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the masks")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--channels", type=int, default=64, help="width of the residual stream")
    parser.add_argument("--kernel-size", type=int, default=9, help="width of the residual convolutions, positions")
    parser.add_argument("--dilations", type=int, nargs="+", default=[1, 3, 9, 2], help="one block for each")
    options = vars(parser.parse_args(arguments))
    return Options(**{**options, "dilations": tuple(options["dilations"])})


def main() -> None:
    """Train, then report."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = parse()
    torch.set_num_threads(options.threads)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    denoiser = train(options)
    test = torch.from_numpy(load_dhs(options.work_dir)["test"].tokens)
    log.info("chr1: %.4f +- %.4f bits a base", *evaluate_bits(denoiser, test, num_masks=16, seed=0))


if __name__ == "__main__":
    main()
