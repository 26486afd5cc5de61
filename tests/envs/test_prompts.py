"""Prompts in all three environments: what is given stays, whatever is done; and prompts that groups of rows share."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo_env import TorchRLEnv, tasks
from sepo_env.denoisers import ClassifierFreeGuidance
from sepo_env.diffusion.enumeration import ancestral_law, state_index
from sepo_env.envs.episodes import Episodes
from sepo_env.envs.wrappers import step_divergence
from sepo_env.errors import InvalidArgumentError, InvalidPromptError

DYNAMICS = [
    {},
    {"graph": "uniform"},
    {"remask": True},
    {"sampler": "first-hitting"},
    {"parameterisation": "score", "schedule": "cosine"},
]


@st.composite
def episodes(draw):
    """Dynamics, a prompt for each of 2 or 3 rows (as the toy's letters), and a seed."""
    options = {"num_tokens": 3, "length": draw(st.integers(2, 4)), **draw(st.sampled_from(DYNAMICS))}
    if options.get("sampler") != "first-hitting":
        options["num_steps"] = draw(st.integers(1, 4))
    prompts = []
    for _ in range(draw(st.integers(2, 3))):
        letters = draw(st.lists(st.sampled_from("ABC?"), min_size=options["length"], max_size=options["length"]))
        letters[draw(st.integers(0, options["length"] - 1))] = "?"
        prompts.append("".join(letters))
    return options, prompts, draw(st.integers(0, 1000))


def keeps(sequence, prompt):
    return all(asked in ("?", letter) for letter, asked in zip(sequence, prompt, strict=True))


@given(episodes())
@settings(max_examples=16)
def test_what_is_given_stays_in_every_environment_under_random_actions(episode):
    options, prompts, seed = episode
    rng = np.random.default_rng(seed)
    envs = gym.make_vec("ToyCTMC-v0", num_envs=len(prompts), autoreset_mode="Disabled", conditional=True, **options)
    td_env = TorchRLEnv("ToyCTMC-v0", num_envs=len(prompts), seed=seed, conditional=True, **options)
    singles = [gym.make("ToyCTMC-v0", conditional=True, **options) for _ in prompts]
    observation, _ = envs.reset(seed=seed, options={"prompt": prompts})
    td = td_env.reset(prompt=prompts)
    alone = [env.reset(seed=seed + i, options={"prompt": prompts[i]})[0] for i, env in enumerate(singles)]
    task, decode = td_env.task, td_env.task.decode
    mask = torch.tensor([[letter != "?" for letter in prompt] for prompt in prompts])
    over = np.zeros(len(prompts), dtype=bool)
    while not over.any():  # the rows of first-hitting end one by one; as far as all run, they run alike
        for i, row in enumerate(alone):
            assert all(np.array_equal(row[key], observation[key][i]) for key in row)
        assert torch.equal(td["tokens"], torch.from_numpy(observation["tokens"]))
        assert torch.equal(td["prompt_mask"], mask)
        assert observation["prompt_mask"].astype(bool).tolist() == mask.tolist()
        actions = rng.exponential(size=envs.action_space.shape).astype(np.float32)
        td = td_env.step(td.set("action", torch.from_numpy(actions)))["next"]
        assert not td["transition_log_prob"][mask].any()
        observation, _, over, _, infos = envs.step(actions)
        alone = [env.step(action)[0] for env, action in zip(singles, actions, strict=True)]
        assert all(keeps(s, p) for s, p in zip(decode(td["tokens"]), prompts, strict=True))
    if "sequence" in infos:
        ended = zip(infos["sequence"], prompts, over, strict=True)
        assert all(keeps(sequence, prompt) for sequence, prompt, done in ended if done)
        assert task.length == len(prompts[0])


def test_the_kl_of_a_step_does_not_count_what_is_given():
    """A prompt that leaves one position: the divergence is that position's, from tables read by hand."""
    for graph in ("absorbing", "uniform"):
        run = Episodes("toy", 1, graph=graph, num_steps=3)
        run.seed([0])
        state = run.reset(prompt="AB?C")
        rates = np.random.default_rng(0).exponential(size=(1, 4, 3)).astype(np.float32)
        mine = run.dynamics.law(state, torch.from_numpy(rates)).kl(run.dynamics.law(state, run.pretrained_rates()))
        assert not mine[:, [0, 1, 3]].any()
        assert step_divergence(rates, run)[0] == pytest.approx(float(mine[0, 2]))
        assert float(mine[0, 2]) > 0


def test_rows_may_be_left_to_the_task():
    envs = gym.make_vec("ToyCTMC-v0", num_envs=3, prompted=True, autoreset_mode="Disabled")
    own = envs.reset(seed=4)[0]
    some = envs.reset(seed=4, options={"prompt": ["AB??", None, "?AAA"]})[0]
    assert some["prompt_mask"].sum(-1).tolist() == [2, 1, 3]
    assert np.array_equal(some["tokens"][1], own["tokens"][1])
    with pytest.raises(InvalidPromptError, match="2 prompts for 3"):
        envs.reset(options={"prompt": ["AB??", "A???"]})
    # Only the rows that are reset take theirs.
    reset = {"reset_mask": np.array([False, False, True]), "prompt": [None, None, "C???"]}
    partly = envs.reset(options=reset)[0]
    assert np.array_equal(partly["tokens"][:2], some["tokens"][:2])
    assert partly["prompt_mask"][2].tolist() == [1, 0, 0, 0]


def shared(tokens, mask, repeats):
    """Whether rows of a group have one prompt."""
    prompt = torch.where(mask, tokens, -1).unflatten(0, (-1, repeats))
    return bool((prompt == prompt[:, :1]).all())


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10_000), st.sampled_from(["absorbing", "uniform"]))
@settings(max_examples=25)
def test_groups_share_a_prompt_and_nothing_else(groups, repeats, seed, graph):
    """The prompt is the one that the group's first row draws alone; the noise is each row's own."""
    options = {"prompted": True, "length": 6, "num_steps": 2, "graph": graph}
    run, plain = (Episodes("toy", groups * repeats, **options, **more) for more in ({"prompt_repeats": repeats}, {}))
    for each in (run, plain):
        each.seed(list(range(seed, seed + groups * repeats)))
    for _ in range(3):
        state, own = run.reset(), plain.reset()
        assert shared(state.tokens, state.prompt_mask, repeats)
        assert torch.equal(state.tokens[::repeats], own.tokens[::repeats])
        assert torch.equal(state.keys, own.keys)
        free = ~state.prompt_mask & ~own.prompt_mask
        assert torch.equal(state.tokens[free], own.tokens[free])


def test_groups_meet_the_same_prompts_when_rows_are_reset_one_by_one():
    run, together = (Episodes("toy", 4, prompted=True, length=6, num_steps=1, prompt_repeats=2) for _ in range(2))
    for each in (run, together):
        each.seed([0, 1, 2, 3])
        each.reset()
    expected = together.reset()
    run.reset(torch.tensor([False, True, True, False]))
    found = run.reset(torch.tensor([True, False, False, True]))
    assert torch.equal(found.prompt_mask, expected.prompt_mask)
    assert torch.equal(found.tokens, expected.tokens)


def test_groups_in_the_vector_and_torchrl_environments():
    envs = gym.make_vec("ToyCTMC-v0", num_envs=6, prompted=True, prompt_repeats=3, num_steps=2)
    observation, _ = envs.reset(seed=0)
    for _ in range(3):  # through an automatic reset
        tokens, mask = (torch.from_numpy(observation[name]) for name in ("tokens", "prompt_mask"))
        assert shared(tokens, mask.bool(), 3)
        observation = envs.step(envs.unwrapped.pretrained_action())[0]
    td = TorchRLEnv("ToyCTMC-v0", num_envs=6, prompted=True, prompt_repeats=3, seed=0).reset()
    assert shared(td["tokens"], td["prompt_mask"], 3)
    for repeats in (0, 4):
        with pytest.raises(InvalidArgumentError, match="prompt_repeats"):
            TorchRLEnv("ToyCTMC-v0", num_envs=6, prompt_repeats=repeats)


def test_a_guided_denoiser_acts_in_an_environment_as_its_sampler_draws():
    task = tasks.make("toy", num_tokens=2, length=3, num_steps=3)
    guided = ClassifierFreeGuidance(task.load_denoiser(), 2.0)
    guided_task = tasks.make("toy", num_tokens=2, length=3, num_steps=3, denoiser=guided)
    env = TorchRLEnv(guided_task, num_envs=4000, seed=0, conditional=True)
    td = env.reset(prompt="B??")
    for _ in range(3):
        td = env.step(td.set("action", env.pretrained_action()))["next"]
    law = ancestral_law(task.process, guided, 3, 3, prompt=torch.tensor([1, -1, -1])).detach()
    found = torch.bincount(state_index(td["tokens"], 2), minlength=8) / 4000
    torch.testing.assert_close(found.double(), law, rtol=0, atol=4 * (0.25 / 4000) ** 0.5)
    plain = ancestral_law(task.process, guided.denoiser, 3, 3, prompt=torch.tensor([1, -1, -1])).detach()
    assert float((plain - law).abs().max()) > 8 * (0.25 / 4000) ** 0.5


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 10_000), st.sampled_from(DYNAMICS[:3]))
@settings(max_examples=16, deadline=None)
def test_automatic_resets_draw_the_prompts_that_each_row_draws_alone(num_envs, num_steps, seed, dynamics):
    options = {"prompted": True, "num_tokens": 3, "length": 4, "num_steps": num_steps, **dynamics}
    envs = gym.make_vec("ToyCTMC-v0", num_envs=num_envs, **options)
    singles = [gym.make("ToyCTMC-v0", **options) for _ in range(num_envs)]
    observation, _ = envs.reset(seed=seed)
    alone = [env.reset(seed=seed + i)[0] for i, env in enumerate(singles)]
    rng = np.random.default_rng(seed)
    for step in range(3 * num_steps):
        before = observation
        for i, row in enumerate(alone):
            assert all(np.array_equal(row[key], observation[key][i]) for key in row)
        actions = rng.exponential(size=envs.action_space.shape).astype(np.float32)
        observation, _, over, _, infos = envs.step(actions)
        alone = [env.step(action)[0] for env, action in zip(singles, actions, strict=True)]
        assert over.all() == ((step + 1) % num_steps == 0)
        if over.any():
            for i, env in enumerate(singles):
                final = infos["final_obs"][i]
                assert all(np.array_equal(final[key], alone[i][key]) for key in final)
                given_ = before["prompt_mask"][i].astype(bool)
                assert np.array_equal(final["prompt_mask"], given_)
                assert np.array_equal(final["tokens"][given_], before["tokens"][i][given_])
                alone[i] = env.reset()[0]


@given(st.data(), st.integers(0, 10_000), st.sampled_from(DYNAMICS[:3]))
@settings(max_examples=16, deadline=None)
def test_a_partial_reset_gives_prompts_to_its_rows_alone(data, seed, dynamics):
    """In both batched environments: the others keep their prompts and their tokens."""
    options = {"num_tokens": 3, "length": 4, "num_steps": 3, "prompted": True, **dynamics}
    envs = gym.make_vec("ToyCTMC-v0", num_envs=3, autoreset_mode="Disabled", **options)
    env = TorchRLEnv("ToyCTMC-v0", num_envs=3, seed=seed, **options)
    envs.reset(seed=seed)
    td = env.reset()
    actions = envs.unwrapped.pretrained_action()
    before = envs.step(actions)[0]
    td = env.step(td.set("action", torch.from_numpy(actions)))["next"]
    rows = np.array(data.draw(st.lists(st.booleans(), min_size=3, max_size=3).filter(any)))
    prompts = data.draw(st.lists(st.sampled_from([None, "A??B", "??C?"]), min_size=3, max_size=3).filter(any))
    after = envs.reset(options={"reset_mask": rows, "prompt": prompts})[0]
    fresh = env.reset(td.exclude("reward").set("_reset", torch.from_numpy(rows)[:, None]), prompt=prompts)
    for i, prompt in enumerate(prompts):
        if not rows[i]:
            assert all(np.array_equal(after[key][i], before[key][i]) for key in after)
        elif prompt is not None:
            assert after["prompt_mask"][i].tolist() == [letter != "?" for letter in prompt]
            assert keeps(env.task.decode(torch.from_numpy(after["tokens"][i : i + 1]))[0], prompt)
        else:
            assert after["prompt_mask"][i].sum() == 1
        assert np.array_equal(fresh["prompt_mask"][i].numpy(), after["prompt_mask"][i].astype(bool))
        assert np.array_equal(fresh["tokens"][i].numpy(), after["tokens"][i])
