import numpy as np
import pytest
import torch

from metarl.checkpoint import load_checkpoint, save_checkpoint
from metarl.seeding import generator_state, restore_generator, spawn


def test_a_stream_depends_on_the_seed_and_its_name_only():
    few = spawn(3, ["tasks", "policy"])
    more = spawn(3, ["new", "policy", "tasks"])
    assert [*few] == ["tasks", "policy"]
    for name, generator in few.items():
        assert generator.random() == more[name].random()
    assert spawn(3, ["tasks"])["tasks"].random() != spawn(4, ["tasks"])["tasks"].random()


def test_streams_differ():
    names = [f"stream{i}" for i in range(200)]
    draws = [generator.integers(2**63) for generator in (*spawn(0, names).values(), *spawn(1, names).values())]
    draws += [np.random.default_rng(seed).integers(2**63) for seed in (0, 1)]
    draws += [np.random.default_rng(child).integers(2**63) for child in np.random.SeedSequence(0).spawn(20)]
    assert len(set(draws)) == len(draws)


def test_streams_stay_what_they_are():
    assert spawn(0, ["tasks"])["tasks"].integers(2**63) == 429996287391983861


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        spawn(-1, ["tasks"])


def draw(generator):
    if isinstance(generator, torch.Generator):
        return torch.randn(5, generator=generator).tolist()
    return [*generator.standard_normal(3), *generator.integers(7, size=3, dtype=np.int32), generator.random()]


@pytest.mark.parametrize(
    "make",
    [
        lambda: spawn(1, ["a"])["a"],
        lambda: np.random.Generator(np.random.MT19937(1)),
        lambda: np.random.Generator(np.random.Philox(1)),
        lambda: np.random.Generator(np.random.SFC64(1)),
        lambda: torch.Generator().manual_seed(1),
    ],
)
def test_a_generator_goes_on_where_its_state_was_taken(tmp_path, make):
    generator, other = make(), make()
    draw(generator)
    path = save_checkpoint(tmp_path / "a.ckpt", {"rng": generator_state(generator)})
    expected = [draw(generator), draw(generator)]
    restore_generator(other, load_checkpoint(path)["rng"])
    assert [draw(other), draw(other)] == expected


@pytest.mark.parametrize("generator", [np.random.default_rng(0), torch.Generator()])
@pytest.mark.parametrize("state", [np.random.MT19937(0).state, None, torch.zeros(3, dtype=torch.uint8)])
def test_a_state_of_another_kind_is_refused(generator, state):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        restore_generator(generator, state)
