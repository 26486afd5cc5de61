"""The published protocol, on the shipped default and on a folder in the layout of the published artefacts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import _published
import numpy as np
import pandas as pd
import paper_dna
import pytest
import torch

from agents import REINFORCE
from sepo_env import tasks
from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig, save_denoiser
from sepo_env.errors import ArtefactsError, CheckpointError, InvalidArgumentError

ROOT = Path(__file__).parents[2]
SMALL = {"seeds": (0, 1), "num_samples": 6, "batch_size": 4, "num_steps": 3, "num_likelihood_steps": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser file of the task that evaluates in no time."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_denoiser(ConvDenoiser(ConvDenoiserConfig(length=200, channels=8, dilations=(1,))), path)
    return path


@pytest.fixture
def options(tiny: Path, tmp_path: Path) -> paper_dna.Options:
    return paper_dna.Options(**SMALL, checkpoint=tiny, output=tmp_path / "out")


def changed(options: paper_dna.Options, **fields: object) -> paper_dna.Options:
    return paper_dna.Options(**{**vars(options), **fields})


def test_the_command_runs_on_the_default_and_says_what_it_is_worth(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "paper_dna.py"), "--num-samples", "4", "--num-steps", "2"]
    command += ["--num-likelihood-steps", "1", "--seeds", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "NOT comparable" in done.stdout
    assert "not the published protocol" in done.stdout
    assert "NFE" in done.stderr
    output = tmp_path / "runs" / "paper-dna-pretrained"
    names = {"report.md", "comparison.csv", "measured.csv", "seed-0.json", "seed-0.csv"}
    assert {path.name for path in output.iterdir()} == names
    assert (output / "report.md").read_text().strip() in done.stdout
    assert "| DRAKES without KL" in done.stdout


def test_the_measured_row_is_the_metrics_of_the_written_sequences(
    options: paper_dna.Options, capsys: pytest.CaptureFixture[str]
) -> None:
    assert paper_dna.main(options, "command") == 0
    task = tasks.make("dna_enhancer")
    medians, rates = [], []
    for seed in options.seeds:
        tokens = task.encode(list(pd.read_csv(options.folder / f"seed-{seed}.csv")["sequence"]))
        assert tokens.shape == (6, 200)
        medians.append(float(np.median(task.judge()(tokens))))
        rates.append(float((task.judge("accessibility")(tokens) > 0.5).double().mean()))
    table = pd.read_csv(options.folder / "comparison.csv")
    row = table.iloc[0]
    assert row["method"] == "tiny (measured here)"
    assert row["pred_activity"] == pytest.approx(np.mean(medians))
    assert row["pred_activity_spread"] == pytest.approx(np.std(medians, ddof=1))
    assert row["atac_acc_percent"] == pytest.approx(100 * np.mean(rates))
    measured = pd.read_csv(options.folder / "measured.csv")
    assert measured["seed"].tolist() == [0, 1]
    assert set(task.metrics(tokens, num_likelihood_steps=1)) == set(measured.columns) - {"seed"}
    assert f"{np.mean(medians):.2f} ({np.std(medians, ddof=1):.2f})" in capsys.readouterr().out
    first, second = (pd.read_csv(options.folder / f"seed-{seed}.csv") for seed in (0, 1))
    assert not set(first["sequence"]) & set(second["sequence"])


def test_seeds_of_an_older_version_leave_the_new_metric_empty(options: paper_dna.Options) -> None:
    paper_dna.main(options, "")
    measured = pd.read_csv(options.folder / "measured.csv")
    row = pd.read_csv(options.folder / "comparison.csv").iloc[0]
    assert row["motif_correlation"] == pytest.approx(measured["motif_correlation"].mean())
    path = options.folder / "seed-0.json"
    record = json.loads(path.read_text())
    del record["figures"]["motif_correlation"]
    path.write_text(json.dumps(record))
    paper_dna.main(options, "")
    row = pd.read_csv(options.folder / "comparison.csv").iloc[0]
    assert row[["motif_correlation", "motif_correlation_spread"]].isna().all()
    assert row["kmer_correlation"] == pytest.approx(measured["kmer_correlation"].mean())
    table = _published.comparison(measured.drop(columns="motif_correlation"), "tiny")
    assert pd.isna(table.loc[0, "motif_correlation"])
    assert "JASPAR Corr" in _published.comparison_markdown(table)


def test_batches_do_not_matter(options: paper_dna.Options, tmp_path: Path) -> None:
    one = changed(options, seeds=(3,))
    other = changed(one, batch_size=1, output=tmp_path / "other")
    paper_dna.main(one, "")
    paper_dna.main(other, "")
    pd.testing.assert_frame_equal(pd.read_csv(one.folder / "seed-3.csv"), pd.read_csv(other.folder / "seed-3.csv"))


def test_called_again_it_goes_on_with_the_seeds_that_are_missing(
    options: paper_dna.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = paper_dna.measure, []

    def stop_at_the_second(task, candidate, options, seed):  # type: ignore[no-untyped-def]
        asked.append(seed)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(task, candidate, options, seed)

    monkeypatch.setattr(paper_dna, "measure", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        paper_dna.main(options, "")
    assert not (options.folder / "report.md").exists()
    first = (options.folder / "seed-0.json").read_bytes()
    paper_dna.main(options, "")
    assert asked == [0, 1, 1]
    assert (options.folder / "seed-0.json").read_bytes() == first
    paper_dna.main(options, "")
    assert asked == [0, 1, 1]


def test_results_of_other_settings_are_not_mixed_in(options: paper_dna.Options) -> None:
    one = changed(options, seeds=(0,))
    paper_dna.main(one, "")
    with pytest.raises(CheckpointError, match="another num_steps"):
        paper_dna.main(changed(one, num_steps=4), "")
    with pytest.raises(CheckpointError, match="another checkpoint"):
        paper_dna.main(changed(one, checkpoint=None), "")


def test_a_saved_agent_is_judged_with_its_own_sampler(options: paper_dna.Options, tmp_path: Path) -> None:
    agent = REINFORCE(tasks.make("dna_enhancer"), device="cpu", corrector_steps=1)
    agent.save(tmp_path / "agent")
    chosen = changed(options, checkpoint=tmp_path / "agent", seeds=(0,))
    paper_dna.main(chosen, "")
    expected = agent.sample(6, num_steps=3, seed=0)
    assert list(pd.read_csv(chosen.folder / "seed-0.csv")["sequence"]) == expected


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"num_samples": 1}, InvalidArgumentError),
        ({"seeds": ()}, InvalidArgumentError),
        ({"checkpoint": Path("nowhere.ckpt")}, CheckpointError),
        ({"artefacts": Path("nowhere")}, ArtefactsError),
    ],
)
def test_settings_that_cannot_work_are_refused(
    options: paper_dna.Options, fields: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        paper_dna.main(changed(options, **fields), "")
    assert not options.folder.exists()


def test_on_artefacts_the_published_oracles_judge(
    options: paper_dna.Options, tmp_path: Path, fake_grelu, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:  # type: ignore[no-untyped-def]
    fixtures, folder = ROOT / "tests" / "fixtures" / "dna_cnn", tmp_path / "DRAKES_data"
    logs = folder / "mdlm" / "outputs_gosai" / "lightning_logs"
    fake_grelu.install(monkeypatch)
    fake_grelu.write(logs / "reward_oracle_ft.ckpt", 3, seed=1)
    held_out = fake_grelu.write(logs / "reward_oracle_eval.ckpt", 3, seed=2)
    data = folder / "mdlm" / "gosai_data"
    fake_grelu.write(data / "binary_atac_cell_lines.ckpt", 7, task="binary", loss="bce", seed=3)
    shutil.copy(fixtures / "pretrained.ckpt", logs.parent)
    (data / "processed_data").mkdir()
    letters = np.random.default_rng(0).choice(list("ACGT"), size=(5, 200))
    rows = [f"{''.join(row)},{number},0,0" for number, row in enumerate(letters)]
    (data / "processed_data" / "gosai_all.csv").write_text("\n".join(["seq,hepg2,k562,sknsh", *rows]))
    chosen = changed(options, artefacts=folder, checkpoint=fixtures / "finetuned.ckpt", seeds=(0,))
    paper_dna.main(chosen, "command")
    tokens = tasks.make("dna_enhancer").encode(list(pd.read_csv(chosen.folder / "seed-0.csv")["sequence"]))
    with torch.no_grad():
        scores = held_out(torch.nn.functional.one_hot(tokens, 4).float().mT)[:, 0, 0]
    figures = json.loads((chosen.folder / "seed-0.json").read_text())["figures"]
    assert figures["held_out_median"] == pytest.approx(float(np.median(scores)), rel=1e-5)
    shown = capsys.readouterr().out
    assert "finetuned on the published artefacts" in shown
    assert "NOT comparable" not in shown


def test_the_published_numbers_have_their_sources() -> None:
    table = pd.read_csv(_published.PUBLISHED, dtype={"arxiv": str}).set_index("method")
    assert table.loc["DRAKES", ["pred_activity", "atac_acc_percent", "kmer_correlation"]].tolist() == [
        5.61,
        92.5,
        0.887,
    ]
    assert table.loc["SEPO with gradient flow", ["pred_activity", "atac_acc_percent"]].tolist() == [7.64, 99.9]
    assert table.loc["pretrained", "log_likelihood"] == -261
    assert set(_published.COLUMNS) <= set(table.columns)
    for method, row in table.iterrows():
        assert row["source"], method
        assert pd.isna(row["arxiv"]) or re.fullmatch(r"\d{4}\.\d{5}", row["arxiv"])
    assert table["arxiv"].isna().sum() == 1  # GLID2E is a conference paper
    assert table["note"].str.contains("evaluation oracle").sum() == 2
