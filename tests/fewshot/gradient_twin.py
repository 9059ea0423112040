"""Gradient learners, and the same one task after another, with PyTorch's own layers."""

import pytest
import torch
from metric_checks import NUMBERS, PICTURES, VECTORS, moved
from torch.func import functional_call
from torch.nn.functional import batch_norm, cross_entropy, mse_loss

from metarl.fewshot.networks import BatchNorm

NETWORKS = {
    "mlp": (VECTORS, dict(hidden=(6, 5))),
    "regression": (NUMBERS, dict(hidden=(6,))),
    "convolutions": (PICTURES, dict(kind="conv", width=3, normalise="none")),
    "normalised": (PICTURES, dict(kind="conv", width=3)),
    "strided": (PICTURES, dict(kind="strided", width=3)),
}
double = pytest.mark.usefixtures("double")
networks = pytest.mark.parametrize("network", NETWORKS)


def make(kind, network, **options):
    spec, sizes = NETWORKS[network]
    torch.manual_seed(0)
    return moved(kind(spec, **{"steps": 3, "rate": 0.2, **sizes, **options}))


def parameters(learner):
    return {name: value for name, value in learner.named_parameters() if name.startswith("network.")}


def forward(learner, params, x, stats=None):
    """Outputs of one task, and what each normalisation layer used."""
    used = []
    for number, layer in enumerate(learner.network.layers):
        own = {name: params[f"network.layers.{number}.{name}"] for name, _ in layer.named_parameters()}
        if isinstance(layer, BatchNorm):
            axes = [0, *range(2, x.ndim)]
            used.append((x.mean(axes), x.var(axes, correction=0)) if stats is None else stats[len(used)])
            if stats is None:
                x = batch_norm(x, None, None, own["weight"], own["bias"], training=True)
            else:  # PyTorch's own has no derivatives with respect to these
                mean, variance, weight, bias = (
                    value.view(1, -1, *[1] * (x.ndim - 2)) for value in (*used[-1], own["weight"], own["bias"])
                )
                x = (x - mean) / (variance + 1e-5).sqrt() * weight + bias
        else:
            x = functional_call(layer, own, (x,))
    return x, used


def error(learner, outputs, y):
    return (cross_entropy if learner.spec.classification else mse_loss)(outputs, y)


def adapt(learner, x, y, steps, rates, second_order=True):
    params = parameters(learner)
    for _ in range(steps):
        loss = error(learner, forward(learner, params, x)[0], y)
        names = [f"network.{name}" for name in learner.adapted]
        grads = torch.autograd.grad(loss, [params[name] for name in names], create_graph=second_order)
        params = {**params, **{name: params[name] - rates(name) * g for name, g in zip(names, grads, strict=True)}}
    return params


def query_losses(learner, data, transductive, rates=lambda name: 0.2, second_order=True):
    losses = []
    for support_x, support_y, query_x, query_y, _ in zip(*data, strict=True):
        params = adapt(learner, support_x, support_y, learner.steps, rates, second_order)
        stats = None if transductive else forward(learner, params, support_x)[1]
        losses.append(error(learner, forward(learner, params, query_x, stats)[0], query_y))
    return torch.stack(losses)


def gradients(loss, params):
    return dict(zip(params, torch.autograd.grad(loss, params.values()), strict=True))
