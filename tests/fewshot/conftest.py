"""Fixtures of the tests of few-shot learning."""

import pytest
import torch


@pytest.fixture
def double():
    """Everything in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
