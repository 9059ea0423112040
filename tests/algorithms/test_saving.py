"""Saved models: complete, portable, and read without running code."""

import io
import pickle
import zipfile

import gymnasium as gym
import pytest
import torch
from small_models import (
    assert_same_model,
    make,
    weights,
)
from stable_baselines3 import PPO

from metarl.algorithms.rl2 import RL2PPO
from metarl.checkpoint import CheckpointError
from metarl.policies import TrialPolicy
from metarl_envs import ContextFamily, make_family


def test_save_and_load(tmp_path):
    model = make("GruPolicy", "drift", policy_kwargs=dict(core_size=5, heads=[4]), gamma=0.9).learn(1)
    model.save(tmp_path / "deep" / "model")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.zip"]
    for path in (tmp_path / "deep" / "model", str(tmp_path / "deep" / "model.zip")):
        loaded = RL2PPO.load(path)
        assert_same_model(loaded, model)
        assert loaded.config == model.config
        assert loaded.family == model.family
        assert (loaded.policy_name, loaded.policy_kwargs) == ("GruPolicy", dict(core_size=5, heads=[4]))
    (tmp_path / "deep" / "model").mkdir()  # a folder of that name is not the file
    loaded = RL2PPO.load(tmp_path / "deep" / "model", learning_rate=0.5, num_envs=16, verbose=0)
    assert (loaded.config.learning_rate, loaded.config.num_envs, loaded.config.gamma) == (0.5, 16, 0.9)
    reseeded = [RL2PPO.load(path, seed=seed) for seed in (7, 7, 8)]
    drawn = [(tuple(m.rngs["tasks"].random(3)), tuple(torch.rand(3, generator=m.generator).tolist())) for m in reseeded]
    assert drawn[0] == drawn[1]
    assert not {*drawn[0]} & {*drawn[2]}
    assert all(torch.equal(a, b) for a, b in zip(reseeded[2].policy.parameters(), model.policy.parameters(), strict=True))
    with pytest.raises(ValueError, match="exclude and include must be None: a saved model is always complete"):
        model.save(tmp_path / "model", exclude=["policy"])


def test_loading_with_another_environment(tmp_path):
    make().save(tmp_path / "model")
    harder = make_family("metarl/BernoulliBandit-v0", num_arms=3, num_pulls=6, prior=(1, 3))
    assert RL2PPO.load(tmp_path / "model", harder).family is harder
    with pytest.raises(ValueError, match=r"env must have the checkpoint's action_space Discrete\(3\), got Discrete\(2\)"):
        RL2PPO.load(tmp_path / "model", "metarl/BernoulliBandit-v0", env_kwargs=dict(num_arms=2))
    with pytest.raises(ValueError, match="env must have the checkpoint's observation_space Discrete"):
        RL2PPO.load(tmp_path / "model", "CartPole-v1")


def test_a_family_that_was_never_registered(tmp_path):
    family = ContextFamily("test/Drift-v0")
    RL2PPO("LstmPolicy", family, num_envs=4).save(tmp_path / "model")
    assert RL2PPO.load(tmp_path / "model").family == family
    assert RL2PPO.load(tmp_path / "model", gym.make("metarl/Context-v0", env="test/Drift-v0")).family == family


class OwnPolicy(TrialPolicy):
    pass


def test_policies_of_ones_own(tmp_path):
    model = make(OwnPolicy, policy_kwargs=dict(core="gru", core_size=5)).learn(1)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="policy must be given: the saved one is the class OwnPolicy, which is not stored"):
        RL2PPO.load(tmp_path / "model")
    loaded = RL2PPO.load(tmp_path / "model", policy=OwnPolicy)
    assert type(loaded.policy) is OwnPolicy
    assert_same_model(loaded, model)


def test_classes_among_the_policys_arguments(tmp_path):
    from stable_baselines3.common.torch_layers import FlattenExtractor

    model = make(policy_kwargs=dict(core_size=5, features_extractor_class=FlattenExtractor))
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="policy_kwargs must be given: the saved ones held classes or functions"):
        RL2PPO.load(tmp_path / "model")
    loaded = RL2PPO.load(tmp_path / "model", policy_kwargs=model.policy_kwargs)
    assert torch.equal(weights(loaded), weights(model))


def test_a_model_of_another_device_goes_on_with_fresh_actions():
    model = make().learn(48)
    state = model.state()
    state["generators"]["actions"] = state["generators"]["actions"][:16]  # as large as that of a GPU
    first, second = (RL2PPO.from_state(state) for _ in range(2))
    assert torch.equal(weights(first), weights(model))
    assert_same_model(first.learn(48, reset_num_timesteps=False), second.learn(48, reset_num_timesteps=False))


def test_a_family_without_an_id_must_be_given():
    state = make().state() | {"env_id": ""}
    with pytest.raises(ValueError, match="env must be given: the saved family has no env_id"):
        RL2PPO.from_state(state)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    make().save(tmp_path / "model")
    data = (tmp_path / "model.zip").read_bytes()
    (tmp_path / "short.zip").write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match=r"short\.zip is truncated, altered or not a checkpoint"):
        RL2PPO.load(tmp_path / "short")
    (tmp_path / "altered.zip").write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    with pytest.raises(CheckpointError, match=r"altered\.zip is truncated or altered"):
        RL2PPO.load(tmp_path / "altered")
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "ppo")
    with pytest.raises(CheckpointError, match=r"ppo\.zip is truncated, altered or not a checkpoint"):
        RL2PPO.load(tmp_path / "ppo")
    with pytest.raises(FileNotFoundError, match="nothing"):
        RL2PPO.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="checkpoint must be of RL2PPO, got 'Other'"):
        RL2PPO.from_state(make().state() | {"algorithm": "Other"})
    with pytest.raises(CheckpointError, match="checkpoint must be of this policy and version of metarl"):
        RL2PPO.from_state(make().state() | {"weights": {}})


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_code_is_not_run(tmp_path):
    mark = tmp_path / "exploded"
    raw = pickle.dumps(Bomb(mark))
    saved = io.BytesIO()
    torch.save({"policy": Bomb(mark)}, saved)
    files = {"raw": raw, "torch": saved.getvalue()}
    for kind, member in (("data", raw), ("policy.pth", saved.getvalue())):  # as Stable-Baselines3 keeps them
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(kind, member)
        files[kind] = archive.getvalue()
    for name, data in files.items():
        (tmp_path / f"{name}.zip").write_bytes(data)
        with pytest.raises(CheckpointError):
            RL2PPO.load(tmp_path / f"{name}.zip")
    assert not mark.exists()
    pickle.loads(raw).close()
    assert mark.exists()  # the bomb is a real one
