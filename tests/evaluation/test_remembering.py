import numpy as np
import pytest
import torch

from metarl.algorithms.players import MemoryPlayer
from metarl.algorithms.rl2 import RL2PPO
from metarl.evaluation import Reach, play_trials, plot_memory, reach, remember
from metarl.evaluation.references import RandomPlayer
from metarl.memory import CORES, MemoryCore
from metarl.policies import TrialPolicy
from metarl_envs import make_family

CARDS = make_family("metarl/RepeatPrevious-v0")


class Shift(MemoryCore):
    """Puts out what came in `delay` steps ago."""

    def __init__(self, input_size, output_size, delay=3):
        super().__init__()
        self.input_size, self.output_size, self.delay = input_size, output_size, delay

    def initial_state(self, batch_size):
        return (torch.zeros(batch_size, self.delay, self.output_size),)

    def step(self, x, state):
        return state[0][:, 0], (torch.cat([state[0][:, 1:], x[:, None, : self.output_size]], 1),)

    def scan(self, x, state, reset=None):
        outputs = []
        for now, restarts in zip(x, reset, strict=True):
            y, state = self.step(now, self.restart(state, restarts))
            outputs.append(y)
        return torch.stack(outputs), state


def make_player(core, family=CARDS, sharpness=30.0, **kwargs):
    torch.manual_seed(0)
    policy = TrialPolicy(
        family.observation_space, family.action_space, core=core, core_size=4, encoder=[], skip=False, core_kwargs=kwargs
    )
    with torch.no_grad():
        policy.policy_head.linear.weight.normal_().mul_(sharpness / 10)
    return MemoryPlayer(policy)


@pytest.mark.parametrize("delay", [1, 4, 30])
def test_a_shift_register_reaches_as_far_back_as_it_is_long(monkeypatch, delay):
    monkeypatch.setitem(CORES, "shift", Shift)
    found = reach(make_player("shift", delay=delay), CARDS, CARDS.sample(20, "test", 0))
    assert found.length == delay + 1
    np.testing.assert_allclose(found.missing[found.steps <= delay], 1.0, atol=1e-5)  # nothing or all
    np.testing.assert_allclose(found.missing[found.steps > delay], 0.0, atol=1e-5)


@pytest.mark.parametrize("core", ["lstm", "key_value"])
@torch.no_grad()
def test_what_is_missing_is_the_ratio_of_two_sums_over_all_decisions(core):
    player, tasks = make_player(core), CARDS.sample(6, "test", 0)
    with torch.no_grad():  # right and sure without a memory most of the time: there a short memory can do great harm
        player.policy.policy_head.linear.bias.copy_(torch.tensor([4.0, 0.0, 0.0, 0.0]))
    found = reach(player, CARDS, tasks, decisions=20_000)
    policy, head = player.policy, player.policy.policy_head
    records = []
    player.start_trials(tasks, np.random.default_rng())

    class Recorder:
        name = "recorder"
        start_trials, observe = player.start_trials, player.observe

        @staticmethod
        def act(observations):
            records.append(policy.inputs(torch.as_tensor(observations), *player.memory[1:]))
            return player.act(observations)

    play_trials(Recorder, CARDS, tasks, batch_size=6)

    def outputs(start, stop):
        state = policy.core.initial_state(6)
        for inputs in records[start:stop]:
            params, _, state = policy.step(inputs, state)
        return params

    whole = [outputs(0, t + 1) for t in range(len(records))]
    exact = np.array(
        [
            float(sum(head.kl(p, outputs(max(t + 1 - steps, 0), t + 1)).sum() for t, p in enumerate(whole)))
            for steps in found.steps
        ]
    )
    np.testing.assert_allclose(found.missing, exact / exact[0], atol=0.03)


def test_decisions_that_hang_on_nothing_reach_no_further_than_the_present():
    player = make_player("lstm")
    with torch.no_grad():
        player.policy.policy_head.linear.weight.zero_()
    found = reach(player, CARDS, CARDS.sample(5, "test", 0))
    assert (found.length, str(found)) == (1, "nothing is decided by it")


def test_the_length_is_that_from_which_on_nothing_is_missing_any_more():
    assert Reach(np.arange(1, 6), np.array([1.0, 0.03, 0.4, 0.05, 0.0]), 1.0).length == 4
    assert Reach(np.array([1]), np.array([0.0]), 0.0).length == 1
    assert Reach(np.array([1, 2]), np.array([1.0, 0.9]), 1.0).length == 2


def test_wrong_numbers_of_decisions():
    with pytest.raises(ValueError, match="decisions must be at least 1, got 0"):
        reach(make_player("lstm"), CARDS, CARDS.sample(1, "test", 0), decisions=0)


@pytest.mark.parametrize("core", [name for name in CORES if name != "identity"])
def test_every_core_shows_what_it_does(core, tmp_path):
    family = make_family("metarl/DarkKeyToDoor-v0", num_cells=3, num_steps=40, num_episodes=2)  # episodes end early
    player, tasks = make_player(core, family), family.sample(5, "test", 1)
    trials = remember(player, family, tasks, seed=3)
    returns = play_trials(player, family, tasks, seed=3, batch_size=5)
    for trial, expected in zip(trials, returns, strict=True):
        steps = len(trial.rewards)
        assert trial.episode_ends.nonzero()[0].tolist()[1:] == [steps - 1]
        assert trial.rewards.sum() == pytest.approx(expected.sum())
        assert all(weights.shape[0] == steps and np.isfinite(weights).all() for weights in trial.weights.values())
    assert len({len(trial.rewards) for trial in trials}) > 1
    first = {name: values[0] for name, values in trials[0].weights.items()}
    inputs = policy_inputs_at_start(player, family, tasks)
    for name, values in player.policy.core.watch(player.policy.encode(inputs), player.policy.core.initial_state(5)).items():
        np.testing.assert_allclose(first[name], values[0], atol=1e-6)
    plot_memory(trials[0], Reach(np.array([1, 2]), np.array([1.0, 0.0]), 0.1), tmp_path / "memory.png", title=core)
    assert (tmp_path / "memory.png").stat().st_size > 5000


def policy_inputs_at_start(player, family, tasks):
    observations, _ = family.make_vec(len(tasks)).reset(options={"tasks": tasks})
    return player.policy.inputs(torch.as_tensor(observations), *player.policy.initial_memory(len(tasks))[1:])


def test_the_picture_names_weights_and_length():
    player = make_player("ntm")
    (trial,) = remember(player, CARDS, CARDS.sample(1, "test", 0))
    figure = plot_memory(trial, Reach(np.array([1, 5, 9]), np.array([1.0, 0.4, 0.01]), 0.12))
    assert [axes.get_ylabel().split("\n")[0] for axes in figure.axes[:4]] == [
        "reward",
        "read",
        "write",
        "share of what",
    ]  # and colour bars
    assert figure.axes[3].get_title("right") == ("effective length 9 steps; a decision changes by 0.12 nats on average")


def test_players_without_a_memory_are_told_apart():
    with pytest.raises(ValueError, match="random does not adapt by a memory: there is none to show"):
        remember(RandomPlayer(CARDS), CARDS, CARDS.sample(1, "test", 0))
    with pytest.raises(ValueError, match="agent has no memory to show"):
        reach(make_player("identity"), CARDS, CARDS.sample(1, "test", 0))


def test_a_value_function_that_is_told_the_task_is_not_needed():
    model = RL2PPO("LstmPolicy", CARDS, num_envs=4, policy_kwargs={"core_size": 4}, critic_sees_task=True).learn(1)
    assert model.policy.task_size > 0
    found = reach(model.player(), CARDS, CARDS.sample(3, "test", 0), decisions=20)
    assert np.isfinite(found.missing).all()
