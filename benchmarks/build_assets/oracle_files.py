"""Ensembles to safetensors, in half precision, with their role and provenance in the metadata."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from benchmarks.build_assets.data import ActivityData
from sepo_env.assets.checksums import record
from sepo_env.rewards.oracles import FORMAT, OracleEnsemble, OracleMember, Role

ACTIVITY = "predicted HepG2 lentiMPRA activity"
ACCESSIBILITY = (
    "predicted probability of a HepG2-accessible site, against sites of K562, GM12878 and hESC "
    "and dinucleotide shuffles"
)


def save_oracle(oracle: OracleEnsemble, path: Path, provenance: dict[str, str]) -> None:
    """Write an ensemble as float16, whole or not at all; `load_oracle` reads it as float32."""
    tensors = {key: value.half().contiguous() for key, value in oracle.state_dict().items()}
    metadata = {**provenance, "format": FORMAT, "description": json.dumps(oracle.description())}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata=metadata)
    temporary.chmod(0o644)  # safetensors writes files that only their owner may read
    os.replace(temporary, path)
    record(path)


def export_activity(
    members: Sequence[OracleMember], data: ActivityData, role: Role, path: Path, provenance: dict[str, str]
) -> None:
    """Write the activity oracle whose members were fitted on the standardised ``data``."""
    oracle = OracleEnsemble(
        members,
        members[0].config,
        role=role,
        quantity=ACTIVITY,
        units="log2(RNA/DNA)",
        mean=float(data.activity.mean()),
        scale=float(data.activity.std()),
    )
    save_oracle(oracle, path, provenance)


def export_accessibility(members: Sequence[OracleMember], path: Path, provenance: dict[str, str]) -> None:
    """Write the accessibility oracle, whose class 0 is HepG2."""
    oracle = OracleEnsemble(
        members, members[0].config, role="held_out", quantity=ACCESSIBILITY, units="probability", output_class=0
    )
    save_oracle(oracle, path, provenance)
