"""The training of a masked denoiser, whatever it is: its loss, its figure, and a loop that goes on where it stopped."""

import argparse
import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import trange

from benchmarks.build_assets import program
from benchmarks.build_assets.training import save_atomically, update_average, warmup_cosine
from sepo_env.assets.checksums import record
from sepo_env.denoisers import Denoiser, save_denoiser

CHECKPOINT_SECONDS = 60.0
GRADIENT_NORM = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingOptions:
    """What the command lines share."""

    work_dir: Path
    export: Path
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    threads: int


@dataclass(frozen=True)
class Recipe:
    """What belongs to a model rather than to a run of its training.

    Attributes:
        warmup_steps: over which the learning rate rises.
        weight_decay: of AdamW.
        average_decay: of the exponential average of the weights, which is what is exported.
        half_precision: whether the weights are written as float16, at half the size.
    """

    warmup_steps: int
    weight_decay: float
    average_decay: float
    half_precision: bool = False


def mask_tokens(tokens: Tensor, generator: torch.Generator, mask_token: int) -> tuple[Tensor, Tensor]:
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


def fit(
    make_model: Callable[[], Denoiser],
    draw_batch: Callable[[int, torch.Generator], Tensor],
    validation: Tensor,
    options: TrainingOptions,
    recipe: Recipe,
) -> Denoiser:
    """Return the averaged weights after ``options.steps`` steps, resuming where a checkpoint exists.

    Args:
        make_model: makes the network; called once, after torch's seed is set.
        draw_batch: a number of sequences, drawn with a generator, int64 ``(B, L)``.
        validation: sequences whose bound is logged with each checkpoint.
        options: the run.
        recipe: the model's.
    """
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = make_model()
    average = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
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
        exported = copy.deepcopy(average).half() if recipe.half_precision else average
        save_denoiser(exported, options.export, {"licence": "MIT", "seed": str(options.seed), "steps": str(step)})
        record(options.export)

    saved, running = time.monotonic(), 0.0
    progress = trange(step, options.steps, initial=step, total=options.steps, mininterval=10)
    for step in progress:
        factor = warmup_cosine(step, options.steps, recipe.warmup_steps)
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * factor
        loss = bound_nats(model, draw_batch(options.batch_size, generator), generator).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimiser.step()
        update_average(average, model, step, recipe.average_decay)
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


def make_parser(description: str | None, *, steps: int) -> argparse.ArgumentParser:
    """The arguments of `TrainingOptions`; a script adds its architecture's."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="data and checkpoints; outside of the repository")
    parser.add_argument("--export", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--steps", type=program.count, default=steps, help="optimiser steps")
    parser.add_argument("--batch-size", type=program.count, default=32, help="sequences a step")
    parser.add_argument("--learning-rate", type=program.positive, default=2e-3, help="the peak")
    parser.add_argument("--seed", type=program.seed, default=0, help="of the weights, the batches and the masks")
    parser.add_argument("--threads", type=program.count, default=1, help="of torch")
    return parser


def start(options: TrainingOptions) -> None:
    """Set up the logs, torch's threads and the working folder."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    options.work_dir.mkdir(parents=True, exist_ok=True)
