"""What every registered family promises, and its task sets."""

import dataclasses
import io
import pickle
import zipfile

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy import stats

from metarl_envs import TaskFamily, TaskSet, families, make_family
from metarl_envs.checker import check_vector_env

ALL = families()
NOTHING_TO_HOLD_OUT = {
    "metarl/Context-v0",
    "metarl/HalfCheetahDirection-v0",
    "metarl/TMaze-v0",
    "metarl/TMazeActive-v0",
    "metarl/TwoArmedEasy-v0",
    "metarl/TwoArmedHard-v0",
    "metarl/TwoArmedMedium-v0",
}
WITH_OOD = [env_id for env_id in ALL if "ood" in make_family(env_id).splits]

every_family = pytest.mark.parametrize("env_id", ALL)


def first_param(tasks):
    return next(iter(tasks.params.values()))


def same(first, second):
    """Equal observations: arrays, or dictionaries of them."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return np.array_equal(first, second)


def pick(tree, slot):
    return {key: pick(value, slot) for key, value in tree.items()} if isinstance(tree, dict) else tree[slot]


# -- every family ----------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.filterwarnings("ignore:.*A Box observation space m:UserWarning")  # CartPole's are infinite
@pytest.mark.filterwarnings("ignore:.*For Box action spaces, we recommend:UserWarning")  # Pendulum's reach to 2
def test_single_environment_follows_gymnasium(env_id):
    env = gym.make(env_id)
    check_env(env.unwrapped)
    env.close()


@every_family
@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_vector_environment_follows_gymnasium(env_id, mode):
    envs = gym.make_vec(env_id, num_envs=3, autoreset_mode=mode)
    check_vector_env(envs)
    envs.close()


@every_family
def test_single_and_vector_environments_play_the_same(env_id):
    family, num_envs, seed = make_family(env_id), 3, 17
    tasks = family.sample(num_envs, "train", 0)
    envs = family.make_vec(num_envs)
    observations, _ = envs.reset(seed=seed, options={"tasks": tasks})
    envs.action_space.seed(seed)
    singles = [gym.make(env_id).unwrapped for _ in range(num_envs)]
    for slot, env in enumerate(singles):
        task = {name: values[slot] for name, values in tasks.params.items()}
        observation, _ = env.reset(seed=seed + slot, options={"task": task})
        assert same(observation, pick(observations, slot))
    ended = 0
    for _ in range(min(220, 3 * family.max_episode_steps)):
        actions = envs.action_space.sample()
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        for slot, env in enumerate(singles):
            observation, *outcome, _ = env.step(actions[slot])
            assert outcome == [rewards[slot], terminated[slot], truncated[slot]]
            if terminated[slot] or truncated[slot]:
                assert same(observation, pick(infos["final_obs"], slot))
                observation, _ = env.reset()
                ended += 1
            assert same(observation, pick(observations, slot))
    assert ended
    assert envs.tasks.hash == tasks.hash


@every_family
def test_train_and_test_tasks_are_disjoint(env_id):
    family = make_family(env_id)
    train, test = family.sample(300, "train", 0), family.sample(300, "test", 1)
    if env_id in NOTHING_TO_HOLD_OUT:
        assert family.held_out(train.params) is None
        return
    assert not family.held_out(train.params).any()
    assert family.held_out(test.params).all()
    rows = [
        set(map(bytes, np.concatenate([v.reshape(300, -1) for v in tasks.params.values()], -1))) for tasks in (train, test)
    ]
    assert not rows[0] & rows[1]


@every_family
def test_the_held_out_side_is_a_property_of_the_task_alone(env_id):
    family = make_family(env_id)
    params = family.draw(2000, "train", np.random.default_rng(0))
    side = family.held_out(params)
    if side is None:
        return
    np.testing.assert_array_equal(family.held_out({name: v[::-7] for name, v in params.items()}), side[::-7])
    assert side.mean() == pytest.approx(family.held_out_fraction, abs=0.04)


@pytest.mark.parametrize("env_id", WITH_OOD)
def test_ood_tasks_follow_another_distribution(env_id):
    family = make_family(env_id)
    test, ood = family.sample(1000, "test", 0), family.sample(1000, "ood", 1)
    firsts = [[values.reshape(1000, -1)[:, 0] for values in tasks.params.values()] for tasks in (test, ood)]
    assert min(stats.ks_2samp(*columns).pvalue for columns in zip(*firsts, strict=True)) < 1e-9


@every_family
def test_sampling_depends_on_the_seed_alone(env_id):
    family = make_family(env_id)
    first, again, other = (family.sample(5, "test", seed) for seed in (3, np.random.default_rng(3), 4))
    assert first.hash == again.hash
    assert len(first) == 5
    if env_id not in NOTHING_TO_HOLD_OUT | {"metarl/GridNavi-v0"}:
        assert {row.tobytes() for row in first_param(first)}.isdisjoint(row.tobytes() for row in first_param(other))


@every_family
def test_task_sets_survive_saving(env_id, tmp_path):
    tasks = make_family(env_id).sample(4, "test", 0)
    path = tasks.save(tmp_path / "sets" / "lr-0.5")
    assert path == tmp_path / "sets" / "lr-0.5.npz"
    loaded = TaskSet.load(path)
    assert loaded.hash == tasks.hash
    assert (loaded.env_id, loaded.split, len(loaded)) == (tasks.env_id, "test", 4)
    for name, values in tasks.params.items():
        np.testing.assert_array_equal(loaded.params[name], values)
        assert loaded.params[name].dtype == values.dtype


@every_family
def test_a_family_is_built_again_from_what_its_task_sets_say(env_id):
    family = make_family(env_id)
    tasks = family.sample(2)
    rebuilt = make_family(tasks.env_id, **tasks.family_kwargs)
    assert rebuilt == family
    assert rebuilt.sample(2, "train", 5).hash == family.sample(2, "train", 5).hash


@every_family
def test_ceilings_are_one_number_per_task_and_independent_of_the_others(env_id):
    family = make_family(env_id)
    tasks = family.sample(10, "test", 0)
    ceilings = family.ceiling(tasks)
    if ceilings is not None:
        assert ceilings.shape == (10,)
        np.testing.assert_allclose(family.ceiling(tasks[3:5]), ceilings[3:5], rtol=1e-12)


@every_family
def test_own_tasks_change_after_each_trial(env_id):
    family = make_family(env_id)
    if env_id in NOTHING_TO_HOLD_OUT:
        pytest.skip("too few tasks to tell a change")
    envs = family.make_vec(8, split="test", episodes_per_task=2, autoreset_mode="Disabled")
    envs.reset(seed=0)
    seen = [envs.tasks]
    for _ in range(5):  # the first reset began the first episode
        envs.reset()
        seen.append(envs.tasks)
    hashes = [tasks.hash for tasks in seen]
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3] != hashes[4] == hashes[5]
    assert all(family.held_out(tasks.params).all() for tasks in seen)
    envs.reset(seed=0)
    assert envs.tasks.hash == hashes[0]


# -- task sets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks():
    return make_family("metarl/BernoulliBandit-v0").sample(6, "test", 0)


def test_hash_changes_with_tasks_their_order_split_and_family(tasks):
    means = tasks.params["means"].copy()
    means[2, 1] = np.nextafter(means[2, 1], 1)
    others = [
        dataclasses.replace(tasks, params={"means": means}),
        dataclasses.replace(tasks, params={"means": tasks.params["means"].astype(np.float32)}),
        dataclasses.replace(tasks, params={"arms": tasks.params["means"]}),
        dataclasses.replace(tasks, split="train"),
        dataclasses.replace(tasks, env_id="metarl/GaussianBandit-v0"),
        dataclasses.replace(tasks, family_kwargs={**tasks.family_kwargs, "num_pulls": 11}),
        tasks[::-1],
        tasks[:5],
    ]
    assert len({tasks.hash, *(other.hash for other in others)}) == len(others) + 1
    assert dataclasses.replace(tasks).hash == tasks.hash


def test_task_sets_are_sliced_like_arrays(tasks):
    means = tasks.params["means"]
    np.testing.assert_array_equal(tasks[-1].params["means"], means[-1:])
    np.testing.assert_array_equal(tasks[np.array([4, 0])].params["means"], means[[4, 0]])
    assert [len(task) for task in tasks] == [1] * 6
    with pytest.raises(IndexError, match="below 6"):
        tasks[6]


def test_task_sets_need_one_leading_axis():
    with pytest.raises(ValueError, match="leading axis"):
        TaskSet("some/Env-v0", {}, "train", {"a": np.zeros(2), "b": np.zeros(3)})


def corrupt(data):
    """Ways in which a file of bytes `data` can be broken, by name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("header.npy", b"no array")
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    wrong_header, header_not_json = io.BytesIO(), io.BytesIO()
    np.savez(wrong_header, header=np.array('{"env": 1}'), param_means=np.zeros((2, 2)))
    np.savez(header_not_json, header=np.array("{"), param_means=np.zeros((2, 2)))
    middle = len(data) // 3
    return {
        "empty": b"",
        "truncated": data[: len(data) // 2],
        "flipped byte": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
        "text": b"not a task set",
        "zip bomb stub": b"PK\x03\x04 and nothing more",
        "member that is no array": archive.getvalue(),
        "bare array": array.getvalue(),
        "wrong header": wrong_header.getvalue(),
        "header that is not JSON": header_not_json.getvalue(),
    }


@pytest.mark.parametrize("kind", list(corrupt(bytes(9))))
def test_files_that_are_no_task_sets_are_refused(kind, tasks, tmp_path):
    path = tasks.save(tmp_path / "tasks")
    path.write_bytes(corrupt(path.read_bytes())[kind])
    with pytest.raises(ValueError, match="is not a task set"):
        TaskSet.load(path)


def test_a_missing_file_is_told_as_such(tmp_path):
    with pytest.raises(FileNotFoundError):
        TaskSet.load(tmp_path / "none.npz")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("key", ["header", "param_means"])
def test_pickles_inside_a_file_are_not_run(key, tmp_path):
    trace = tmp_path / "trace"
    contents = {"header": np.array("{}"), "param_means": np.zeros((2, 2))}
    np.savez(tmp_path / "tasks.npz", **{**contents, key: np.array([Malicious(trace)], object)})
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Malicious(trace)))
    for name in ("tasks.npz", "bare.npz"):
        with pytest.raises(ValueError, match="is not a task set"):
            TaskSet.load(tmp_path / name)
    assert not trace.exists()


# -- errors name the argument ----------------------------------------------------------------------------------------


@every_family
def test_unknown_splits_and_parameters_are_named(env_id):
    family = make_family(env_id)
    with pytest.raises(ValueError, match=r"split must be one of train, test.* got 'valid'"):
        family.sample(1, "valid")
    with pytest.raises(ValueError, match=r"split must be one of train, test.* got 'valid'"):
        family.make_vec(1, split="valid")
    with pytest.raises(ValueError, match="num_tasks must be at least 1, got 0"):
        family.sample(0)
    with pytest.raises(TypeError, match=r"no parameter 'num_legs': it has [a-z]"):
        make_family(env_id, num_legs=4)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("BernoulliBandit", {"num_arms": 1}, "num_arms must be at least 2, got 1"),
        ("BernoulliBandit", {"num_pulls": 0}, "num_pulls must be at least 1, got 0"),
        ("BernoulliBandit", {"num_arms": "5"}, "num_arms must be at least 2, got '5'"),
        ("BernoulliBandit", {"prior": (0, 1)}, "prior must hold two numbers above 0"),
        ("BernoulliBandit", {"prior": (1, 1, 1)}, r"prior must be two numbers, got \(1, 1, 1\)"),
        ("GaussianBandit", {"noise_std": -1.0}, "noise_std must be at least 0, got -1.0"),
        ("TwoArmedBandit", {"num_arms": 3}, "num_arms must be 2, got 3"),
        ("TwoArmedBandit", {"variant": "odd"}, "variant must be .* got 'odd'"),
        ("TabularMDP", {"num_states": 0}, "num_states must be at least 1, got 0"),
        ("TabularMDP", {"num_actions": 1}, "num_actions must be at least 2, got 1"),
        ("TabularMDP", {"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ("TabularMDP", {"concentration": 0.0}, "concentration must be above 0, got 0.0"),
        ("TabularMDP", {"mean_prior": (0.0, 0.0)}, r"mean_prior\[1\] must be above 0, got 0.0"),
        ("TabularMDP", {"mean_prior": 1.0}, "mean_prior must be two numbers, got 1.0"),
        ("TabularMDP", {"reward_std": -0.5}, "reward_std must be at least 0, got -0.5"),
        ("Navigation2D", {"goal_region": "disc"}, "goal_region must be square or semicircle, got 'disc'"),
        ("Navigation2D", {"max_step": 0}, "max_step must be above 0, got 0"),
        ("Navigation2D", {"ood_scale": 1.0}, "ood_scale must be above 1, got 1.0"),
        ("Navigation2D", {"goal_radius": 1.5}, r"goal_radius must be None or in \(0, 1\], got 1.5"),
        ("Navigation2D", {"goal_radius": 0.2}, "done_within must be None when goal_radius is set, got 0.01"),
        ("GridNavi", {"num_cells": 2}, "num_cells must be at least 3, got 2"),
        ("GridNavi", {"num_episodes": 0}, "num_episodes must be at least 1, got 0"),
        ("Context", {"ranges": [1, 2]}, r"ranges must map names to \(lowest, highest\), got \[1, 2\]"),
    ],
)
def test_parameters_out_of_bounds_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_family(f"metarl/{name}-v0", **kwargs)


def test_unknown_environments_are_refused():
    with pytest.raises(gym.error.Error):
        make_family("metarl/Nothing-v0")


def test_a_family_with_too_few_tasks_to_split_says_so():
    family = make_family("metarl/GaussianBandit-v0", prior_std=0.0)
    empty = "train" if family.held_out(family.draw(1, "train", np.random.default_rng(0)))[0] else "test"
    with pytest.raises(ValueError, match=f"too few tasks to be split: none of them belongs to '{empty}'"):
        family.sample(2, empty)


def test_a_bare_family_says_what_subclasses_must_say():
    with pytest.raises(NotImplementedError):
        _ = TaskFamily().observation_space
