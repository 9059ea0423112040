import math

import pytest

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


class PlainStream:
    """One slot's random stream in plain Python integers and floats."""

    def __init__(self, seed):
        self.state = _mix((seed + _GOLDEN) & _MASK)

    def uniform(self):
        bits = _mix(self.state)
        self.state = (self.state + _GOLDEN) & _MASK
        return (bits >> 11) / 2**53

    def normal(self):
        first, second = self.uniform(), self.uniform()
        return math.sqrt(-2 * math.log1p(-first)) * math.cos(2 * math.pi * second)

    def categorical(self, probabilities):
        u, total = self.uniform(), 0.0
        for index, probability in enumerate(probabilities):
            total += probability
            if u < total:
                return index
        return len(probabilities) - 1


@pytest.fixture
def plain_stream():
    return PlainStream
