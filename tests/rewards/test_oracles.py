"""Oracle ensembles: shapes, strands, roles, refusals, and the shipped ones on sequences whose answer is known."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from benchmarks.build_assets.oracle_files import save_oracle
from sepo_env.assets import asset_path
from sepo_env.errors import CheckpointError, InvalidTokensError, UnknownNameError
from sepo_env.rewards.oracles import OracleConfig, OracleEnsemble, Role, build_member, load_oracle

SHIPPED = {
    "dna_activity_training.safetensors": "training",
    "dna_activity_held_out.safetensors": "held_out",
    "dna_accessibility.safetensors": "held_out",
}


def ensemble(architecture: str = "residual", role: Role = "training", **settings: object) -> OracleEnsemble:
    torch.manual_seed(0)
    config = OracleConfig(architecture, channels=8, num_outputs=3 if "output_class" in settings else 1)
    members = [build_member(config) for _ in range(3)]
    oracle = OracleEnsemble(members, config, role=role, quantity="height", units="m", **settings)
    return oracle.eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(4, (5, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ["residual", "pyramid"])
def test_one_row_a_member_and_rows_of_the_batch_are_independent(architecture: str, tokens: torch.Tensor) -> None:
    oracle = ensemble(architecture)
    predicted = oracle(tokens)
    assert predicted.shape == (3, 5)
    assert predicted.dtype == torch.float32
    torch.testing.assert_close(oracle(tokens[1:2]), predicted[:, 1:2])
    assert (predicted.std(0) > 0).all()


def test_both_strands_get_the_same_value_exactly_where_asked(tokens: torch.Tensor) -> None:
    other_strand = 3 - tokens.flip(-1)
    both = ensemble()
    torch.testing.assert_close(both(tokens), both(other_strand))
    single = ensemble(both_strands=False)
    assert not torch.allclose(single(tokens), single(other_strand), atol=1e-4)
    torch.testing.assert_close(both(tokens), (single(tokens) + single(other_strand)) / 2)


def test_standardisation_is_undone(tokens: torch.Tensor) -> None:
    torch.testing.assert_close(ensemble(mean=5.0, scale=2.0)(tokens), 5 + 2 * ensemble()(tokens))


def test_classes_are_probabilities_that_sum_to_one(tokens: torch.Tensor) -> None:
    total = sum(ensemble(output_class=index)(tokens) for index in range(3))
    torch.testing.assert_close(total, torch.ones(3, 5))


def test_relaxed_sequences_are_differentiable_and_agree_at_the_corners(tokens: torch.Tensor) -> None:
    oracle = ensemble()
    weights = F.one_hot(tokens, 4).double().float().requires_grad_()
    predicted = oracle.predict_weights(weights)
    torch.testing.assert_close(predicted, oracle(tokens))
    predicted.mean().backward()
    assert weights.grad is not None
    assert weights.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "wrong", [torch.full((2, 40), 4), torch.full((2, 40), -1), torch.zeros(40).long(), torch.zeros(2, 40)]
)
def test_tokens_that_are_no_nucleotides_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(InvalidTokensError):
        ensemble()(wrong)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_oracles_of_any_precision_predict(tokens: torch.Tensor, dtype: torch.dtype) -> None:
    oracle = ensemble()
    expected = oracle(tokens)
    torch.testing.assert_close(oracle.to(dtype)(tokens).float(), expected, rtol=0, atol=0.05)


def test_unknown_role_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown role 'judge'"):
        ensemble(role="judge")  # type: ignore[arg-type]


def test_round_trip_keeps_the_description_and_half_precision_predictions(tmp_path: Path, tokens: torch.Tensor) -> None:
    oracle = ensemble("pyramid", role="held_out", mean=1.0, output_class=1)
    save_oracle(oracle, tmp_path / "oracle.safetensors", {"licence": "MIT"})
    again = load_oracle(tmp_path / "oracle.safetensors")
    assert again.description() == oracle.description()
    assert again.role == "held_out"
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    torch.testing.assert_close(again(tokens), oracle(tokens), atol=1e-2, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["oracle.safetensors"]


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "oracle.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_oracle(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="expected the format"):
        load_oracle(path)
    save_oracle(ensemble(), path, {})
    with safe_open(str(path), framework="pt") as file:
        metadata = dict(file.metadata())
    description = json.loads(metadata["description"])
    description["num_members"] = 2
    save_file(load_file(path), path, metadata={**metadata, "description": json.dumps(description)})
    with pytest.raises(CheckpointError, match=r"not expected: .*members.2"):
        load_oracle(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_oracle(path)


@pytest.mark.parametrize(("name", "role"), SHIPPED.items())
def test_shipped_oracles_say_what_they_are(name: str, role: str) -> None:
    oracle = load_oracle(asset_path(name))
    assert oracle.role == role
    assert "HepG2" in oracle.quantity
    assert oracle.units == ("probability" if "accessibility" in name else "log2(RNA/DNA)")


def test_training_and_held_out_activity_oracles_share_no_architecture() -> None:
    training, held_out = (
        load_oracle(asset_path(f"dna_activity_{role}.safetensors")) for role in ("training", "held_out")
    )
    assert training.config.architecture != held_out.config.architecture
    assert len(training.members) >= 4


def test_shipped_oracles_know_a_hepatocyte_factor_from_none() -> None:
    # HNF1 (GTTAATNATTAAC) and HNF4 (TGNACTTTGNNCT) sites are the textbook activators of liver enhancers.
    generator = torch.Generator().manual_seed(0)
    plain = torch.randint(4, (64, 200), generator=generator)
    enriched = plain.clone()
    for start, site in ((40, "GTTAATGATTAAC"), (80, "TGGACTTTGGACT"), (120, "GTTAATGATTAAC")):
        enriched[:, start : start + len(site)] = torch.tensor(["ACGT".index(letter) for letter in site])
    for name in SHIPPED:
        oracle = load_oracle(asset_path(name))
        gain = (oracle(enriched) - oracle(plain)).mean()
        assert gain > 0.05, f"{name}: {gain}"
