"""Latent embedding optimisation, LEO (Rusu et al. 2019, "Meta-learning with latent embedding optimization").

Gradient steps in a small space of codes, from which the weights of the last layer are decoded. With features `f_i`:

    e_i = E f_i;  mu_n, log s_n = mean over i in class n and all j of R(e_i, e_j);  z_n ~ N(mu_n, s_n^2)
    w_n ~ N(m_n, t_n^2),  m_n, log t_n = D z_n;  logits_n = w_n . f                                  (section 2.3.1)
    z' = z - rate grad_z loss(support), several times;  then  w' = w - rate grad_w loss(support)     (section 2.3.2)
    loss(queries; w') + kl KL(N(mu, s^2) || N(0, 1)) + encoder_penalty |stop(z') - z|^2
                      + orthogonality |C - I|^2, with C the correlations of the rows of D's matrix   (section 2.3.3)

Codes and weights are drawn while meta-training only; afterwards they are the means. The rates are learned, one for every
number of a code and of a class's weights. As in the released code, penalties are means over what they sum.

Departures from the paper: features are learned here, with everything else, where the paper trains them beforehand; so
there is no dropout, and no penalty on the weights' size. `t_n` is further multiplied by `sqrt(2 / (features + classes))`,
where the released code shifts it to start there. Inner losses are means over the support set, not sums. In regression
there is one code for the whole task, read from features beside targets, and it decodes the last layer with its biases; the
paper decodes all layers. Batch normalisation takes each task's own statistics, see `metarl.fewshot.networks`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metarl.fewshot.episodes import Episodes, TaskSpec
from metarl.fewshot.learner import FewShotLearner, check_weight
from metarl.fewshot.networks import Stats, embedding
from metarl.plain import check_count
from metarl.updates import MetaSGD, UpdateRule, check_adapted, inner_step
from metarl.updates.base import check_positive

Draw = Callable[[Tensor, Tensor], Tensor]
"""A normal number for each mean and standard deviation."""


class Codes(NamedTuple):
    """Of `C` classes, or `C = 1` in regression, `H` numbers each: `[N, C, H]`."""

    mean: Tensor
    log_std: Tensor
    start: Tensor  # drawn
    end: Tensor  # after the gradient steps


class LEO(FewShotLearner):
    """Gradient steps on codes of weights, then on the weights.

    Args:
        spec: of the tasks.
        codes: numbers `H` in a code.
        rate: where the step sizes for codes start: by default 1, the released code's, but .01 in regression, where the
            gradients of squared errors have no bound.
        steps: gradient steps on codes.
        tune_rate: where the step sizes for weights start.
        tune_steps: gradient steps on weights.
        kl: weight of the divergence from the prior.
        encoder_penalty: weight of the distance that codes go.
        orthogonality: weight of the decoder's correlations.
        network: arguments of `metarl.fewshot.networks.embedding`.

    Raises:
        ValueError: in one line, at values out of range; while adapting, `Diverged`.
    """

    draws = True
    any_ways = True

    def __init__(
        self,
        spec: TaskSpec,
        codes: int = 64,
        rate: float | None = None,
        steps: int = 5,
        tune_rate: float = 1e-3,
        tune_steps: int = 5,
        kl: float = 1e-3,
        encoder_penalty: float = 1e-9,
        orthogonality: float = 1e-3,
        **network: Any,
    ):
        super().__init__(spec)
        check_count("codes", codes)
        self.steps, self.tune_steps = check_count("steps", steps), check_count("tune_steps", tune_steps)
        self.kl, self.encoder_penalty, self.orthogonality = kl, encoder_penalty, orthogonality
        for name in ("kl", "encoder_penalty", "orthogonality"):
            check_weight(name, getattr(self, name))
        self.network, features = embedding(spec, **network)
        read, self.inputs = features, features  # of the encoder; of the last layer
        if not spec.classification:
            read, self.inputs = features + spec.outputs, features + 1
        rate = (1.0 if spec.classification else 0.01) if rate is None else check_positive("rate", rate)
        decoded = self.inputs * (1 if spec.classification else spec.outputs)
        self.scale = math.sqrt(2.0 / (self.inputs + spec.outputs))
        self.encoder = nn.Linear(read, codes, bias=False)
        layers = [nn.Linear(2 * codes, 2 * codes, bias=False) for _ in range(3)]
        self.relations = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        self.decoder = nn.Linear(codes, 2 * decoded, bias=False)
        self.code_rule = MetaSGD({"value": torch.zeros(1, codes)}, rate)
        self.weight_rule = MetaSGD({"value": torch.zeros(1, self.inputs)}, check_positive("tune_rate", tune_rate))

    def condition(self, support_x: Tensor, support_y: Tensor) -> tuple[Tensor, Stats]:
        """The last layers' weights `[N, C, F]`, and what the support set was normalised by. Nothing is drawn.

        Raises:
            Diverged: outside meta-training, naming the first task and step that are not finite.
        """
        return self._learn(support_x, support_y, lambda mean, std: mean)[0]

    def answer(self, kept: tuple[Tensor, Stats], query_x: Tensor, transductive: bool = False) -> Tensor:
        """As in the base class."""
        weights, stats = kept
        return self._features(query_x, None if transductive else stats)[0] @ weights.mT

    def losses(self, episodes: Episodes, transductive: bool = False) -> Tensor:
        """Error on the queries and penalties, `[N]`, with codes and weights drawn (section 2.3.3)."""
        kept, codes = self._learn(
            episodes.support_x, episodes.support_y, lambda mean, std: mean + std * torch.randn_like(mean)
        )
        errors = self.task_losses(self.answer(kept, episodes.query_x, transductive), episodes.query_y)
        divergence = 0.5 * (codes.mean.square() + (2.0 * codes.log_std).exp() - 1.0) - codes.log_std
        moved = (codes.end.detach() - codes.start).square()
        rows = nn.functional.normalize(self.decoder.weight, dim=0).mT  # one for each number of a code
        correlation = rows @ rows.mT - torch.eye(len(rows)).to(rows)
        return (
            errors
            + self.kl * divergence.mean((1, 2))
            + self.encoder_penalty * moved.mean((1, 2))
            + self.orthogonality * correlation.square().mean()
        )

    def encode(self, features: Tensor, support_y: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of standard deviations `[N, C, H]` of codes, from features `[N, S, F]` and labels."""
        if not self.spec.classification:
            features = torch.cat([features[..., :-1], support_y], -1)  # without the constant
        e = self.encoder(features)
        left, right = torch.broadcast_tensors(e[:, :, None], e[:, None])
        codes = self.relations(torch.cat([left, right], -1)).mean(2)
        if self.spec.classification:
            codes = self.class_means(codes, support_y)
        else:
            codes = codes.mean(1, keepdim=True)
        return codes.chunk(2, -1)

    def decode(self, code: Tensor, draw: Draw) -> Tensor:
        """Weights of the last layer `[N, C, F]`, or `[N, D, F + 1]`, of codes `[N, C, H]`."""
        mean, log_std = self.decoder(code).chunk(2, -1)
        return draw(mean, self.scale * log_std.exp()).view(len(code), -1, self.inputs)

    def _features(self, x: Tensor, stats: Stats | None = None) -> tuple[Tensor, Stats]:
        features, stats = self.network(x, stats=stats)
        return (features if self.spec.classification else nn.functional.pad(features, (0, 1), value=1.0)), stats

    def _learn(self, support_x: Tensor, support_y: Tensor, draw: Draw) -> tuple[tuple[Tensor, Stats], Codes]:
        features, stats = self._features(support_x)
        mean, log_std = self.encode(features, support_y)
        start = draw(mean, log_std.exp())

        def loss(weights: Tensor) -> Tensor:
            return self.task_losses(features @ weights.mT, support_y)

        end = self._descend(self.code_rule, start, lambda code: loss(self.decode(code, draw)), self.steps)
        weights = self._descend(self.weight_rule, self.decode(end, draw), loss, self.tune_steps)
        return (weights, stats), Codes(mean, log_std, start, end)

    def _descend(self, rule: UpdateRule, start: Tensor, loss: Callable[[Tensor], Tensor], steps: int) -> Tensor:
        learning, params = torch.is_grad_enabled(), {"value": start}
        for step in range(steps):
            params, _, losses = inner_step(
                rule,
                params,
                (),
                lambda p: loss(p["value"]),
                adapted=["value"],
                second_order=learning,
                functional=self.functional,
            )
            if not learning:
                check_adapted(params, losses.detach(), step + 1)
        return params["value"]
