"""The compiled loss after adaptation, on batches long enough for oneDNN's products."""

import dataclasses
import shutil

import pytest
import torch
from torch import nn

from metarl import MAMLPPO
from metarl.algorithms import maml

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # PyTorch's own, while it loads its compiler
]


def make(**changes):
    settings = {
        "env_kwargs": {"num_steps": 130, "done_within": None},
        "num_tasks": 3,
        "episodes_per_update": 4,
        "epochs": 1,
        "compile": True,
        "seed": 0,
    }
    return MAMLPPO("MlpPolicy", "metarl/Navigation2D-v0", **{**settings, **changes})


def gradients(model, batches):
    """Of the loss after adaptation, compiled and not."""
    settings, parameters = model.config.settings, list(model.policy.parameters())
    for loss, functional in ((model._meta_loss, True), (maml.meta_loss, False)):
        total = loss(model.policy, batches, None, settings, functional=functional)[0].sum()
        yield torch.autograd.grad(total, parameters)


def test_gradients_with_products_by_onednn(monkeypatch):
    import torch._functorch.config
    import torch._inductor.config

    from metarl import compilation

    if not compilation.ONEDNN:
        pytest.skip("PyTorch has no oneDNN here")
    monkeypatch.setattr(compilation, "MKL_IS_SLOW", True)
    given, gains = [], compilation.gains
    monkeypatch.setattr(compilation, "gains", lambda a, b: given.append(gains(a, b)) or given[-1])
    seen = []
    update = maml.update
    monkeypatch.setattr(maml, "update", lambda *args: seen.append(args[1]) or update(*args[:3]))
    model = make(compile=False).learn(2 * 3 * 4 * 130)  # a step from where all actions are alike
    model.config = dataclasses.replace(model.config, compile=True)
    anew = torch._inductor.config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False)
    for change in ({}, {"second_order": False, "entropy_coef": 0.1}):  # in the same model: it is compiled once more
        model.config = dataclasses.replace(model.config, **change)
        given.clear()
        with anew[0], anew[1]:  # what is kept from the last time would not be looked through
            found, expected = gradients(model, seen[0])
        assert any(given)  # by oneDNN
        assert not all(given)  # and not
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())
    assert len(model._compiled) == 2


class Looking(nn.Module):
    """Features that depend on what they are."""

    def __init__(self, observation_space):
        super().__init__()
        self.features_dim = 2
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x * self.scale if float(x.detach().abs().max()) < 1e9 else x


def test_what_cannot_be_compiled_is_named():
    model = make(
        env_kwargs={"num_steps": 3, "done_within": None},
        task_batching="loop",
        policy_kwargs={"features_extractor_class": Looking},
    )
    with pytest.raises(ValueError, match="compile must be false: PyTorch cannot compile this policy's loss"):
        model.learn(1)
