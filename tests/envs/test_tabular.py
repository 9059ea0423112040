import numpy as np
import pytest

from metarl_envs import make_family


def make(**kwargs):
    return make_family("metarl/TabularMDP-v0", **kwargs)


def play_plainly(transitions, means, reward_std, num_steps, actions, stream):
    """One slot's observations and rewards in plain Python; an episode every `num_steps` steps."""
    state, observations, rewards = 0, [], []
    for step, action in enumerate(actions):
        rewards.append(means[state][action] + reward_std * stream.normal())
        state = stream.categorical(transitions[state][action])
        observations.append(state)
        if step % num_steps == num_steps - 1:
            state = 0
    return observations, rewards


@pytest.mark.parametrize(("sizes", "reward_std"), [({}, 1.0), ({"num_states": 3, "num_actions": 2, "num_steps": 4}, 0.3)])
def test_trajectories_equal_plain_python(plain_stream, sizes, reward_std):
    family = make(reward_std=reward_std, **sizes)
    tasks, seed = family.sample(4, "test", 0), 90
    envs = family.make_vec(4)
    observations, _ = envs.reset(seed=seed, options={"tasks": tasks})
    assert observations.tolist() == [0, 0, 0, 0]
    actions = np.random.default_rng(0).integers(family.num_actions, size=(45, 4))
    steps = []
    for step, action in enumerate(actions):
        observations, rewards, terminated, truncated, infos = envs.step(action)
        last = (step + 1) % family.num_steps == 0
        assert terminated.tolist() == [last] * 4
        assert not truncated.any()
        assert not last or not observations.any()
        steps.append((infos["final_obs"] if last else observations, rewards))
    observations, rewards = map(np.array, zip(*steps, strict=True))
    for slot in range(4):
        transitions, means = (tasks.params[name][slot].tolist() for name in ("transitions", "means"))
        stream = plain_stream(seed + slot)
        expected = play_plainly(transitions, means, reward_std, family.num_steps, actions[:, slot], stream)
        assert observations[:, slot].tolist() == expected[0]
        np.testing.assert_allclose(rewards[:, slot], expected[1], rtol=1e-12)


def best_plainly(transitions, means, steps_left, state=0):
    """The value of `state`, by recursion over every action and successor."""
    if steps_left == 0:
        return 0.0
    values = []
    for action, reward in enumerate(means[state]):
        successors = enumerate(transitions[state][action])
        values.append(reward + sum(p * best_plainly(transitions, means, steps_left - 1, s) for s, p in successors))
    return max(values)


def test_ceilings_equal_recursion_over_all_choices():
    family = make(num_states=3, num_actions=2, num_steps=4)
    tasks = family.sample(6, "train", 0)
    tables = zip(tasks.params["transitions"].tolist(), tasks.params["means"].tolist(), strict=True)
    expected = [best_plainly(transitions, means, 4) for transitions, means in tables]
    np.testing.assert_allclose(family.ceiling(tasks), expected, rtol=1e-12)


@pytest.mark.parametrize(("num_steps", "best"), [(1, 1.0), (2, 2.0), (3, 9.0), (4, 19.0)])
def test_the_ceiling_of_a_known_chain(num_steps, best):
    # action 0 stays; action 1 moves 0 -> 1 -> 2 -> 2. Staying in 0 pays 1, moving costs 1/2, anything in 2 pays 10.
    family = make(num_states=3, num_actions=2, num_steps=num_steps)
    tasks = family.sample(1)
    tasks.params["transitions"][0] = [
        [[1, 0, 0], [0, 1, 0]],
        [[0, 1, 0], [0, 0, 1]],
        [[0, 0, 1], [0, 0, 1]],
    ]
    tasks.params["means"][0] = [[1, -0.5], [0, -0.5], [10, 10]]
    assert family.ceiling(tasks).tolist() == [best]


def test_ceilings_are_computed_in_chunks_without_a_seam():
    family = make(num_states=2, num_actions=2, num_steps=3)
    tasks = family.sample(2100, "train", 0)
    whole = family.ceiling(tasks)
    assert whole.shape == (2100,)
    edges = [0, 1023, 1024, 1025, 2047, 2048, 2099]
    np.testing.assert_allclose(whole[edges], family.ceiling(tasks[np.array(edges)]), rtol=1e-12)


def test_the_optimal_player_earns_the_ceiling():
    family, num_tasks = make(), 1000
    tasks = family.sample(num_tasks, "test", 0)
    transitions, means = tasks.params["transitions"], tasks.params["means"]
    values, plans = np.zeros((num_tasks, 10)), []
    for _ in range(family.num_steps):
        action_values = means + (transitions @ values[:, None, :, None])[..., 0]
        values = action_values.max(-1)
        plans.append(action_values.argmax(-1))
    envs = family.make_vec(num_tasks)
    states, _ = envs.reset(seed=0, options={"tasks": tasks})
    returns = np.zeros(num_tasks)
    for plan in reversed(plans):
        states, rewards, *_ = envs.step(plan[np.arange(num_tasks), states])
        returns += rewards
    surplus = returns - family.ceiling(tasks)
    assert abs(surplus.mean()) < 4 * surplus.std() / np.sqrt(num_tasks)


def test_random_actions_earn_ten_per_episode():
    family = make()
    envs = family.make_vec(2000)
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    total = sum(envs.step(rng.integers(5, size=2000))[1] for _ in range(10))
    assert total.mean() == pytest.approx(10.0, abs=4 * total.std() / np.sqrt(2000))


def test_tasks_follow_the_published_prior():
    params = make().sample(500, "train", 0).params
    assert params["transitions"].shape == (500, 10, 5, 10)
    assert params["means"].shape == (500, 10, 5)
    np.testing.assert_allclose(params["transitions"].sum(-1), 1)
    assert params["transitions"].var() == pytest.approx(9 / 1100, rel=0.02)  # of Dirichlet(1, ..., 1) in ten dimensions
    assert params["means"].mean() == pytest.approx(1.0, abs=0.03)
    assert params["means"].std() == pytest.approx(1.0, abs=0.03)


def test_ood_tasks_follow_their_own_prior():
    params = make(ood_mean_prior=[5, 3], ood_concentration=0.01).sample(200, "ood", 0).params
    assert params["means"].mean() == pytest.approx(5.0, abs=0.2)
    assert params["means"].std() == pytest.approx(3.0, abs=0.1)
    assert params["transitions"].max(-1).mean() > 0.9


def test_trials_are_those_of_the_paper_by_default():
    family = make()
    assert (family.episodes_per_trial, family.max_episode_steps, family.horizon) == (10, 10, 100)
    assert make(num_episodes=75).horizon == 750
