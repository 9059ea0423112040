"""Small networks that learn to tell handwritten digits apart (Andrychowicz et al. 2016, section 3.2; scikit-learn's digits).

An inner training is a network with initial parameters of its own, on minibatches of its own; in the paper nothing else
differs between runs, all are on the training images of MNIST. As in its released code, other images are kept for
measuring: `train` draws minibatches from one half of the images, `test` from the other. So a rule is measured by how fast
it fits images that it was never trained on.

Departures: scikit-learn's 1,797 pictures of 8 x 8 in place of MNIST, parameters start as those of `nn.Linear`. Minibatches
are drawn with replacement, as in the released code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metarl.batched import Params, call_batched
from metarl.problems.base import Instances, Problem, split_stream

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh}

_PIXELS, _CLASSES = 64, 10


@dataclass(frozen=True)
class DigitClassifiers(Problem):
    """The cross-entropy of fully connected networks on minibatches of digits.

    An instance is the number of the half that its images come from. All networks run at once.

    Args:
        hidden_sizes: units of the hidden layers.
        activation: "sigmoid", "relu" or "tanh".
        batch_size: images in a minibatch.
        horizon: steps of an inner training, as it is evaluated.

    Raises:
        ValueError: at an unknown activation, or numbers below 1.
        ModuleNotFoundError: when images are drawn without scikit-learn.
    """

    tuning: ClassVar[Mapping[str, Any]] = {"num": 32}  # 629 settings take a second per instance, and few tell them apart

    hidden_sizes: tuple[int, ...] = (20,)
    activation: Literal["sigmoid", "relu", "tanh"] = "sigmoid"
    batch_size: int = 128
    horizon: int = 100

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        for name, number in {"batch_size": self.batch_size, "horizon": self.horizon}.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if any(size < 1 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes must be at least 1, got {self.hidden_sizes}")

    @property
    def name(self) -> str:
        """Such as "digits-sigmoid-20"."""
        return "-".join(["digits", self.activation, *map(str, self.hidden_sizes)])

    @cached_property
    def network(self) -> nn.Sequential:
        """The architecture; its own parameters are not used."""
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([_PIXELS, *self.hidden_sizes, _CLASSES]):
            layers += [nn.utils.skip_init(nn.Linear, inputs, outputs), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[:-1])

    def sample(self, num: int, split: str, rng: np.random.Generator) -> Instances:
        """The half of the images to learn, `half [N]`: 0 in `train`, 1 in `test`."""
        split_stream(self, num, split, rng)  # they have nothing random about them; but the arguments are checked
        return {"half": torch.full((num,), self.splits.index(split))}

    def start(self, instances: Instances, rng: np.random.Generator) -> Params:
        """As those of `nn.Linear`: weights and biases from U[-1 / sqrt(inputs), 1 / sqrt(inputs)]."""
        params, num = {}, len(instances["half"])
        for name, value in self.template().items():
            inputs = self.network.get_parameter(name.replace("bias", "weight")).shape[1]
            drawn = torch.from_numpy(rng.random((num, *value.shape), np.float32))
            params[name] = (2.0 * drawn - 1.0) / inputs**0.5
        return params

    def template(self) -> dict[str, Tensor]:
        """As in the base class."""
        return {name: torch.zeros_like(value) for name, value in self.network.named_parameters()}

    def draw(self, instances: Instances, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images `[N, batch_size, 64]` and their digits `[N, batch_size]`."""
        images, digits = load_halves()
        half = instances["half"][:, None]
        chosen = torch.from_numpy(rng.integers(digits.shape[1], size=(len(half), self.batch_size)))
        return images[half, chosen], digits[half, chosen]

    def losses(self, params: Params, instances: Instances, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy, averaged over the minibatch."""
        images, digits = batch
        logits = call_batched(self.network, params, images)
        return cross_entropy(logits.flatten(0, 1), digits.flatten(), reduction="none").view(digits.shape).mean(1)

    def accuracy(self, params: Params, instances: Instances) -> Tensor:
        """The share `[N]` of the images of the OTHER half that the networks tell right."""
        images, digits = load_halves()
        with torch.no_grad():
            logits = call_batched(self.network, params, images[1 - instances["half"]])
        return (logits.argmax(-1) == digits[1 - instances["half"]]).float().mean(1)


@cache
def load_halves() -> tuple[Tensor, Tensor]:
    """Both halves of the images, grey values from 0 to 1, `[2, 898, 64]`, and their digits `[2, 898]`, always the same.

    Raises:
        ModuleNotFoundError: in one line, without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        message = "the digits need scikit-learn: pip install 'metarl-toolkit[fewshot]'"
        raise ModuleNotFoundError(message, name=error.name) from None
    images, digits = load_digits(return_X_y=True)
    # Shuffled, as neighbours were written by one hand; one image is left over.
    order = np.random.default_rng(0).permutation(len(digits))[: len(digits) // 2 * 2].reshape(2, -1)
    return torch.from_numpy(images[order].astype(np.float32) / 16.0), torch.from_numpy(digits[order])
