"""What few-shot learners must beat: fine-tuning, nearest neighbour, one network for all tasks, training from scratch.

- `FineTuning`: train one network on all training tasks at once, then take gradient steps on the support set. In
  classification it tells all training classes apart, and a task gets a new last layer (Chen et al. 2019, "A closer look at
  few-shot classification", section 3.2: there, only that layer is trained, `head_only`). In regression it is trained on
  the pooled points of all curves (Finn, Abbeel & Levine 2017, section 5.1).
- `NearestNeighbour`: the label, or the value, of the nearest support example, on raw examples.
- `MultiTaskAveraging`: one network for all tasks, which does not adapt.
- `FromScratch`: a random network, trained on the support set only.

Batch normalisation takes each task's own statistics here too, see `metarl.fewshot.networks`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from metarl.fewshot.episodes import Episodes, TaskSpec
from metarl.fewshot.gradient import GradientLearner
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.networks import Stats, network_for


class FineTuning(GradientLearner):
    """Pre-train on everything, then take gradient steps on the support set.

    In classification, a task's new last layer starts at zero.

    Args:
        spec: of the tasks.
        options: see `GradientLearner`; by default 50 steps of gradient descent.

    Raises:
        ValueError: in one line, also where `spec` knows of no training classes.
    """

    default_rate = 0.01

    def __init__(self, spec: TaskSpec, **options: Any):
        super().__init__(spec, **{"steps": 50, "second_order": False, **options})
        if spec.classification:
            if spec.train_classes < 2:
                raise ValueError(f"train_classes must be at least 2 to pre-train on them, got {spec.train_classes}")
            last = self.network.layers[-1]
            self.classifier = nn.Linear(last.in_features, spec.train_classes)
            for value in last.parameters():
                nn.init.zeros_(value)  # a random one would spoil the features in the first steps

    def check_fits(self, spec: TaskSpec, training: bool = False) -> None:
        """As in the base class; training classes are as many, too."""
        super().check_fits(spec, training)
        if training and spec.train_classes != self.spec.train_classes:
            made, given = self.spec.train_classes, spec.train_classes
            raise ValueError(f"train_classes of the episodes must be that of FineTuning's tasks, {made}, got {given}")

    def losses(self, episodes: Episodes, transductive: bool = False) -> Tensor:
        """The error on support set and queries, as one task among all training classes, or one function, `[N]`."""
        x = torch.cat([episodes.support_x, episodes.query_x], 1)
        y = torch.cat([episodes.support_y, episodes.query_y], 1)
        if not self.spec.classification:
            return self.task_losses(self.network(x)[0], y)
        features, _ = self.network(x, layers=slice(-1))
        return self.task_losses(self.classifier(features), episodes.classes.gather(1, y))


class FromScratch(GradientLearner):
    """A random network, the same for every task, trained on the support set only.

    Args:
        spec: of the tasks.
        options: see `GradientLearner`; by default 100 steps of Adam.
    """

    trained = False
    default_rate = 1e-2

    def __init__(self, spec: TaskSpec, **options: Any):
        super().__init__(spec, **{"update_rule": "adam", "steps": 100, "second_order": False, **options})


class MultiTaskAveraging(FewShotLearner):
    """One network, trained on the queries of all tasks, which reads nothing of a support set but its statistics.

    In regression it comes to the mean function. In classification a label is a class's place in the episode, about which a
    query alone says nothing: it stays at chance, as it should.

    Args:
        spec: of the tasks.
        network: arguments of `metarl.fewshot.networks.embedding`.
    """

    def __init__(self, spec: TaskSpec, **network: Any):
        super().__init__(spec)
        self.network = network_for(spec, **network)

    def condition(self, support_x: Tensor, support_y: Tensor) -> Stats:
        """What the support set is normalised by."""
        return self.network(support_x)[1]

    def answer(self, kept: Stats, query_x: Tensor, transductive: bool = False) -> Tensor:
        """As in the base class."""
        return self.network(query_x, stats=None if transductive else kept)[0]


class NearestNeighbour(FewShotLearner):
    """The nearest support example decides, by the Euclidean distance of raw examples; there is nothing to train.

    Logits are minus the distance to the nearest example of each class. A text is the counts of its tokens, as a vector of
    length 1, so that the nearest has the largest cosine.

    Args:
        spec: of the tasks.
    """

    any_ways = True
    trained = False

    def condition(self, support_x: Tensor, support_y: Tensor) -> tuple[Tensor, Tensor]:
        """The support set as vectors `[N, S, F]`, and its labels as rows, or targets."""
        return self._vectors(support_x), self.one_hot(support_y)

    def answer(self, kept: tuple[Tensor, Tensor], query_x: Tensor, transductive: bool = False) -> Tensor:
        """As in the base class."""
        x, y = kept
        distances = torch.cdist(self._vectors(query_x), x, compute_mode="donot_use_mm_for_euclid_dist")  # [N, Q, S]
        if self.spec.classification:
            return -torch.where(y.mT[:, None] > 0, distances[:, :, None], torch.inf).amin(-1)
        return y.take_along_dim(distances.argmin(-1)[..., None], 1)

    def _vectors(self, x: Tensor) -> Tensor:
        if not self.spec.vocabulary:
            return x.flatten(2)
        counts = self.like.new_zeros(*x.shape[:2], self.spec.vocabulary, device=x.device)
        counts.scatter_add_(2, x, (x != 0).to(counts))
        return nn.functional.normalize(counts, dim=-1)
