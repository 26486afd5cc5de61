"""Arguments that cannot work are refused where they are given, in one line that names them."""

import inspect
import math
from types import FunctionType

import numpy as np
import pytest
import torch
from torch import nn

from sepo_env import rewards, tasks
from sepo_env.errors import InvalidArgumentError, InvalidShapeError, InvalidTokensError, RewardError, SepoEnvError
from sepo_env.rewards import (
    FunctionReward,
    LetterContent,
    MotifDensity,
    MotifScore,
    OracleEnsemble,
    OracleReward,
    RewardFunction,
    SentimentClassifier,
    SentimentReward,
    SequenceClassifierReward,
    VaderReward,
    WeightedSum,
    WeightedTerm,
    as_reward,
    load_oracle,
    load_sentiment,
    string_reward,
    token_reward,
)
from sepo_env.rewards.cache import ValueCache
from sepo_env.rewards.grelu import load_grelu
from sepo_env.rewards.oracles import OracleConfig
from sepo_env.rewards.sentiment import SentimentConfig


class CountA(nn.Module):
    """The number of As, in the shape of an oracle's member."""

    def forward(self, weights):
        return weights[..., :1].sum(1)


def ensemble(**options):
    options = {"role": "training", "quantity": "count", "units": "1", **options}
    return OracleEnsemble(options.pop("members", [CountA(), CountA()]), None, **options)


def letters(tokens):
    return ["A" * tokens.shape[1] for _ in tokens]


def grelu(**options):
    return load_grelu(
        **{
            **{"path": "x.ckpt", "task": "regression", "column": 0, "num_outputs": 1},
            **{"role": "training", "quantity": "q", "units": "u"},
            **options,
        }
    )


WRONG = [
    (lambda: as_reward(len, decode="letters", registry={}), "decode is 'letters', but must be a function"),
    (lambda: as_reward(len, decode=letters, registry=None), "registry is None, but must be a mapping"),
    (lambda: as_reward(len, decode=letters, registry={}, num_ids=0), "num_ids is 0"),
    (lambda: as_reward(3, decode=letters, registry={}), r"3 \(int\) does not score sequences"),
    (lambda: as_reward(WeightedSum, decode=letters, registry={}), "WeightedSum is a class; give one of its objects"),
    (lambda: as_reward(CountA, decode=letters, registry={}), "CountA is a class; give one of its objects"),
    (lambda: as_reward({}, decode=letters, registry={}), "at least one term"),
    (lambda: as_reward({len: "1"}, decode=letters, registry={}), "the weight of 'len' is '1', but must be a finite"),
    (lambda: as_reward({len: {len: 1.0}}, decode=letters, registry={}), "the weight of 'len' is {.*}"),
    (lambda: as_reward({3: 1.0}, decode=letters, registry={}), r"3 \(int\) does not score sequences"),
    (lambda: string_reward("len"), "function is 'len', but must be a function"),
    (lambda: token_reward(len, name=3), "name is 3, but must be text"),
    (lambda: RewardFunction(len, "letters", "n"), "unknown reads 'letters'"),
    (lambda: FunctionReward(len, decode=letters), "function is .*, but must be a RewardFunction"),
    (lambda: FunctionReward(string_reward(len), decode=letters, role="judge"), "unknown role 'judge'"),
    (lambda: FunctionReward(string_reward(len), decode=letters, options={"workers": 1}), "options is {'workers': 1}"),
    (lambda: WeightedTerm("f", math.nan, LetterContent("A")), "the weight of 'f' is nan"),
    (lambda: WeightedTerm("f", 1.0, len), "reward is .*, but must be a Reward"),
    (lambda: WeightedTerm(3, 1.0, LetterContent("A")), "name is 3, but must be text"),
    (lambda: WeightedSum([LetterContent("A")]), "terms is .*, but must be a sequence of a WeightedTerm"),
    (lambda: WeightedSum({}), "terms is {}"),
    (lambda: ValueCache(1.5), "max_entries is 1.5"),
    (lambda: OracleReward(ensemble(), pessimism=-1.0), "pessimism is -1.0"),
    (lambda: OracleReward(ensemble(), pessimism="1"), "pessimism is '1'"),
    (lambda: OracleReward(ensemble(), pessimism=math.inf), "pessimism is inf"),
    (lambda: OracleReward(CountA()), "ensemble is .*, but must be a OracleEnsemble"),
    (lambda: ensemble(members=[]), "at least one member"),
    (lambda: ensemble(members=[len]), "members is .*, but must be a sequence of a Module"),
    (lambda: ensemble(role="judge"), "unknown role 'judge'"),
    (lambda: ensemble(scale="2"), "scale is '2'"),
    (lambda: ensemble(mean=math.nan), "mean is nan"),
    (lambda: ensemble(output_class=-1), "output_class is -1"),
    (lambda: ensemble(both_strands="no"), "both_strands is 'no'"),
    (lambda: OracleConfig("cubic"), "unknown architecture 'cubic'"),
    (lambda: OracleConfig("pyramid", channels=0), "channels is 0"),
    (lambda: OracleConfig("pyramid", dropout=1.5), "dropout is 1.5"),
    (lambda: load_oracle(3), "path is 3, but must be text, or a path"),
    (lambda: SentimentConfig(10, kernel_size=2), "kernel_size is 2, but a centred convolution needs an odd one"),
    (lambda: SentimentConfig("10"), "num_tokens is '10'"),
    (lambda: SentimentClassifier({"num_tokens": 10}), "config is {'num_tokens': 10}"),
    (lambda: SentimentReward(CountA()), "classifier is .*, but must be a SentimentClassifier"),
    (lambda: load_sentiment(None), "path is None"),
    (lambda: VaderReward("decode"), "decode is 'decode', but must be a function"),
    (lambda: LetterContent(""), "at least one letter"),
    (lambda: LetterContent("X"), "'X' is no letter of the alphabet"),
    (lambda: LetterContent(["G", "C"]), r"letters is \['G', 'C'\].*, but must be text"),
    (lambda: MotifDensity(""), "at least one letter"),
    (lambda: MotifDensity("TATA", both_strands=1), "both_strands is 1, but must be True or False"),
    (lambda: MotifScore([[0.25] * 4]), "probabilities is .*, but must be a Tensor"),
    (lambda: MotifScore(torch.eye(4)), "expected positive rows that sum to 1"),
    (lambda: MotifScore(torch.full((2, 4), torch.nan)), "expected positive rows that sum to 1"),
    (lambda: MotifScore(torch.full((2, 4), 0.25 + 0j)), "expected positive rows that sum to 1"),
    (lambda: SequenceClassifierReward(3, decode=letters), "path is 3, but must be text, or a path"),
    (lambda: SequenceClassifierReward("x", decode=None), "decode is None, but must be a function"),
    (lambda: SequenceClassifierReward("x", decode=letters, batch_size=0), "batch_size is 0"),
    (lambda: SequenceClassifierReward("x", decode=letters, max_length=1.5), "max_length is 1.5"),
    (lambda: SequenceClassifierReward("x", decode=letters, label=True), "label is True"),
    (lambda: SequenceClassifierReward("x", decode=letters, output="logits"), "unknown output 'logits'"),
    (lambda: SequenceClassifierReward("x", decode=letters, trust_remote_code="no"), "trust_remote_code is 'no'"),
    (lambda: grelu(column=1), "column is 1, but the 1 outputs are 0 to 0"),
    (lambda: grelu(column="0"), "column is '0'"),
    (lambda: grelu(role="any"), "unknown role 'any'"),
    (lambda: grelu(path=None), "path is None"),
]


@pytest.mark.parametrize(("build", "message"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_an_argument_that_cannot_work_is_named(build, message):
    with pytest.raises(SepoEnvError, match=message) as caught:
        build()
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_every_public_constructor_checks_its_arguments():
    """Whatever `sepo_env.rewards` offers refuses an object that nothing takes, under the name of a parameter."""

    class Nothing:
        pass

    for name in rewards.__all__:
        offered = getattr(rewards, name)
        if (
            not isinstance(offered, type | FunctionType)
            or inspect.isabstract(offered)
            or not inspect.signature(offered).parameters
        ):
            continue
        parameters = inspect.signature(offered).parameters.values()
        given = {p.name: Nothing() for p in parameters if p.default is p.empty or p.name == "workers"}
        with pytest.raises(SepoEnvError) as caught:
            offered(**given)
        assert any(parameter in str(caught.value) for parameter in given), (name, str(caught.value))


def test_numbers_of_numpy_are_taken():
    assert OracleReward(ensemble(), pessimism=np.float32(0.5)).pessimism == 0.5
    assert OracleReward(ensemble(), pessimism=1).pessimism == 1.0
    tokens = torch.tensor([[0, 0, 1]])
    assert as_reward({LetterContent("A"): np.int64(3)}, decode=letters, registry={})(tokens).tolist() == [2.0]


NAMED = [(task, reward) for task in tasks.TASKS for reward in tasks.make(task).rewards()]
KINDS = {
    "strings": lambda: string_reward(lambda sequences: [1.0 for _ in sequences], "s"),
    "tokens": lambda: token_reward(lambda tokens: torch.ones(len(tokens)), "t"),
    "module": lambda: nn.Sequential(nn.Embedding(4, 1), nn.Flatten(1), nn.LazyLinear(1), nn.Flatten(0)),
    "sum": lambda: {"share_of_a": 1.0},
}


def made_rewards():
    for task, name in NAMED:
        made = tasks.make(task)
        yield f"{task} {name}", made, made.rewards()[name]()
    toy = tasks.make("toy")
    for kind, spec in KINDS.items():
        for options in ({}, {"cache": True}):
            yield f"{kind} {options}", toy, toy.make_reward(spec(), **options)


MADE = list(made_rewards())


@pytest.mark.parametrize(("task", "reward"), [row[1:] for row in MADE], ids=[row[0] for row in MADE])
def test_tokens_that_are_none_are_refused_and_no_tokens_have_no_values(task, reward):
    right = torch.zeros(2, task.length, dtype=torch.int64)
    assert reward(right).shape == (2,)
    calls = reward.calls
    empty = reward(right[:0])
    assert (empty.shape, empty.dtype, reward.calls) == ((0,), torch.float32, calls)
    for wrong in (right.float(), right.int(), right.bool(), right.tolist(), right.numpy(), None):
        with pytest.raises(InvalidTokensError, match="int64 token tensors"):
            reward(wrong)
    with pytest.raises(InvalidTokensError, match="device 'meta'"):
        reward(right.to("meta"))
    for wrong in (right[0], right[None]):
        with pytest.raises(InvalidShapeError, match=r"expected \(B, L\)"):
            reward(wrong)
    for token in (-1, task.num_tokens + 1, 2**40):
        wrong = right.clone()
        wrong[1, -1] = token
        with pytest.raises(InvalidTokensError, match=f"{token}"):
            reward(wrong)


def test_a_function_that_fails_on_tokens_that_nobody_can_write_is_named(decode):
    reward = as_reward(
        token_reward(lambda tokens: torch.eye(4)[tokens].sum((1, 2)), "table"), decode=decode, registry={}
    )
    with pytest.raises(RewardError, match=r"'table' raised IndexError: .* for sequence 1 .* of 2"):
        reward(torch.tensor([[0, 1], [0, 9]]))


def test_an_asynchronous_function_is_refused(decode):
    async def score(sequences):
        return [1.0 for _ in sequences]

    with pytest.raises(InvalidArgumentError, match="the reward 'score' is a coroutine"):
        as_reward(score, decode=decode, registry={})
