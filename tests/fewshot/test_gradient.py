"""Learning by gradient steps: against a loop over tasks with PyTorch's own layers, closed forms and finite differences."""

import pytest
import torch
from gradient_twin import NETWORKS, adapt, double, error, forward, gradients, make, networks, parameters, query_losses
from metric_checks import VECTORS, episodes

from metarl.fewshot.maml import ANIL, FOMAML, MAML, MetaSGD
from metarl.fewshot.reptile import Reptile

both_modes = pytest.mark.parametrize("transductive", [False, True], ids=["inductive", "transductive"])


# -- MAML and its relatives --------------------------------------------------------------------------------------


@double
@both_modes
@networks
@pytest.mark.parametrize("kind", [MAML, ANIL, FOMAML])
def test_losses_and_meta_gradients_are_those_of_a_loop_over_tasks(kind, network, transductive):
    learner, data = make(kind, network), episodes(NETWORKS[network][0])
    params = parameters(learner)
    expected = query_losses(learner, data, transductive, second_order=kind is not FOMAML)
    losses = learner.losses(data, transductive)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradients(losses.mean(), params), gradients(expected.mean(), params))


@double
@both_modes
@networks
def test_meta_gradients_against_finite_differences(network, transductive):
    learner, data = make(MAML, network), episodes(NETWORKS[network][0])
    params = parameters(learner)
    found = gradients(learner.losses(data, transductive).mean(), params)
    for name, value in params.items():
        place = int(found[name].abs().argmax())
        flat, sides = value.data.view(-1), []
        for step in (1e-7, -1e-7):
            flat[place] += step
            sides.append(learner.losses(data, transductive).mean().item())
            flat[place] -= step
        slope = (sides[0] - sides[1]) / 2e-7
        assert slope == pytest.approx(found[name].view(-1)[place].item(), rel=1e-5, abs=1e-8), name


@double
@both_modes
@networks
def test_the_first_order_is_the_gradient_where_adaptation_ends(network, transductive):
    """Of the loss on the queries, at adapted parameters, with respect to these."""
    learner, data = make(FOMAML, network), episodes(NETWORKS[network][0])
    params = parameters(learner)
    expected = {name: torch.zeros_like(value) for name, value in params.items()}
    for support_x, support_y, query_x, query_y, _ in zip(*data, strict=True):
        end = adapt(learner, support_x, support_y, 3, lambda name: 0.2)
        end = {name: value.detach().requires_grad_() for name, value in end.items()}
        stats = None if transductive else forward(learner, end, support_x)[1]
        found = gradients(error(learner, forward(learner, end, query_x, stats)[0], query_y), end)
        expected = {name: value + found[name] / 3 for name, value in expected.items()}
    found = gradients(learner.losses(data, transductive).mean(), params)
    torch.testing.assert_close(found, expected)


@double
@networks
def test_anil_changes_the_head_only(network):
    learner, data = make(ANIL, network), episodes(NETWORKS[network][0])
    kept, last = learner.condition(*data[:2]), len(learner.network.layers) - 1
    assert sorted(kept.params) == [f"layers.{last}.bias", f"layers.{last}.weight"]
    for name, value in kept.params.items():
        assert not torch.equal(value, learner.network.initial_params()[name].expand(3, *value.shape[1:])), name
    grads = gradients(learner.losses(data).mean(), parameters(learner))
    assert all(value.count_nonzero() for value in grads.values())


@double
@networks
def test_meta_sgds_rates(network):
    """After one step, the gradient of a rate is minus the inner gradient times that of the queries' loss where it ends."""
    learner, data = make(MetaSGD, network, steps=1), episodes(NETWORKS[network][0])
    params, rates = parameters(learner), learner.rule.rates
    own = {f"network.{name}": rates[name.replace(".", "/")] for name in learner.adapted}
    assert own.keys() == params.keys()
    losses = learner.losses(data)
    torch.testing.assert_close(losses, query_losses(learner, data, False, rates=own.get))
    found = dict(zip(params, torch.autograd.grad(losses.mean(), own.values()), strict=True))
    expected = {name: torch.zeros_like(value) for name, value in params.items()}
    for support_x, support_y, query_x, query_y, _ in zip(*data, strict=True):
        inner = gradients(error(learner, forward(learner, params, support_x)[0], support_y), params)
        end = {name: (value - own[name] * inner[name]).detach().requires_grad_() for name, value in params.items()}
        stats = forward(learner, end, support_x)[1]
        outer = gradients(error(learner, forward(learner, end, query_x, stats)[0], query_y), end)
        expected = {name: value - inner[name] * outer[name] / 3 for name, value in expected.items()}
    torch.testing.assert_close(found, expected)


# -- Reptile -----------------------------------------------------------------------------------------------------


@double
@pytest.mark.parametrize("options", [{}, dict(update_rule="sgd", rule_kwargs=None, rate=0.05)], ids=["adam", "sgd"])
@networks
def test_reptiles_gradient_is_the_way_from_where_training_ends(network, options):
    learner, data = (
        make(Reptile, network, **{"rate": 0.01, "steps": 4, "batch_size": 5, **options}),
        episodes(NETWORKS[network][0]),
    )
    params = parameters(learner)
    x, y = torch.cat([data.support_x, data.query_x], 1), torch.cat([data.support_y, data.query_y], 1)
    torch.manual_seed(3)
    losses = learner.losses(data)
    torch.manual_seed(3)
    orders = torch.cat([torch.rand(x.shape[:2]).argsort(1) for _ in range(-(-20 // x.shape[1]))], 1)
    expected = {name: torch.zeros_like(value) for name, value in params.items()}
    for n in range(3):
        own = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        make_optimizer = torch.optim.SGD if options else torch.optim.Adam
        kwargs = dict(lr=0.05) if options else dict(lr=0.01, betas=(0.0, 0.999))
        optimizer = make_optimizer(own.values(), **kwargs)
        for step in range(4):
            part = orders[n, 5 * step : 5 * step + 5]
            optimizer.zero_grad()
            error(learner, forward(learner, own, x[n, part])[0], y[n, part]).backward()
            optimizer.step()
        expected = {name: value + (params[name] - own[name]).detach() / 3 for name, value in expected.items()}
        distance = sum((params[name] - own[name]).square().sum() for name in params)
        torch.testing.assert_close(losses[n], distance / 2)
    torch.testing.assert_close(gradients(losses.mean(), params), expected)


def test_reptiles_minibatches_go_through_all_examples():
    learner, data, seen = make(Reptile, "mlp", steps=4, batch_size=3), episodes(VECTORS), []
    plain = learner.network.forward
    learner.network.forward = lambda x, *args: seen.append(x) or plain(x, *args)
    learner.losses(data)
    everything = torch.cat([data.support_x, data.query_x], 1)  # 12 examples: 4 minibatches of 3
    for n in range(3):
        rows = torch.cat([x[n] for x in seen])
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, everything[n].tolist()))
