"""Random quadratics (Andrychowicz, Denil, Gomez, Hoffman, Pfau, Schaul, Shillingford & de Freitas 2016, "Learning to learn
by gradient descent by gradient descent", section 3.1).

`f(x) = |W x - y|^2`, summed over the rows of `W`. Two versions: the paper's, with all numbers of `W`, `y` from N(0, 1), and
that of its released code, with all from U[0, 1] and `x` starting near zero, from N(0, .01^2). The paper does not say where
`x` starts; in the first version it is drawn from N(0, 1) here.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metarl.batched import Params
from metarl.problems.base import Instances, Problem, split_stream


@dataclass(frozen=True)
class Quadratics(Problem):
    """`|W x - y|^2` with a matrix `W [D, D]` and a vector `y [D]` per instance.

    Args:
        kind: "gaussian" or "uniform", see above.
        dimensions: `D`.
        horizon: steps of an inner training, as it is evaluated.

    Raises:
        ValueError: at an unknown kind, or numbers below 1.
    """

    kind: Literal["gaussian", "uniform"] = "gaussian"
    dimensions: int = 10
    horizon: int = 100

    def __post_init__(self):
        if self.kind not in ("gaussian", "uniform"):
            raise ValueError(f"kind must be one of gaussian, uniform, got {self.kind!r}")
        for name in ("dimensions", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def name(self) -> str:
        """Such as "quadratics-gaussian"."""
        return f"quadratics-{self.kind}"

    def sample(self, num: int, split: str, rng: np.random.Generator) -> Instances:
        """Matrices `W [N, D, D]` and vectors `y [N, D]`."""
        rng = split_stream(self, num, split, rng)
        draw = rng.standard_normal if self.kind == "gaussian" else rng.random
        shapes = {"W": (num, self.dimensions, self.dimensions), "y": (num, self.dimensions)}
        return {name: torch.from_numpy(draw(shape, np.float32)) for name, shape in shapes.items()}

    def start(self, instances: Instances, rng: np.random.Generator) -> Params:
        """Points `x [N, D]`."""
        x = rng.standard_normal(instances["y"].shape, np.float32)
        return {"x": torch.from_numpy(x).to(instances["y"]) * (1.0 if self.kind == "gaussian" else 0.01)}

    def template(self) -> dict[str, Tensor]:
        """As in the base class."""
        return {"x": torch.zeros(self.dimensions)}

    def losses(self, params: Params, instances: Instances, batch: Any = ()) -> Tensor:
        """`|W x - y|^2`."""
        return _residuals(params, instances).square().sum(1)

    def gradients(
        self, params: Params, instances: Instances, batch: Any = (), first_order: bool = True
    ) -> tuple[Params, Tensor]:
        """By hand, `2 W^T (W x - y)`: several times faster than by automatic differentiation."""
        residuals = _residuals({"x": params["x"].detach() if first_order else params["x"]}, instances)
        gradient = 2.0 * torch.bmm(residuals[:, None], instances["W"])[:, 0]
        return {"x": gradient}, residuals.square().sum(1)

    def minima(self, instances: Instances) -> Tensor:
        """The smallest value of each, `[N]`: that of the least-squares solution, in double precision.

        Zero but for rounding, as nearly all square matrices can be inverted; but far away where one nearly cannot.
        """
        W, y = instances["W"].double(), instances["y"].double()
        return (
            _residuals({"x": torch.linalg.lstsq(W, y[..., None], driver="gelsd").solution[..., 0]}, {"W": W, "y": y})
            .square()
            .sum(1)
        )


def _residuals(params: Params, instances: Instances) -> Tensor:
    return torch.baddbmm(instances["y"][..., None], instances["W"], params["x"][..., None], beta=-1)[..., 0]
