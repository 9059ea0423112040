"""The protocol of update rules: how gradients become parameter changes."""

from typing import Any, ClassVar

from torch import Tensor, nn

from metarl.batched import Params


class UpdateRule(nn.Module):
    """How gradients become parameter changes, for `N` tasks at once; what of it is learned are its own parameters.

    As optax's `GradientTransformation`, but it gives parameters in place of differences and may read them and the loss.
    All of it can be differentiated, so that the outer loop trains what is learned.

    Attributes:
        method: what the field calls MAML with this rule.
    """

    method: ClassVar[str] = "MAML, own rule"

    def init(self, params: Params) -> Any:
        """The state at the start of a trial, for `params [N, ...]`; most rules have none."""
        return ()

    def update(self, grads: Params, state: Any, params: Params, losses: Tensor) -> tuple[Params, Any]:
        """One step.

        Args:
            grads: gradients `[N, ...]` of the parameters to change; those that are left out stay as they are.
            state: from `init` or the last `update`.
            params: all parameters `[N, ...]`.
            losses: what the gradients are of, `[N]`.

        Returns:
            all parameters after the step, and the state.
        """
        raise NotImplementedError
