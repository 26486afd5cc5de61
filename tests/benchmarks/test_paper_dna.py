"""The published protocol, on the shipped default and on a folder in the layout of the published artefacts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from agents import REINFORCE
from benchmarks import _published, paper_dna
from sepo_env import tasks
from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig, save_denoiser
from sepo_env.errors import ArtefactsError, CheckpointError, InvalidArgumentError, MissingExtraError
from sepo_env.files import LOCK_FILE
from sepo_env.rewards.grelu import load_grelu
from sepo_env.tasks import artefacts
from sepo_env.tasks.artefact_files import ARTEFACTS

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
    return paper_dna.Options(**SMALL, checkpoint=str(tiny), device="cpu", output=tmp_path / "out")


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
    names = {"report.md", "comparison.csv", "measured.csv", "seed-0.json", "seed-0.csv", LOCK_FILE}
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
    del record["figures"]["motif_correlation"], record["digest"]
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
    with pytest.raises(CheckpointError, match="another num_steps"):  # which would write over the report of seed 0
        paper_dna.main(changed(one, num_steps=4, seeds=(1,)), "")


def test_a_saved_agent_is_judged_with_its_own_sampler(options: paper_dna.Options, tmp_path: Path) -> None:
    agent = REINFORCE(tasks.make("dna_enhancer"), device="cpu", corrector_steps=1)
    agent.save(tmp_path / "agent")
    chosen = changed(options, checkpoint=str(tmp_path / "agent"), seeds=(0,))
    paper_dna.main(chosen, "")
    expected = agent.sample(6, num_steps=3, seed=0)
    assert list(pd.read_csv(chosen.folder / "seed-0.csv")["sequence"]) == expected


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"num_samples": 1}, InvalidArgumentError),
        ({"batch_size": 0}, InvalidArgumentError),
        ({"num_steps": 0}, InvalidArgumentError),
        ({"num_likelihood_steps": 0}, InvalidArgumentError),
        ({"seeds": ()}, InvalidArgumentError),
        ({"seeds": (0, 0, 0)}, InvalidArgumentError),
        ({"device": "foo"}, InvalidArgumentError),
        ({"checkpoint": "nowhere.ckpt"}, CheckpointError),
        ({"artefacts": Path("nowhere")}, ArtefactsError),
    ],
)
def test_settings_that_cannot_work_are_refused(
    options: paper_dna.Options, fields: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        paper_dna.main(changed(options, **fields), "")
    assert not options.folder.exists()


@pytest.fixture
def published(options: paper_dna.Options, tmp_path: Path, fake_grelu, monkeypatch) -> paper_dna.Options:  # type: ignore[no-untyped-def]
    """A fine-tuned checkpoint on a folder of artefacts, as the published archive unpacks."""
    fake_grelu.install(monkeypatch)
    fake_grelu.write_folder(tmp_path / "DRAKES_data" / "data_and_model")
    checkpoint = str(ROOT / "tests" / "fixtures" / "dna_cnn" / "finetuned.ckpt")
    return changed(options, artefacts=tmp_path / "DRAKES_data", checkpoint=checkpoint)


def file_of(options: paper_dna.Options, key: str) -> Path:
    assert options.artefacts is not None
    return options.artefacts / "data_and_model" / ARTEFACTS[key].path


def test_on_artefacts_the_published_oracles_judge(
    published: paper_dna.Options, tmp_path: Path, fake_grelu, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:  # type: ignore[no-untyped-def]
    loaded = []
    monkeypatch.setattr(
        artefacts, "load_grelu", lambda path, **settings: loaded.append(path.name) or load_grelu(path, **settings)
    )
    paper_dna.main(published, "command")
    assert sorted(loaded) == ["binary_atac_cell_lines.ckpt", "reward_oracle_eval.ckpt", "reward_oracle_ft.ckpt"]
    tokens = tasks.make("dna_enhancer").encode(list(pd.read_csv(published.folder / "seed-0.csv")["sequence"]))
    held_out = fake_grelu.write(tmp_path / "again", 3, seed=list(ARTEFACTS).index("held-out oracle"))
    with torch.no_grad():
        scores = held_out(torch.nn.functional.one_hot(tokens, 4).float().mT)[:, 0, 0]
    figures = json.loads((published.folder / "seed-0.json").read_text())["figures"]
    assert figures["held_out_median"] == pytest.approx(float(np.median(scores)), rel=1e-5)
    shown = capsys.readouterr().out
    assert "finetuned on the published artefacts" in shown
    assert "NOT comparable" not in shown


def test_other_artefacts_of_the_same_sizes_are_noticed(published: paper_dna.Options, fake_grelu) -> None:  # type: ignore[no-untyped-def]
    one = changed(published, seeds=(0,))
    paper_dna.main(one, "")
    oracle = file_of(published, "held-out oracle")
    size = oracle.stat().st_size
    fake_grelu.write(oracle, 3, seed=9)
    assert oracle.stat().st_size == size
    with pytest.raises(CheckpointError, match="another artefacts"):
        paper_dna.main(one, "")


@pytest.mark.parametrize("key", ["training oracle", "held-out oracle", "accessibility oracle", "data", None])
def test_what_is_damaged_is_found_before_anything_is_sampled(
    published: paper_dna.Options, fake_grelu, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(paper_dna, "measure", lambda *_: pytest.fail("sampled"))
    if key is None:
        fake_grelu.remove(monkeypatch)
    else:
        file_of(published, key).write_bytes(b"damaged")
    with pytest.raises(MissingExtraError if key is None else (ArtefactsError, CheckpointError)):
        paper_dna.main(published, "")
    assert not published.folder.exists()


def test_an_agent_of_artefacts_needs_them(published: paper_dna.Options, tmp_path: Path) -> None:
    task = tasks.make("dna_enhancer", artefacts=published.artefacts)
    REINFORCE(task, device="cpu").save(tmp_path / "mine" / "agent")
    chosen = changed(published, checkpoint=str(tmp_path / "mine" / "agent"), seeds=(0,))
    with pytest.raises(CheckpointError, match="trained on published artefacts; give their folder: --artefacts"):
        paper_dna.main(changed(chosen, artefacts=None), "")
    assert not chosen.folder.exists()
    assert paper_dna.main(chosen, "") == 0
