"""What is recorded of trials, held against families whose rewards and observations tell where they come from."""

from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from metarl.collection import collect_trials
from metarl.policies import AdaptedPolicy, GradientPolicy, TrialPolicy
from metarl.seeding import generator_state, restore_generator
from metarl.trials import batch_size_of, check_finite
from metarl_envs import TaskFamily, make_family


def reward_at(episode, step):
    """Every step of a trial pays another amount, exact in single precision."""
    return 16.0 * episode + step + 1.0


@dataclass(frozen=True)
class Clock(TaskFamily):
    """Observes (episode of the trial, step of the episode, task) and pays `reward_at`, whatever the action.

    The task is one number; it decides how long each episode is and, where endings are mixed, how it ends.
    """

    env_id: ClassVar[str] = "test/Clock-v0"

    lengths: tuple[int, ...] = (3,)
    endings: tuple[str, ...] = ("terminated",)
    episodes: int = 2
    limit: int = 8
    observing: str = "box"
    actions: str = "discrete"
    wrong_at: tuple[int, int] | None = None
    wrong: float = float("nan")

    @property
    def observation_space(self):
        where = gym.spaces.Box(-1, 100, (3,))
        step = gym.spaces.Discrete(10, start=5 if self.observing == "discrete from 5" else 0)
        return {"box": where, "dict": gym.spaces.Dict(where=where, step=step)}.get(self.observing, step)

    @property
    def action_space(self):
        return gym.spaces.Discrete(3, start=2) if self.actions == "discrete" else gym.spaces.Box(-2, 2, (2,))

    @property
    def episodes_per_trial(self):
        return self.episodes

    @property
    def max_episode_steps(self):
        return self.limit

    def draw(self, num_tasks, split, rng):
        return {"u": rng.uniform(size=num_tasks)}

    def make_state(self, num_slots):
        return {
            "u": np.full(num_slots, -1.0),
            "episode": np.zeros(num_slots, np.int64),
            "step": np.zeros(num_slots, np.int64),
            "truncated": np.zeros(num_slots, bool),
        }

    def reset(self, tasks, state, rows, streams):
        going_on = (tasks["u"][rows] == state["u"][rows]) & (streams.counters[rows] > 0)  # seeds start everything anew
        streams.uniform(rows=rows)
        state["episode"][rows] = np.where(going_on, state["episode"][rows] + 1, 0)
        state["u"][rows] = tasks["u"][rows]
        state["step"][rows] = 0

    def of(self, choices, u, episode):
        """The entry of `choices` for one episode of task `u`."""
        return choices[(int(u * 1000) + episode) % len(choices)]

    def step(self, tasks, state, actions, streams):
        rewards = reward_at(state["episode"], state["step"])
        if self.wrong_at is not None:
            rewards[(state["episode"] == self.wrong_at[0]) & (state["step"] == self.wrong_at[1])] = self.wrong
        state["step"] += 1
        slots = list(zip(state["u"].tolist(), state["episode"].tolist(), strict=True))
        over = state["step"] >= [self.of(self.lengths, *slot) for slot in slots]
        ending = np.array([self.of(self.endings, *slot) for slot in slots])
        state["truncated"] = over & (ending == "truncated")
        return rewards, over & (ending == "terminated")

    def observe(self, tasks, state):
        where = np.stack([state["episode"], state["step"], state["u"]], -1).astype(np.float32)
        step = state["step"] + (5 if self.observing == "discrete from 5" else 0)
        return {"box": where, "dict": {"where": where, "step": step}}.get(self.observing, step)


class Spy(TrialPolicy):
    """Notes what it reads when it acts, and expects `value_of` what it reads."""

    def __init__(self, family, **kwargs):
        torch.manual_seed(0)
        super().__init__(family.observation_space, family.action_space, core_size=6, **kwargs)
        self.calls, self.steps = [], []

    def act(self, observations, memory, task=None):
        inputs = self.inputs(observations, *memory[1:])
        params, values, core = self.step(inputs, memory.core)
        self.calls.append({"inputs": inputs, "before": memory.core, "after": core})
        return params, self.value_of(inputs) if inputs.shape[-1] == 3 + 3 + 2 else values, core

    def remember(self, core, actions, rewards, done):
        self.steps.append(self.calls[-1])  # the call that chose these actions; other calls are for values alone
        return super().remember(core, actions, rewards, done)

    @staticmethod
    def value_of(inputs):
        """Tells episode, step, and whether the step before ended an episode."""
        episode, step, done = inputs[..., 0], inputs[..., 1], inputs[..., -1]
        return 1 + episode + step / 16 + 1000 * done


def tensors(trials):
    """All parts of a record; nobody reads the task here."""
    parts = dict(vars(trials))
    assert parts.pop("task") is None
    return parts


def play(family, num_steps, num_slots=5, policy=None, episodes=None, split="train", seed=0, **kwargs):
    policy = policy or Spy(family)
    trials = collect_trials(
        family.make_vec(num_slots, autoreset_mode=AutoresetMode.DISABLED),
        policy,
        num_steps=num_steps,
        episodes_per_trial=episodes or family.episodes,
        split=split,
        rng=np.random.default_rng(seed),
        generator=torch.Generator().manual_seed(seed),
        **kwargs,
    )
    return trials, policy


def simulate(family, trials, num_steps, row):
    """What one row must hold, step by step in plain Python, given only the tasks that its observations show."""
    tasks = trials.observations[:, row, 2].tolist()
    episode = step = 0
    previous = (0.0, 0.0)
    for t in range(num_steps):
        u = tasks[t]
        final = step + 1 == min(family.of(family.lengths, u, episode), family.limit)
        by_limit = step + 1 == family.limit and family.of(family.lengths, u, episode) > family.limit
        ending = "truncated" if by_limit else family.of(family.endings, u, episode)
        over = final and episode + 1 == family.episodes
        following = (episode, step + 1, 0) if over or not final else (episode + 1, 0, 1)
        expected_after = 1 + following[0] + following[1] / 16 + 1000 * following[2]
        yield {
            "episode": episode,
            "step": step,
            "previous": previous,
            "reward": reward_at(episode, step),
            "terminated": final and ending == "terminated",
            "truncated": final and ending == "truncated",
            "episode_start": step == 0,
            "trial_start": step == 0 and episode == 0,
            "trial_end": over or t + 1 == num_steps,
            "bootstrap": expected_after * (ending == "truncated" if over else t + 1 == num_steps),
            "value": 1 + episode + step / 16 + 1000 * previous[1],
        }
        previous = (0.0, 0.0) if over else (reward_at(episode, step), float(final))
        episode, step = (0, 0) if over else (episode + 1, 0) if final else (episode, step + 1)


VARIANTS = {
    "terminating": Clock(),
    "truncating": Clock(endings=("truncated",)),
    "limited": Clock(lengths=(99,), limit=3),
    "side by side": Clock(endings=("terminated", "truncated")),
    "single episodes": Clock(episodes=1),
    "single steps": Clock(lengths=(1,), episodes=4),
    "varying": Clock(lengths=(1, 4, 2, 99, 3), endings=("terminated", "truncated", "truncated"), episodes=3, limit=6),
}
variants = pytest.mark.parametrize("name", VARIANTS)


@variants
@pytest.mark.parametrize("num_steps", [18, 19, 25])
def test_everything_recorded_is_right(name, num_steps):
    family = VARIANTS[name]
    trials, spy = play(family, num_steps)
    assert trials.rewards.shape == (num_steps, 5)
    for row in range(5):
        for t, expected in enumerate(simulate(family, trials, num_steps, row)):
            assert trials.observations[t, row, :2].tolist() == [expected["episode"], expected["step"]]
            assert trials.rewards[t, row] == expected["reward"]
            for flag in ("terminated", "truncated", "episode_start", "trial_start", "trial_end"):
                assert getattr(trials, flag)[t, row] == expected[flag], (flag, t, row)
            assert trials.bootstrap[t, row] == expected["bootstrap"], (t, row)
            assert trials.values[t, row] == expected["value"]
            # the policy's own eyes: previous reward and done, which cross episode ends and stop at trial ends
            inputs = spy.steps[t]["inputs"][row]
            assert inputs[-2:].tolist() == list(expected["previous"]), (t, row)
            previous_action = [0.0] * 3 if expected["trial_start"] else torch.eye(3)[trials.actions[t - 1, row]].tolist()
            assert inputs[3:6].tolist() == previous_action


def test_the_end_of_an_episode_is_seen_at_the_next_ones_first_step():
    # The same in the plainest words, for the mistake is common: two episodes of three steps, two trials.
    _, spy = play(Clock(), 12, num_slots=1)
    context = [tuple(step["inputs"][0, -2:].tolist()) for step in spy.steps]
    one_trial = [(0, 0), (1, 0), (2, 0), (3, 1), (17, 0), (18, 0)]  # (previous reward, previous done)
    assert context == 2 * one_trial


@variants
@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_memory_survives_episodes_and_dies_with_trials(name, core):
    family = VARIANTS[name]
    trials, spy = play(family, 25, policy=Spy(family, core=core))
    for t, step in enumerate(spy.steps):
        starts = trials.trial_start[t]
        for i, part in enumerate(step["before"]):
            assert not part[starts].any()
            if t:
                assert torch.equal(part[~starts], spy.steps[t - 1]["after"][i][~starts])
                assert part[~starts].any(-1).all()


def test_a_truncated_trial_is_valued_as_if_it_went_on():
    # The value after an outside cut is of the state reached and of everything seen, with no end of an episode in it.
    family = Clock(endings=("truncated",), episodes=1)
    trials, spy = play(family, 6, num_slots=2)
    beyond = [call for call in spy.calls if (call["inputs"][:, 1] == 3).all()]
    assert len(beyond) == 2
    for call, t in zip(beyond, (2, 5), strict=True):
        assert call["inputs"][:, -2:].tolist() == [[reward_at(0, 2), 0.0]] * 2
        assert torch.equal(call["inputs"][:, 3:6], torch.eye(3)[trials.actions[t]])
        for before, after in zip(call["before"], spy.steps[t]["after"], strict=True):
            assert torch.equal(before, after)
    assert trials.bootstrap.T.tolist() == [[0, 0, 1 + 3 / 16] * 2] * 2


def test_the_record_gives_back_what_was_read():
    for family in VARIANTS.values():
        trials, spy = play(family, 25)
        inputs = spy.inputs(trials.observations, *trials.previous())
        assert torch.equal(inputs, torch.stack([step["inputs"] for step in spy.steps]))


@variants
def test_new_tasks_come_at_the_start_of_trials_only(name):
    for split in ("train", "test"):
        trials, _ = play(VARIANTS[name], 40, split=split)
        tasks = trials.observations[..., 2]
        changed = torch.cat([torch.ones(1, 5, dtype=torch.bool), tasks[1:] != tasks[:-1]])
        assert torch.equal(changed, trials.trial_start)
        distinct = tasks[trials.trial_start].unique()
        assert len(distinct) == trials.trial_start.sum()


def test_tasks_are_of_the_split():
    seen = []

    class Noting(Clock):
        def reset(self, tasks, state, rows, streams):
            seen.append(tasks["u"][rows].copy())
            super().reset(tasks, state, rows, streams)

    family = Noting()
    for split, held_out in (("train", False), ("test", True)):
        seen.clear()
        play(family, 40, split=split)
        tasks = np.concatenate(seen)
        assert len(tasks) > 20
        assert (family.held_out({"u": tasks}) == held_out).all()


@variants
@pytest.mark.parametrize("num_steps", [18, 25])
def test_episode_returns_are_exact(name, num_steps):
    family = VARIANTS[name]
    trials, _ = play(family, num_steps)
    expected, lengths = [], []
    for row in range(5):
        returns, length, ended = [0.0] * family.episodes, 0, 0
        for step in simulate(family, trials, num_steps, row):
            returns[step["episode"]] += step["reward"]
            length += 1
            ended += step["terminated"] or step["truncated"]
            if ended == family.episodes:  # else it was cut where the record ends, and does not count
                expected.append(returns)
                lengths.append(length)
                returns, length, ended = [0.0] * family.episodes, 0, 0
    np.testing.assert_array_equal(trials.episode_returns(family.episodes), expected)
    np.testing.assert_array_equal(trials.trial_lengths(family.episodes), lengths)


def test_the_length_of_trials_is_the_callers():
    trials, _ = play(Clock(), 18, episodes=3)
    assert trials.trial_start.nonzero()[:, 0].unique().tolist() == [0, 9]
    np.testing.assert_array_equal(trials.episode_returns(3), [[6, 54, 102]] * 10)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_named(wrong):
    family = Clock(lengths=(3, 5), wrong_at=(1, 2), wrong=wrong)
    with pytest.raises(ValueError, match="reward must be finite") as error:
        play(family, 20)
    rng = np.random.default_rng(0)
    rng.integers(2**31)  # the environments' seed
    u = family.sample(5, "train", rng).params["u"].tolist()
    slot = next(i for i in range(5) if family.of(family.lengths, u[i], 0) == 3)  # gets to the second episode first
    assert slot > 0
    where = f"test/Clock-v0, task {slot} {{'u': {u[slot]}}}, step 5"
    assert str(error.value) == f"reward must be finite, got {wrong} from {where}"


def test_an_observation_that_is_not_finite_is_named():
    envs = Clock(lengths=(3, 5)).make_vec(2)
    envs.reset(seed=0)
    seen = {"a": np.zeros(2, np.float32), "b": {"c": np.array([[0.0, 1.0], [2.0, np.nan]])}}
    with pytest.raises(ValueError, match=r"observation b c must be finite, got nan from test/Clock-v0, task 1 .*, step 7$"):
        check_finite("observation", seen, envs, 7)
    check_finite("observation", np.array([[255, 0]], np.uint8), envs, 7)


def test_a_stopped_collection_leaves_nothing_behind():
    family = VARIANTS["varying"]
    envs = family.make_vec(5, autoreset_mode=AutoresetMode.DISABLED)
    policy = Spy(family)
    rng, generator = np.random.default_rng(3), torch.Generator().manual_seed(3)
    options = dict(num_steps=25, episodes_per_trial=3, split="train", rng=rng, generator=generator)
    states = generator_state(rng), generator_state(generator)
    whole = collect_trials(envs, policy, **options)
    after = generator_state(rng), generator_state(generator)
    for stop_at in (1, 2, 13, 25):
        restore_generator(rng, states[0])
        restore_generator(generator, states[1])
        steps = []

        def on_step(rewards, trial_over, steps=steps, stop_at=stop_at):
            steps.append((rewards.copy(), trial_over.copy()))
            return len(steps) < stop_at

        assert collect_trials(envs, policy, **options, on_step=on_step) is None
        assert len(steps) == stop_at
        for t, (rewards, trial_over) in enumerate(steps):
            np.testing.assert_array_equal(rewards, whole.rewards[t])
            if t + 1 < 25:
                np.testing.assert_array_equal(trial_over, whole.trial_end[t])
    restore_generator(rng, states[0])
    restore_generator(generator, states[1])
    again = collect_trials(envs, policy, **options)
    for name, value in tensors(whole).items():
        assert torch.equal(value, getattr(again, name)), name
    assert generator_state(rng) == after[0]
    assert torch.equal(generator_state(generator), after[1])


def test_seeds_decide():
    def actions(seed):
        return play(VARIANTS["varying"], 25, seed=seed)[0].actions

    assert torch.equal(actions(1), actions(1))
    assert not torch.equal(actions(1), actions(2))


def test_records_hold_no_gradients():
    trials, _ = play(Clock(), 6)
    assert not any(value.requires_grad for value in tensors(trials).values())


# -- given tasks -------------------------------------------------------------------------------------------------


def simulate_given(family, u, num_steps, episodes):
    """What a slot that stays in task `u` must hold. `Clock` goes on counting episodes from trial to trial."""
    episode, within, step = 0, 0, 0
    for t in range(num_steps):
        length = min(family.of(family.lengths, u, episode), family.limit)
        final = step + 1 == length
        by_limit = length < family.of(family.lengths, u, episode)
        truncated = final and (by_limit or family.of(family.endings, u, episode) == "truncated")
        over = final and within + 1 == episodes
        following = (episode + 1, 0, 1) if final and not over else (episode, step + 1, 0)
        counts = truncated if over else t + 1 == num_steps
        yield {
            "observation": [episode, step],
            "reward": reward_at(episode, step),
            "terminated": final and not truncated,
            "truncated": truncated,
            "episode_start": step == 0,
            "trial_start": step == 0 and within == 0,
            "trial_end": over or t + 1 == num_steps,
            "bootstrap": (1 + following[0] + following[1] / 16 + 1000 * following[2]) * counts,
            "first": episode < episodes,
        }
        within = 0 if over else within + final
        episode, step = (episode + 1, 0) if final else (episode, step + 1)


def lengths_of_first_trials(family, tasks, episodes):
    return [
        sum(min(family.of(family.lengths, u, episode), family.limit) for episode in range(episodes))
        for u in tasks.params["u"].tolist()
    ]


@variants
@pytest.mark.parametrize("episodes", [1, 2])
def test_given_tasks_are_played_once_by_all(name, episodes):
    family = VARIANTS[name]
    tasks = family.sample(5, "train", 11)
    trials, _ = play(family, 99, tasks=tasks, episodes=episodes)
    lengths = lengths_of_first_trials(family, tasks, episodes)
    assert len(trials.rewards) == max(lengths)  # not a step longer than the longest first trial
    assert trials.first.sum(0).tolist() == lengths
    assert (trials.observations[..., 2] == torch.as_tensor(tasks.params["u"]).float()).all()
    for row, u in enumerate(tasks.params["u"].tolist()):
        for t, expected in enumerate(simulate_given(family, u, max(lengths), episodes)):
            assert trials.observations[t, row, :2].tolist() == expected.pop("observation")
            assert trials.rewards[t, row] == expected.pop("reward")
            for flag, value in expected.items():
                assert getattr(trials, flag)[t, row] == value, (flag, t, row)


def test_the_lengths_of_first_trials_vary():
    family = VARIANTS["varying"]
    assert len({*lengths_of_first_trials(family, family.sample(5, "train", 11), 1)}) > 2


def test_given_tasks_may_be_cut():
    family = VARIANTS["varying"]
    tasks = family.sample(5, "train", 11)
    lengths = lengths_of_first_trials(family, tasks, 3)
    trials, _ = play(family, max(lengths) - 2, tasks=tasks, episodes=3)
    assert len(trials.rewards) == max(lengths) - 2
    assert trials.trial_end[-1].all()
    assert trials.first.sum(0).tolist() == [min(length, max(lengths) - 2) for length in lengths]


def test_tasks_may_be_of_any_split_and_given_again():
    family = VARIANTS["varying"]
    tasks = family.sample(5, "test", 0)
    first, second = (play(family, 99, tasks=tasks, split="train")[0] for _ in range(2))
    for name, value in tensors(first).items():
        assert torch.equal(value, getattr(second, name)), name
    with pytest.raises(ValueError, match=r"tasks must hold one task per slot \(5\), got 4"):
        play(family, 99, tasks=tasks[:4])


def test_a_collection_in_given_tasks_can_be_stopped():
    calls = []

    def on_step(*call):
        calls.append(call)
        return len(calls) < 4

    trials, _ = play(Clock(), 99, tasks=Clock().sample(5, "train", 0), on_step=on_step)
    assert trials is None
    assert len(calls) == 4


# -- parameters of their own for every task ------------------------------------------------------------------------

TASKS, SLOTS = 3, 4


def own_params(policy):
    generator = torch.Generator().manual_seed(0)
    initial = policy.initial_params()
    return {name: 0.5 * torch.randn(TASKS, *value.shape, generator=generator) for name, value in initial.items()}


def tanh_layers(x, params, trunk, task):
    names = sorted(name for name in params if name.startswith(trunk) and name.endswith("weight"))
    for name in names:
        weight, bias = params[name][task], params[name.replace("weight", "bias")][task]
        x = np.tanh(x @ weight.T + bias)
    return x


def by_hand(policy, params, inputs, actions, task):
    """Log-probabilities and values of `inputs [M, F]` and `actions [M, ...]` in plain NumPy."""
    params = {name: value.numpy().astype(np.float64) for name, value in params.items()}
    outputs = tanh_layers(inputs, params, "policy_trunk", task) @ params["policy_head.linear.weight"][task].T
    outputs = outputs + params["policy_head.linear.bias"][task]
    if "policy_head.log_std" in params:
        log_std = params["policy_head.log_std"][task]
        z = (actions - outputs) / np.exp(log_std)
        log_probs = -(z**2 / 2 + log_std + np.log(2 * np.pi) / 2).sum(-1)
    else:
        log_probs = outputs[np.arange(len(actions)), actions] - np.log(np.exp(outputs).sum(-1))
    values = tanh_layers(inputs, params, "value_trunk", task) @ params["value_head.weight"][task].T
    values = values + params["value_head.bias"][task]
    return log_probs, float(policy.value_mean) + float(policy.value_std) * values[:, 0]


@pytest.mark.parametrize("actions", ["discrete", "box"])
@pytest.mark.parametrize("observing", ["box", "dict", "discrete from 5"])
def test_each_slot_acts_with_the_parameters_of_its_task(observing, actions):
    family = Clock(
        lengths=(1, 4, 2, 5, 3), endings=("terminated", "truncated"), episodes=1, observing=observing, actions=actions
    )
    torch.manual_seed(0)
    policy = GradientPolicy(family.observation_space, family.action_space, hidden=(6, 5), with_value=True)
    policy.value_mean.fill_(7.0)
    policy.value_std.fill_(3.0)
    params = own_params(policy)
    tasks = family.sample(TASKS, "train", 3)[np.repeat(np.arange(TASKS), SLOTS)]
    trials, _ = play(family, 8, TASKS * SLOTS, AdaptedPolicy(policy, params), tasks=tasks)
    seen = trials.observations
    if observing == "dict":
        leaves = {"where": seen["where"], "step": torch.eye(10)[seen["step"]]}
        inputs = torch.cat([leaves[key] for key in family.observation_space], -1)
    else:
        inputs = seen if observing == "box" else torch.eye(10)[seen - 5]
    beyond = trials.truncated & trials.trial_end
    assert beyond.any()
    for row in range(TASKS * SLOTS):
        log_probs, values = by_hand(policy, params, inputs[:, row].numpy(), trials.actions[:, row].numpy(), row // SLOTS)
        np.testing.assert_allclose(trials.log_probs[:, row], log_probs, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(trials.values[:, row], values, rtol=1e-4, atol=1e-4)
        other, _ = by_hand(
            policy, params, inputs[:, row].numpy(), trials.actions[:, row].numpy(), (row // SLOTS + 1) % TASKS
        )
        assert not np.isclose(log_probs, other).any()
    assert (trials.bootstrap != 0)[beyond].all()
    assert not trials.bootstrap[~trials.trial_end | (trials.terminated & trials.trial_end)].any()


def test_poles_that_fall_at_different_times():
    family = make_family("metarl/CartPoleContext-v0", num_steps=40)
    torch.manual_seed(0)
    policy = GradientPolicy(family.observation_space, family.action_space, hidden=(4,))
    tasks = family.sample(TASKS, "test", 0)[np.repeat(np.arange(TASKS), SLOTS)]
    trials, _ = play(family, 40, TASKS * SLOTS, AdaptedPolicy(policy, own_params(policy)), tasks=tasks, episodes=1)
    done = (trials.terminated | trials.truncated).long()
    lengths = done.argmax(0) + 1
    assert len(lengths.unique()) > 2
    assert len(trials.rewards) == lengths.max()
    assert torch.equal(trials.first, torch.arange(int(lengths.max()))[:, None] < lengths)
    assert torch.equal((trials.rewards * trials.first).sum(0), lengths.float())
    assert not trials.values.any()


def test_batches_of_observations_are_checked():
    box = gym.spaces.Box(0, 1, (3,))
    assert batch_size_of(np.zeros((7, 3)), box) == 7
    assert batch_size_of({"a": np.zeros(4, int)}, gym.spaces.Dict(a=gym.spaces.Discrete(2))) == 4
    for wrong in (np.zeros(3), np.zeros((7, 4)), np.zeros((7, 3, 1))):
        with pytest.raises(ValueError, match=r"observations must have shape \(batch, \*\(3,\)\), got "):
            batch_size_of(wrong, box)
