"""Each setting is read by real trainings: what a config is asked for is written down while they run."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from agents import PolicyGradientConfig, agent_class
from agents.registry import learners
from sepo_env.denoisers.transformer import TransformerDenoiser, TransformerDenoiserConfig
from sepo_env.tasks import Task, make

SMALL: dict[str, Any] = {
    "num_iterations": 1,
    "batch_size": 4,
    "num_steps": 2,
    "kl_coeff": 0.1,
    "entropy_coeff": 0.1,
    "eval_samples": 4,
}
# Settings that are read where another one asks for them, and all that are told by the way.
TRAININGS: list[dict[str, Any]] = [
    {"log_dir": "run", "corrector_steps": 1},
    {"guidance_scale": 1.0},
    {"lora_rank": 1},
    {"advantage": "critic"},
    {"form": "snis"},
]


class Reads:
    """The fields that a config was asked for, but for those that it asks itself for: to check, to copy, to show."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.silent = 0

    @contextmanager
    def silence(self) -> Iterator[None]:
        self.silent += 1
        try:
            yield
        finally:
            self.silent -= 1


def recording(config_class: type[PolicyGradientConfig], reads: Reads) -> type[PolicyGradientConfig]:
    """A config of the same kind that tells ``reads`` what it is asked for."""
    fields = {field.name for field in dataclasses.fields(config_class)}

    def silently(method: str) -> Any:
        def call(self: PolicyGradientConfig, *args: Any, **kwargs: Any) -> Any:
            with reads.silence():
                return getattr(super(Recording, self), method)(*args, **kwargs)

        return call

    class Recording(config_class):  # type: ignore[valid-type, misc]
        def __getattribute__(self, name: str) -> Any:
            if name in fields and not reads.silent:
                reads.names.add(name)
            return super().__getattribute__(name)

        __post_init__ = silently("__post_init__")
        replace = silently("replace")
        to_dict = silently("to_dict")
        __repr__ = silently("__repr__")
        __eq__ = silently("__eq__")
        __hash__ = None  # type: ignore[assignment]

    return Recording


def takes(hint: Any, value: Any) -> bool:
    """Whether a field may have this value; those that are one of several words are told apart."""
    return f"'{value}'" in str(hint) or "Literal" not in str(hint)


def task_for(settings: dict[str, Any]) -> Task:
    if "lora_rank" not in settings:
        return make("toy")
    shape = TransformerDenoiserConfig(num_tokens=3, vocab_size=4, width=8, depth=1, heads=2)
    return make("toy", denoiser=TransformerDenoiser(shape))


@pytest.mark.parametrize("name", learners())
def test_every_field_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that nobody reads would be a promise that nobody keeps."""
    monkeypatch.chdir(tmp_path)
    kind, reads = agent_class(name), Reads()
    hints = get_type_hints(kind.config_class)
    for settings in TRAININGS:
        if all(field in hints and takes(hints[field], value) for field, value in settings.items()):
            config = recording(kind.config_class, reads)(**SMALL, **settings)
            assert not reads.silent
            kind(task_for(settings), config=config, device="cpu").train(progress=False)
    assert reads.names == {field.name for field in dataclasses.fields(kind.config_class)}


def test_checks_copies_and_pictures_are_no_reads() -> None:
    for name in learners():
        reads = Reads()
        config = recording(agent_class(name).config_class, reads)(batch_size=4).replace(seed=3)
        assert "seed=3" in repr(config)
        assert config.to_dict()["seed"] == 3
        assert reads.names == set()
        assert config.kept_steps == 8
        assert reads.names == {"num_steps", "states_per_trajectory"}
