import numpy as np
import pytest

from metarl_envs import make_family

PAIRS = {"Easy": {0.1, 0.9}, "Medium": {0.25, 0.75}, "Hard": {0.4, 0.6}}


def pull(env_id, means, arms, seed, **kwargs):
    """Rewards `[len(arms), B]` of pulling `arms` in turn in every slot."""
    envs = make_family(env_id, num_arms=means.shape[1], **kwargs).make_vec(len(means))
    envs.reset(seed=seed, options={"tasks": {"means": means}})
    rewards = []
    for arm in arms:
        observations, reward, terminated, truncated, infos = envs.step(np.full(len(means), arm))
        assert terminated.all()
        assert not truncated.any()
        assert not observations.any()
        assert not infos["final_obs"].any()
        rewards.append(reward)
    return np.array(rewards)


def test_bernoulli_rewards_equal_plain_python(plain_stream):
    means, arms = np.array([[0.2, 0.7, 0.5], [0.9, 0.1, 0.4]]), [0, 1, 2, 1, 0, 2] * 10
    rewards = pull("metarl/BernoulliBandit-v0", means, arms, seed=40)
    for slot in range(2):
        stream = plain_stream(40 + slot)
        assert rewards[:, slot].tolist() == [float(stream.uniform() < means[slot][arm]) for arm in arms]


def test_gaussian_rewards_equal_plain_python(plain_stream):
    means, arms = np.array([[0.2, -1.0], [3.0, 0.1]]), [0, 1, 1, 0] * 10
    rewards = pull("metarl/GaussianBandit-v0", means, arms, seed=7, noise_std=0.5)
    for slot in range(2):
        stream = plain_stream(7 + slot)
        expected = [means[slot][arm] + 0.5 * stream.normal() for arm in arms]
        np.testing.assert_allclose(rewards[:, slot], expected, rtol=1e-12)


def test_bernoulli_arms_pay_as_often_as_they_say():
    rewards = pull("metarl/BernoulliBandit-v0", np.tile([0.0, 0.3, 1.0], (500, 1)), [0, 1, 2] * 40, seed=0)
    by_arm = rewards.reshape(40, 3, 500).mean((0, 2))
    assert by_arm[0] == 0
    assert by_arm[1] == pytest.approx(0.3, abs=0.013)  # four standard errors
    assert by_arm[2] == 1


def test_random_pulls_earn_half_per_pull_on_uniform_arms():
    family = make_family("metarl/BernoulliBandit-v0", num_arms=5, num_pulls=10)
    envs = family.make_vec(4000)
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    total = sum(envs.step(rng.integers(5, size=4000))[1].mean() for _ in range(family.horizon))
    assert total == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize(("split", "mean"), [("train", 1 / 2), ("test", 1 / 2), ("ood", 2 / 7)])
def test_arms_come_from_the_prior_of_their_split(split, mean):
    tasks = make_family("metarl/BernoulliBandit-v0").sample(4000, split, 0)
    assert tasks.params["means"].shape == (4000, 5)
    assert tasks.params["means"].mean() == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize(("split", "std"), [("train", 2.0), ("ood", 4.0)])
def test_gaussian_arms_come_from_the_prior_of_their_split(split, std):
    family = make_family("metarl/GaussianBandit-v0", prior_mean=3.0, prior_std=2.0)
    means = family.sample(4000, split, 0).params["means"]
    assert means.mean() == pytest.approx(3.0, abs=0.1)
    assert means.std() == pytest.approx(std, rel=0.03)


def test_the_ceiling_is_the_best_arm():
    family = make_family("metarl/BernoulliBandit-v0", num_arms=3)
    tasks = family.sample(2)
    tasks.params["means"][:] = [[0.1, 0.8, 0.3], [0.5, 0.4, 0.2]]
    assert family.ceiling(tasks).tolist() == [0.8, 0.5]


@pytest.mark.parametrize("num_arms", [5, 10])
def test_the_best_of_uniform_arms_averages_as_the_order_statistic(num_arms):
    family = make_family("metarl/BernoulliBandit-v0", num_arms=num_arms)
    assert family.ceiling(family.sample(20_000, "test", 0)).mean() == pytest.approx(num_arms / (num_arms + 1), abs=0.004)


@pytest.mark.parametrize("variant", PAIRS)
def test_two_armed_pairs_come_in_either_order(variant):
    family = make_family(f"metarl/TwoArmed{variant}-v0")
    assert family.episodes_per_trial == 100
    for split in ("train", "test"):
        means = family.sample(1000, split, 0).params["means"]
        assert set(map(float, means.round(12).ravel())) == PAIRS[variant]
        np.testing.assert_allclose(means.sum(-1), 1)
        assert (means[:, 0] < 0.5).mean() == pytest.approx(0.5, abs=0.07)
    assert len(np.unique(family.sample(1000, "ood", 0).params["means"])) > 1000


@pytest.mark.parametrize(("variant", "correlation"), [("Uniform", -1.0), ("Independent", 0.0)])
def test_two_armed_uniform_arms_are_dependent_or_not(variant, correlation):
    means = make_family(f"metarl/TwoArmed{variant}-v0").sample(4000, "train", 0).params["means"]
    assert np.corrcoef(means.T)[0, 1] == pytest.approx(correlation, abs=0.06)
    assert means.mean(0) == pytest.approx([0.5, 0.5], abs=0.02)
    assert means.std(0) == pytest.approx([12**-0.5] * 2, abs=0.01)


def test_lists_are_as_good_as_tuples_for_priors():
    family = make_family("metarl/BernoulliBandit-v0", prior=[2, 3])
    assert family == make_family("metarl/BernoulliBandit-v0", prior=(2.0, 3.0))
