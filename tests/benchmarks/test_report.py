"""The page of a comparison: samples to read where a person can read them."""

from __future__ import annotations

import pandas as pd

from benchmarks.comparison.report import _shown_samples, reference_of
from benchmarks.comparison.suite import make_suite


def test_the_first_samples_of_the_first_seed_are_shown_unselected() -> None:
    rows = [
        {
            "agent": agent,
            "seed": seed,
            "sequence": f"{agent} {seed} {i}",
            "held_out_reward": i / 10,
            "training_reward": -0.5,
        }
        for seed in (3, 1)
        for agent in ("pretrained", "sepo")
        for i in range(9)
    ]
    lines = _shown_samples(pd.DataFrame(rows)).split("\n")
    body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert body == [
        [agent, f"+{i / 10:.2f}", "-0.50", f"{agent} 1 {i}"] for agent in ("pretrained", "sepo") for i in range(5)
    ]


def test_what_is_real_text_is_drawn_beside_the_samples() -> None:
    reference = reference_of(make_suite("TextSentiment-v0", "smoke"))
    assert reference.readable
    assert reference.kmers is None
    assert reference.held_out.min() >= -1
    assert reference.held_out.max() <= 1
    low, high = reference.likelihood_band
    assert -180 < low < high < -40
    assert not reference_of(make_suite("DNAEnhancer-v0", "smoke")).readable
