"""Few-shot learners in scikit-learn's manners: `FewShotClassifier(learner).fit(X, y).predict(X)`, also in a pipeline.

Needs scikit-learn (`pip install 'metarl-toolkit[fewshot]'`).
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d
except ModuleNotFoundError as error:
    message = "FewShotClassifier needs scikit-learn: pip install 'metarl-toolkit[fewshot]'"
    raise ModuleNotFoundError(message, name=error.name) from None

from metarl.fewshot.learner import FewShotLearner


@contextmanager
def _in_its_words() -> Iterator[None]:
    """A learner's errors speak of `X` and `y`."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:  # such as Diverged, which knows more than its message
            raise
        raise ValueError(re.sub(r"(support|query)_([xy])", lambda m: "X" if m[2] == "x" else "y", str(error))) from None


class _Estimator(BaseEstimator):
    """What both have in common: a learner that was trained over tasks; `fit` adapts it, and does not change it.

    Args:
        learner: see above.
    """

    def __init__(self, learner: FewShotLearner):
        self.learner = learner

    def _shaped(self, X: ArrayLike) -> np.ndarray:
        """Rows of numbers as the learner knows examples, such as `[M, 784]` as `[M, 1, 28, 28]`."""
        X = np.asarray(X)
        if self.learner.prepare is not None:
            return X
        shape = self.learner.spec.shape
        flat = X.ndim == 2 and X.shape[1] == np.prod(shape)
        return X.reshape(len(X), *shape) if flat else X

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        return f"{type(self).__name__}(learner={type(self.learner).__name__})"

    def _adapt(self, X: ArrayLike, y: np.ndarray, classification: bool) -> Self:
        if not isinstance(self.learner, FewShotLearner):
            raise ValueError(f"learner must be a FewShotLearner, as make_learner gives, got {self.learner!r}")
        if self.learner.spec.classification != classification:
            kinds = ("classification", "regression")[:: 1 if classification else -1]
            raise ValueError(f"learner must be one of {kinds[0]}, got one of {kinds[1]}")
        ways = self.learner.spec.outputs
        if classification and len(self.classes_) > ways and not self.learner.any_ways:
            raise ValueError(f"y must have at most {ways} classes, as the learner was made for, got {len(self.classes_)}")
        self.n_features_in_ = int(np.prod(self.learner.spec.shape))
        learner = copy.deepcopy(self.learner).eval()  # which may be trained on
        with _in_its_words():
            self.predictor_ = learner.adapt(self._shaped(X), y)
        return self

    def _outputs(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self, "predictor_")
        with _in_its_words():
            return self.predictor_(self._shaped(X))


class FewShotClassifier(ClassifierMixin, _Estimator):
    """A classifier that learns from a few examples of each class; arguments as in `_Estimator`.

    Attributes:
        classes_: the labels, in order.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn from examples `X [S, ...]`, or flat `[S, features]`, with labels `y [S]` of any kind."""
        check_classification_targets(y)
        self.classes_, labels = np.unique(column_or_1d(y), return_inverse=True)
        return self._adapt(X, labels, classification=True)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probabilities `[Q, C]` of the classes, for each example on its own."""
        logits = self._outputs(X)
        return logits[:, : len(self.classes_)].softmax(-1).numpy(force=True)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Labels `[Q]`."""
        likeliest = self.predict_proba(X).argmax(1)
        return self.classes_[likeliest]


class FewShotRegressor(RegressorMixin, _Estimator):
    """A regressor that learns from a few points; arguments as in `_Estimator`."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn from `X [S, ...]` with targets `y [S]` or `[S, D]`."""
        y = np.asarray(y, np.float32)
        self._one_column = y.ndim == 1
        return self._adapt(X, y.reshape(len(y), -1), classification=False)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Predictions `[Q]` or `[Q, D]`, as the targets were."""
        outputs = self._outputs(X).numpy(force=True)
        return outputs[:, 0] if self._one_column else outputs
