"""Oracles of gReLU: its architecture, the checkpoint's tensors, nothing downloaded, nothing run."""

import importlib.util
import sys
import warnings

import pytest
import torch

from sepo_env.errors import ArtefactsError, CheckpointError, HeldOutRewardError, MissingExtraError
from sepo_env.rewards import FOR_TRAINING, OracleReward, as_reward
from sepo_env.rewards.grelu import load_grelu

ACTIVITY = {"task": "regression", "column": 0, "num_outputs": 3, "role": "training"}
ACTIVITY |= {"quantity": "activity", "units": "log2(RNA/DNA)"}


@pytest.fixture
def grelu(monkeypatch, fake_grelu):
    fake_grelu.install(monkeypatch)


def one_hot(tokens):
    return torch.nn.functional.one_hot(tokens, 4).float().mT


@pytest.mark.parametrize(
    ("column", "task", "loss", "activation"),
    [
        (0, "regression", "MSE", lambda logits: logits),
        (2, "regression", "poisson", torch.exp),
        (1, "binary", "bce", torch.sigmoid),
        (1, "multiclass", "ce", lambda logits: logits.softmax(1)),
    ],
)
def test_predictions_are_the_networks(tmp_path, fake_grelu, grelu, column, task, loss, activation):
    model = fake_grelu.write(tmp_path / "a.ckpt", 3, task=task, loss=loss)
    tokens = torch.randint(4, (70, 20))  # more than a chunk
    oracle = load_grelu(tmp_path / "a.ckpt", **ACTIVITY | {"column": column, "task": task})
    with torch.no_grad():
        expected = activation(model(one_hot(tokens)))[:, column, 0]
    torch.testing.assert_close(oracle(tokens), expected[None])
    torch.testing.assert_close(OracleReward(oracle)(tokens), expected)


def test_the_trunk_is_not_downloaded(tmp_path, fake_grelu, grelu):
    # The stand-in's EnformerPretrainedModel raises where gReLU's downloads.
    fake_grelu.write(tmp_path / "a.ckpt", 3, n_transformers=4, crop_len=1)
    asked = load_grelu(tmp_path / "a.ckpt", **ACTIVITY).members[0].model.asked
    assert asked == {"n_conv": 7, "channels": 1536, "n_transformers": 4, "crop_len": 1}


def test_it_is_frozen_and_differentiable_in_its_input(tmp_path, fake_grelu, grelu):
    fake_grelu.write(tmp_path / "a.ckpt", 3)
    oracle = load_grelu(tmp_path / "a.ckpt", **ACTIVITY)
    assert not oracle.training
    assert not any(parameter.requires_grad for parameter in oracle.parameters())
    weights = torch.full((2, 20, 4), 0.25, requires_grad=True)
    oracle.predict_weights(weights).sum().backward()
    assert bool((weights.grad != 0).any())


def test_a_held_out_oracle_cannot_train_however_it_is_given(tmp_path, fake_grelu, grelu):
    fake_grelu.write(tmp_path / "a.ckpt", 3)
    oracle = load_grelu(tmp_path / "a.ckpt", **ACTIVITY | {"role": "held_out"})
    for spec in (oracle, OracleReward(oracle), torch.nn.Sequential(oracle)):
        with pytest.raises(HeldOutRewardError):
            as_reward(spec, decode=str, registry={}, allow_roles=FOR_TRAINING)


def test_without_grelu_the_extra_is_named(tmp_path, fake_grelu, monkeypatch):
    fake_grelu.write(tmp_path / "a.ckpt", 3)
    fake_grelu.remove(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"'\.\[grelu\]'"):
        load_grelu(tmp_path / "a.ckpt", **ACTIVITY)


def test_a_grelu_that_does_not_import_is_another_matter(tmp_path, fake_grelu, grelu, monkeypatch):
    fake_grelu.write(tmp_path / "a.ckpt", 3)
    monkeypatch.delattr(sys.modules["grelu.model"], "models")
    monkeypatch.delitem(sys.modules, "grelu.model.models")
    with pytest.raises(ArtefactsError, match="environment of its own"):
        load_grelu(tmp_path / "a.ckpt", **ACTIVITY)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_tasks": 7}, "expected 3 outputs, found 7"),
        ({"model_type": "BorzoiPretrainedModel"}, "would download"),
        ({"model_type": "NoSuchModel"}, "no model 'NoSuchModel'"),
        ({"model_type": "__name__"}, "no model '__name__'"),
        ({"model_type": ["EnformerModel"]}, "expected the name of a model_type, found"),
        ({"final_pool_func": None}, "profile"),
        ({"colour": "red"}, "do not build"),
        ({"n_heads": 0}, "do not build a EnformerModel .ZeroDivisionError"),
        ({"channels": -8}, "do not build a EnformerModel .RuntimeError"),
        ({"task": "ranking"}, "expected a regression model .activity., found a ranking one"),
        ({"task": "binary", "loss": "bce"}, "expected a regression model .activity., found a binary one"),
        ({"loss": "huber"}, "task 'regression' with loss 'huber'"),
    ],
)
def test_other_models_are_refused(tmp_path, fake_grelu, grelu, settings, words):
    path = tmp_path / "a.ckpt"
    fake_grelu.write(path, **{"n_tasks": 3, **settings})
    with pytest.raises(CheckpointError, match=words):
        load_grelu(path, **ACTIVITY)


def test_a_regression_is_no_probability(tmp_path, fake_grelu, grelu):
    fake_grelu.write(tmp_path / "a.ckpt", 7)
    settings = ACTIVITY | {"task": "binary", "num_outputs": 7, "quantity": "accessibility", "units": "probability"}
    with pytest.raises(CheckpointError, match="expected a binary model .accessibility., found a regression one"):
        load_grelu(tmp_path / "a.ckpt", **settings)


def test_the_file_does_not_say_where_the_network_lives(tmp_path, fake_grelu, grelu):
    # The stand-in, as some versions of gReLU, takes neither.
    fake_grelu.write(tmp_path / "a.ckpt", 3, device="cuda:7", dtype=torch.float16)
    (parameter, *_) = load_grelu(tmp_path / "a.ckpt", **ACTIVITY).parameters()
    assert (parameter.device, parameter.dtype) == (torch.device("cpu"), torch.float32)


def test_tensors_of_another_model_are_refused(tmp_path, fake_grelu, grelu):
    path = tmp_path / "a.ckpt"
    fake_grelu.write(path, 3)
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["state_dict"]["model.head.bias"]
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"head\.bias"):
        load_grelu(path, **ACTIVITY)
    # An Enformer has hundreds of tensors; a message with all of them hides what it says.
    checkpoint["state_dict"] = {f"model.part.{number}": torch.zeros(1) for number in range(300)}
    checkpoint["state_dict"]["model.head.bias"] = "no tensor"
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="expected tensors by name, found 301 entries") as caught:
        load_grelu(path, **ACTIVITY)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(3, dtype=torch.int64), r"head\.bias expected floats of 16 bits or more, found torch.int64"),
        (torch.full((3,), torch.nan), r"NaN or infinity: \['head\.bias'\]"),
        ("text", "expected tensors by name"),
    ],
)
def test_tensors_of_another_kind_are_refused(tmp_path, fake_grelu, grelu, value, words):
    path = tmp_path / "a.ckpt"
    fake_grelu.write(path, 3)
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["state_dict"]["model.head.bias"] = value
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=words):
        load_grelu(path, **ACTIVITY)


def test_files_that_grelu_did_not_write_are_refused(tmp_path, grelu):
    torch.save({"state_dict": {}, "config": 1}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="hyper_parameters"):
        load_grelu(tmp_path / "a.ckpt", **ACTIVITY)


@pytest.mark.skipif(importlib.util.find_spec("grelu") is None, reason="grelu is not installed (extra 'grelu')")
def test_a_real_grelu_model_comes_back_from_its_checkpoint(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_lightning
        from grelu.lightning import LightningModel

        params = {"model_type": "EnformerModel", "n_tasks": 3, "n_conv": 3, "channels": 384, "n_transformers": 1}
        model = LightningModel(
            model_params={**params, "n_heads": 4, "key_len": 8}, train_params={"task": "regression", "loss": "MSE"}
        )
        model.train()
        model(torch.rand(8, 4, 40))  # statistics of the normalisation that evaluation mode uses
        for parameter in model.parameters():
            if not parameter.any():  # the outputs of the attention start at zero
                torch.nn.init.normal_(parameter, std=0.3)
        trainer = pytorch_lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        trainer.strategy.connect(model)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        oracle = load_grelu(tmp_path / "a.ckpt", **ACTIVITY | {"column": 1})
        theirs = LightningModel.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu", weights_only=False)
        tokens = torch.randint(4, (5, 40))
        with torch.no_grad():
            expected = theirs.eval()(one_hot(tokens))[:, 1, 0]
        assert expected.std() > 0.01  # the sequence matters
        torch.testing.assert_close(oracle(tokens)[0], expected)


@pytest.mark.skipif(importlib.util.find_spec("grelu") is None, reason="grelu is not installed (extra 'grelu')")
def test_the_model_built_without_download_is_the_pretrained_one(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from grelu.model import models

        from sepo_env.rewards.grelu import _build

        with torch.device("meta"):  # names and shapes without 250 million numbers
            ours = _build("a.ckpt", {"model_type": "EnformerPretrainedModel", "n_tasks": 3, "n_transformers": 2})
            human = models.EnformerModel(n_tasks=5313, final_pool_func=None).state_dict()
            monkeypatch.setattr("grelu.resources.download_model", lambda **options: "human.h5", raising=False)
            monkeypatch.setattr(torch, "load", lambda *args, **options: human)
            theirs = models.EnformerPretrainedModel(n_tasks=3, n_transformers=2)
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert str(ours.embedding) == str(theirs.embedding)
    assert str(ours.head) == str(theirs.head)
