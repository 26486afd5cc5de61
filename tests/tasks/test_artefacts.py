"""DNAEnhancer on a folder of published artefacts: found, complained about, read, and with its roles apart."""

import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch

import sepo_env
from sepo_env import tasks
from sepo_env.denoisers.published import load_drakes
from sepo_env.errors import ArtefactsError, CheckpointError, HeldOutRewardError, InvalidArgumentError, UnknownNameError
from sepo_env.rewards.grelu import load_grelu
from sepo_env.tasks.artefact_files import ARTEFACTS, fingerprint
from sepo_env.tasks.artefacts import Artefacts
from sepo_env.tasks.measured_dna import read_measurements
from sepo_env.tasks.motif_metrics import motif_counts
from sepo_env.tasks.motifs import shipped_motifs

LENGTH = 200
ROWS = 2_000
PLACES = {
    "denoiser": "mdlm/outputs_gosai/pretrained.ckpt",
    "training oracle": "mdlm/outputs_gosai/lightning_logs/reward_oracle_ft.ckpt",
    "held-out oracle": "mdlm/outputs_gosai/lightning_logs/reward_oracle_eval.ckpt",
    "accessibility oracle": "mdlm/gosai_data/binary_atac_cell_lines.ckpt",
    "data": "mdlm/gosai_data/processed_data/gosai_all.csv",
}


def write_data(path, rows=ROWS):
    generator = np.random.default_rng(0)
    letters = generator.choice(list("ACGT"), size=(rows, LENGTH))
    activity = generator.permutation(rows) / 100.0
    lines = ["seq,hepg2,k562,sknsh"]
    lines += [f"{''.join(row)},{value},0.5,-0.5" for row, value in zip(letters, activity, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return ["".join(row) for row in letters], activity


@pytest.fixture(scope="module")
def folder(tmp_path_factory, fake_grelu, project_root):
    """A whole folder with small models of the published layouts in it."""
    folder = tmp_path_factory.mktemp("DRAKES_data")
    fake_grelu.write(folder / PLACES["training oracle"], 3, seed=1)
    fake_grelu.write(folder / PLACES["held-out oracle"], 3, seed=2)
    fake_grelu.write(folder / PLACES["accessibility oracle"], 7, seed=3, task="binary", loss="bce")
    write_data(folder / PLACES["data"])
    shutil.copy(project_root / "tests/fixtures/dna_cnn/pretrained.ckpt", folder / PLACES["denoiser"])
    return folder


@pytest.fixture
def world(folder, fake_grelu, monkeypatch):
    """The folder, with gReLU at hand."""
    fake_grelu.install(monkeypatch)
    return folder


def test_one_error_lists_what_is_there_and_what_is_missing(folder, tmp_path):
    for key in ("denoiser", "data"):
        (tmp_path / PLACES[key]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / PLACES[key]).write_bytes(b"")
    with pytest.raises(ArtefactsError) as caught:
        gym.make("DNAEnhancer-v0", artefacts=str(tmp_path))
    message = str(caught.value)
    there, missing = message.split("Missing:")
    for key, artefact in ARTEFACTS.items():
        part = there if key in ("denoiser", "data") else missing
        assert f"{artefact.path}: {artefact.purpose}" in part
    assert "docs/reproducing.md" in message


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ArtefactsError, match="no folder .*nowhere"):
        Artefacts(tmp_path / "nowhere")


def test_oracles_are_found_at_any_depth(folder, tmp_path):
    for key, place in PLACES.items():
        deep = place.replace("mdlm/outputs_gosai/lightning_logs", "runs/a/b/lightning_logs")
        (tmp_path / deep).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / deep).write_bytes(key.encode())
    found = Artefacts(tmp_path).paths
    assert {key: path.read_bytes().decode() for key, path in found.items()} == {key: key for key in PLACES}
    # A file of that name in another kind of folder is none.
    (tmp_path / "mdlm/reward_oracle_ft.ckpt").write_bytes(b"")
    assert Artefacts(tmp_path).paths == found


def fill(root, but=()):
    """Files at the published places, each with its role in it."""
    for key in PLACES.keys() - set(but):
        (root / PLACES[key]).parent.mkdir(parents=True, exist_ok=True)
        (root / PLACES[key]).write_text(key)


@pytest.mark.parametrize("given", [".", "data_and_model", "data_and_model/mdlm", "..", "../DRAKES_data/data_and_model"])
def test_the_archive_is_found_as_it_unpacks(tmp_path, given):
    folder = tmp_path / "DRAKES_data"
    fill(folder / "data_and_model")
    found = Artefacts(folder / given).paths
    assert {key: path.read_text() for key, path in found.items()} == {key: key for key in PLACES}
    assert all(path.samefile(folder / "data_and_model" / PLACES[key]) for key, path in found.items())


def test_the_published_place_goes_before_copies(tmp_path):
    fill(tmp_path)
    for copy in ("backup", "__MACOSX", "__MACOSX/data", "a/b"):
        fill(tmp_path / copy)
    assert Artefacts(tmp_path).paths == {key: tmp_path / place for key, place in PLACES.items()}


def test_copies_of_the_whole_folder_have_to_be_told_apart(tmp_path):
    for copy in ("data_and_model", "backup", "__MACOSX", "part"):
        fill(tmp_path / copy, but=["denoiser"] if copy == "part" else ())
    with pytest.raises(ArtefactsError, match="more than once, in backup, data_and_model, part; give one of these"):
        Artefacts(tmp_path)
    for place in PLACES.values():
        (tmp_path / "backup" / place).unlink()
    assert Artefacts(tmp_path).paths["data"] == tmp_path / "data_and_model" / PLACES["data"]
    (tmp_path / "latest").symlink_to(tmp_path / "data_and_model")
    assert Artefacts(tmp_path).paths["data"] == tmp_path / "data_and_model" / PLACES["data"]


def test_what_is_missing_is_said_of_the_folder_that_holds_the_rest(tmp_path):
    fill(tmp_path / "data_and_model", but=["data"])
    with pytest.raises(ArtefactsError) as caught:
        Artefacts(tmp_path)
    assert str(caught.value).startswith(f"the folder {tmp_path / 'data_and_model'} is no whole")
    assert str(caught.value).split("Missing:")[1].count("mdlm/") == 2  # the one file, and the advice


def test_folders_as_users_write_them(tmp_path, monkeypatch):
    fill(tmp_path / "home" / "data")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Artefacts("~/data").folder == tmp_path / "home" / "data"
    monkeypatch.chdir(tmp_path / "home")
    relative = Artefacts("data")
    monkeypatch.chdir(tmp_path)
    assert relative.paths["data"].read_text() == "data"
    monkeypatch.chdir(tmp_path / "home" / "data")  # which "" must not mean
    for nothing in ("", " ", "~nobody-of-that-name/data"):
        with pytest.raises(ArtefactsError, match="names no folder"):
            Artefacts(nothing)
    for nothing in (3, b"data", None, ["data"]):
        with pytest.raises(InvalidArgumentError, match="^folder is .* but must be text, or a path"):
            Artefacts(nothing)


@pytest.mark.parametrize("make", [shutil.copy, lambda one, other: other.symlink_to(one)])
def test_one_oracle_cannot_train_and_judge(folder, tmp_path, make):
    shutil.copytree(folder / "mdlm", tmp_path / "mdlm")
    (tmp_path / PLACES["held-out oracle"]).unlink()
    make(tmp_path / PLACES["training oracle"], tmp_path / PLACES["held-out oracle"])
    with pytest.raises(HeldOutRewardError, match="the same oracle"):
        tasks.make("dna_enhancer", artefacts=tmp_path)


def test_fingerprints_are_of_the_contents(folder, tmp_path, fake_grelu):
    shutil.copytree(folder / "mdlm", tmp_path / "mdlm")
    copied, task = Artefacts(tmp_path).fingerprints, tasks.make("dna_enhancer", artefacts=folder)
    assert task.fingerprints == copied
    assert len(set(copied.values())) == len(PLACES)
    assert tasks.make("dna_enhancer").fingerprints == {}
    sizes = [(tmp_path / PLACES[key]).stat().st_size for key in ("training oracle", "data")]
    fake_grelu.write(tmp_path / PLACES["training oracle"], 3, seed=5)
    text = (tmp_path / PLACES["data"]).read_text()
    (tmp_path / PLACES["data"]).write_text(f"{text[:-2]}6\n")
    assert sizes == [(tmp_path / PLACES[key]).stat().st_size for key in ("training oracle", "data")]
    changed = Artefacts(tmp_path).fingerprints
    assert {key for key in PLACES if changed[key] != copied[key]} == {"training oracle", "data"}


def test_checkpoints_without_checksums_are_read_whole(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        for name in "ab":
            torch.save({"weights": torch.full((4,), float(ord(name)))}, tmp_path / name)
    finally:
        torch.serialization.set_crc32_options(True)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_an_oracle_is_loaded_once(world, monkeypatch):
    loaded = []
    real = load_grelu
    monkeypatch.setattr(
        "sepo_env.tasks.artefacts.load_grelu", lambda path, **settings: loaded.append(path) or real(path, **settings)
    )
    task = tasks.make("dna_enhancer", artefacts=world)
    rewards = [task.make_reward(), task.make_reward()]
    for seed in range(2):
        task.metrics(torch.randint(4, (2, LENGTH)), likelihood_samples=0, seed=seed)
    assert sorted(loaded) == sorted(world / place for key, place in PLACES.items() if "oracle" in key)
    rewards[0](torch.randint(4, (2, LENGTH)))
    assert [reward.calls for reward in rewards] == [2, 0]


def test_two_files_for_one_place_are_both_named(tmp_path):
    fill(tmp_path, but=["held-out oracle"])
    for place in ("backup/lightning_logs", "runs/lightning_logs"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "reward_oracle_eval.ckpt").write_bytes(b"")
    with pytest.raises(ArtefactsError, match="More than once") as caught:
        Artefacts(tmp_path)
    (line,) = [line for line in str(caught.value).splitlines() if "; found " in line]
    assert "backup/lightning_logs/reward_oracle_eval.ckpt, runs/lightning_logs/" in line


def test_links_in_a_circle_end(folder, tmp_path):
    (tmp_path / "mdlm").symlink_to(folder / "mdlm")
    (tmp_path / "again").symlink_to(tmp_path)
    assert set(Artefacts(tmp_path).paths) == set(PLACES)


def test_rewards_are_the_oracles_hepg2_columns(world, fake_grelu, tmp_path):
    task = tasks.make("dna_enhancer", artefacts=world)
    tokens = torch.randint(4, (3, LENGTH))
    one_hot = torch.nn.functional.one_hot(tokens, 4).float().mT
    training = fake_grelu.write(tmp_path / "a", 3, seed=1)
    held_out = fake_grelu.write(tmp_path / "b", 3, seed=2)
    accessibility = fake_grelu.write(tmp_path / "c", 7, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(task.make_reward()(tokens), training(one_hot)[:, 0, 0])
        torch.testing.assert_close(task.judge()(tokens), held_out(one_hot)[:, 0, 0])
        expected = accessibility(one_hot)[:, 1, 0].sigmoid()
        torch.testing.assert_close(task.judge("accessibility")(tokens), expected)
    torch.testing.assert_close(task.make_reward("gc")(tokens), ((tokens == 1) | (tokens == 2)).float().mean(-1))


def test_roles_are_kept_apart(world):
    task = tasks.make("dna_enhancer", artefacts=world)
    for spec in ("held_out_activity", "accessibility", {"gc": 1.0, "held_out_activity": 1.0}, task.judge()):
        with pytest.raises(HeldOutRewardError):
            task.make_reward(spec)
    with pytest.raises(HeldOutRewardError):
        task.judge("activity")
    with pytest.raises(UnknownNameError):  # one oracle has no spread
        task.make_reward("activity_lcb")


def test_the_environments_run_on_the_folder(world):
    env = gym.make("DNAEnhancer-v0", artefacts=str(world), num_steps=2)
    env.reset(seed=0)
    action = env.unwrapped.pretrained_action()
    # The raw weights, not the averaged ones, as the published fine-tuning starts from.
    denoiser = load_drakes(world / PLACES["denoiser"], weights="raw")
    posterior = denoiser(torch.full((1, LENGTH), 4), torch.ones(1)).exp()
    np.testing.assert_allclose(action, posterior[0].detach().numpy(), atol=1e-6)
    env.step(action)
    _, reward, terminated, _, info = env.step(env.unwrapped.pretrained_action())
    task = tasks.make("dna_enhancer", artefacts=world)
    assert terminated
    assert reward == pytest.approx(float(task.make_reward()(task.encode([info["sequence"]]))))
    vector = gym.make_vec("DNAEnhancer-v0", num_envs=2, artefacts=str(world), num_steps=2)
    assert vector.reset(seed=0)[0]["tokens"].shape == (2, LENGTH)
    torchrl = sepo_env.TorchRLEnv("DNAEnhancer-v0", num_envs=2, artefacts=str(world))
    assert torchrl.reset()["tokens"].shape == (2, LENGTH)


def test_a_ready_task_keeps_its_own(world):
    with pytest.raises(InvalidArgumentError, match="artefacts"):
        sepo_env.TorchRLEnv(tasks.make("dna_enhancer"), num_envs=2, artefacts=str(world))


def test_tables_are_those_of_the_most_active_rows(tmp_path, folder):
    sequences, activity = write_data(tmp_path / "copy.csv")
    tables = Artefacts(folder).tables
    for name, rows in (("top_0_1_percent", 2), ("top_1_percent", 20)):
        best = [sequences[i] for i in np.argsort(-activity)[:rows]]
        words = [first + second + third for first in "ACGT" for second in "ACGT" for third in "ACGT"]
        counts = [sum(s[i : i + 3] == word for s in best for i in range(LENGTH - 2)) for word in words]
        assert tables[f"num_rows_{name}"] == rows
        assert tables[f"three_mers_{name}"].tolist() == counts
    most_active = torch.tensor([["ACGT".index(letter) for letter in sequences[i]] for i in np.argsort(-activity)[:2]])
    assert tables["motifs_top_0_1_percent"].tolist() == motif_counts(most_active, shipped_motifs()).tolist()
    assert tables["measured_activity_percentiles"][[0, 50, 100]].tolist() == pytest.approx([0.0, 9.995, 19.99])


def test_the_folder_is_left_as_it_was(world):
    before = sorted((path, path.stat().st_mtime_ns) for path in world.rglob("*"))
    task = tasks.make("dna_enhancer", artefacts=world)
    task.metrics(torch.randint(4, (4, LENGTH)), num_likelihood_steps=1)
    assert sorted((path, path.stat().st_mtime_ns) for path in world.rglob("*")) == before


def test_likelihoods_are_judged_by_those_of_the_measured_sequences(world):
    task = tasks.make("dna_enhancer", artefacts=world)
    tokens = torch.randint(4, (4, LENGTH))
    figures = task.metrics(tokens, num_likelihood_steps=1)
    real = task.log_likelihood(task.artefacts.sequences(640), num_steps=1)
    low, high = np.quantile(real.numpy(), [0.05, 0.95])
    own = task.log_likelihood(tokens, num_steps=1).numpy()
    assert figures["likely_as_real"] == np.mean((own >= low) & (own <= high))
    shipped = tasks.make("dna_enhancer").metrics(tokens[:2], num_likelihood_steps=128)
    assert figures.keys() == shipped.keys()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sequence,hepg2\n", "no column seq, k562, sknsh"),
        ("seq,hepg2,k562,sknsh\n", "no rows"),
        ("seq,hepg2,k562,sknsh\nACG,1,1,1\nACN,1,1,1\n", "line 3"),
        ("seq,hepg2,k562,sknsh\nACG,1,1,1\nACGT,1,1,1\n", "line 3"),
        ("seq,hepg2,k562,sknsh\nACG,nan,1,1\n", "line 2"),
        ("seq,hepg2,k562,sknsh\nACG,high,1,1\n", "line 2 does not read"),
        ("seq,hepg2,k562,sknsh\nACG,1,1,1\nAC", "line 3 does not read"),
        ("seq,hepg2,k562,sknsh\nACG,1,1,1\nACG,1,1,1\n", "above its 0.999 quantile"),
        ("seq,hepg2,k562,sknsh\n,1,1,1\n,1,1,1\n", "line 2 is no sequence of 3 letters"),
        ("seq,hepg2,k562,sknsh\n\nACG,1,1,1\n\nACGT,1,1,1\n", "line 5 is no sequence of 3 letters"),
        ("seq,hepg2,k562,sknsh\nACG,1,1,1\n" + "A" * 200_000, "line 3 does not read"),
        ("seq,hepg2,k562,sknsh\nACG,1,1,\udcff\n", "no text in UTF-8"),
    ],
)
def test_data_that_is_not_whole_is_refused_by_line(folder, tmp_path, text, words):
    fill(tmp_path)
    (tmp_path / PLACES["data"]).write_text(text, errors="surrogateescape")
    with pytest.raises(ArtefactsError, match=words):
        _ = Artefacts(tmp_path, length=3).tables


def test_a_denoiser_that_is_none_is_named_where_the_folder_is_given(tmp_path):
    fill(tmp_path)
    with pytest.raises(CheckpointError, match=r"pretrained\.ckpt: expected safetensors or a checkpoint of torch"):
        tasks.make("dna_enhancer", artefacts=tmp_path)
    tasks.make("dna_enhancer", artefacts=tmp_path, denoiser=tasks.make("dna_enhancer").denoiser)


def test_sequences_of_another_length_are_refused(folder, tmp_path):
    shutil.copytree(folder / "mdlm", tmp_path / "mdlm")
    (tmp_path / PLACES["data"]).write_text("seq,hepg2,k562,sknsh\n" + 5 * f"{'ACG' * 50},1,1,1\n")
    task = tasks.make("dna_enhancer", artefacts=tmp_path)
    with pytest.raises(ArtefactsError, match="line 2 is no sequence of 200 letters .* .it has 150 letters"):
        _ = task.reference


def test_a_byte_order_mark_and_blank_lines_are_no_data(tmp_path):
    rows = [f"{letter * 3},{number},0,0" for number, letter in enumerate("ACGT")]
    lines = ["seq,hepg2,k562,sknsh", "", *rows[:2], "  ", *rows[2:], ""]
    (tmp_path / "data.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    found = read_measurements(tmp_path / "data.csv", 3)
    assert found.tokens.tolist() == [[token] * 3 for token in range(4)]
    assert found.activity.tolist() == [0.0, 1.0, 2.0, 3.0]
