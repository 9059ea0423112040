"""NTM and DNC learn to repeat what they were shown, out of their memory (Graves et al. 2014, section 4.1), in small."""

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from metarl.memory import DNCCore, NTMCore


def copy_loss(core, bits, sequence, forget=False):
    """Loss of a copy of `sequence [L, B, W]`; with `forget`, only the controller keeps its state from before the copy."""
    length, batch, width = sequence.shape
    x = torch.zeros(2 * length + 1, batch, width + 1)
    x[:length, :, :width], x[length, :, width] = sequence, 1.0
    fresh = core.initial_state(batch)
    _, state = core.scan(x[: length + 1], fresh)
    y, _ = core.scan(x[length + 1 :], (*state[:2], *fresh[2:]) if forget else state)
    return binary_cross_entropy_with_logits(bits(y), sequence)


def learn_to_copy(kind, size, width, longest, batches, batch):
    """A core and the layer behind it, and the loss of every batch."""
    torch.manual_seed(0)
    core, bits = kind(width + 1, size, num_slots=8, slot_size=8), torch.nn.Linear(size, width)
    parameters = [*core.parameters(), *bits.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    losses = []
    for _ in range(batches):
        length = int(torch.randint(1, longest + 1, ()))
        loss = copy_loss(core, bits, torch.randint(2, (length, batch, width)).float())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        losses.append(loss.item())
    return core, bits, losses


@pytest.mark.parametrize("kind", [NTMCore, DNCCore])
def test_begins_to_copy_by_its_memory(kind):
    # with seeds 0 to 2 the loss ends at .11 to .25, guessing has .69; without memory it is .25 to 1.75 above that with it
    core, bits, losses = learn_to_copy(kind, size=8, width=3, longest=3, batches=500, batch=32)
    assert np.mean(losses[:20]) > 0.6
    assert np.mean(losses[-100:]) < 0.35
    with torch.no_grad():
        sequence = torch.randint(2, (3, 500, 3)).float()
        assert copy_loss(core, bits, sequence, forget=True) > copy_loss(core, bits, sequence) + 0.2


@pytest.mark.slow
def test_ntm_learns_to_copy():
    # A controller of 12 units is too small to learn the 16 bits by itself in this time: with a memory that is always zero
    # the loss stays above 0.12 (5 seeds). Most seeds, not all, find the memory in 1200 steps (6 of 8 within 1300).
    core, bits, losses = learn_to_copy(NTMCore, size=12, width=4, longest=4, batches=1200, batch=16)
    assert np.mean(losses[:20]) > 0.6
    assert np.mean(losses[-100:]) < 0.05
    with torch.no_grad():
        sequence = torch.randint(2, (4, 500, 4)).float()
        assert copy_loss(core, bits, sequence) < 0.05
        assert copy_loss(core, bits, sequence, forget=True) > 0.5
