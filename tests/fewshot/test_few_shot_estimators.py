"""Few-shot learners as scikit-learn knows classifiers and regressors."""

import pickle
import re

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from metarl.fewshot.datasets.text import Vocabulary
from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.estimators import FewShotClassifier, FewShotRegressor
from metarl.fewshot.learners import LEARNERS, make_learner

ROWS = TaskSpec(shape=(4,), outputs=5, train_classes=8)
PICTURES = TaskSpec(shape=(1, 8, 8), outputs=5, train_classes=8)
CURVES = TaskSpec(shape=(1,), outputs=1, classification=False)


def learner(name="protonet", spec=ROWS):
    small = {"width": 4} if spec.pictures else {"hidden": [8]} if name != "nearest_neighbour" else {}
    return make_learner(name, spec, small)


def clusters(shape=(4,), classes=3, each=8, seed=0):
    """Examples around far places, and the names of these."""
    rng = np.random.default_rng(seed)
    centres, labels = 5.0 * rng.normal(size=(classes, *shape)), np.arange(each * classes) % classes
    x = centres[labels] + 0.1 * rng.normal(size=(len(labels), *shape))
    return x, np.array(["cat", "dog", "emu", "fox", "gnu"])[labels]


def test_it_is_what_scikit_learn_takes_for_a_classifier():
    made = FewShotClassifier(learner())
    assert is_classifier(made)
    assert is_regressor(FewShotRegressor(learner("maml", CURVES)))
    assert made.get_params() == {"learner": made.learner}
    assert repr(made) == "FewShotClassifier(learner=PrototypicalNetwork)"
    copy = clone(made)
    assert copy.learner is not made.learner
    assert all(torch.equal(a, b) for a, b in zip(copy.learner.parameters(), made.learner.parameters(), strict=True))
    assert made.set_params(learner=learner("maml")) is made
    with pytest.raises(NotFittedError):
        made.predict(np.zeros((2, 4)))


def test_labels_of_any_kind_come_back():
    x, y = clusters()
    for labels in (y, y.tolist(), np.unique(y, return_inverse=True)[1] + 7, y == "cat", y.astype(object)):
        made = FewShotClassifier(learner("nearest_neighbour"))
        assert made.fit(x, labels) is made
        assert made.predict(x).tolist() == np.asarray(labels).tolist()
        assert made.classes_.tolist() == sorted(set(np.asarray(labels).tolist()))
        assert made.score(x, labels) == 1.0
    assert made.n_features_in_ == 4


def test_a_pipeline_and_cross_validation():
    x, y = clusters(each=12)
    for name in ("maml", "protonet"):
        pipeline = make_pipeline(StandardScaler(), FewShotClassifier(learner(name)))
        scores = cross_val_score(pipeline, x, y, cv=3, error_score="raise")
        assert scores.shape == (3,)
    assert scores.mean() > 0.9
    assert clone(pipeline).fit(x, y).predict(x).shape == y.shape


@pytest.mark.parametrize("name", [name for name, made in LEARNERS.items() if "classification" in made.kinds])
def test_every_learner_takes_fewer_classes_and_answers_one_by_one(name):
    x, y = clusters()
    made = FewShotClassifier(learner(name)).fit(x, y)
    before = {key: value.clone() for key, value in made.learner.state_dict().items()}
    probabilities = made.predict_proba(x)
    assert probabilities.shape == (24, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-5)
    assert set(made.predict(x)) <= {"cat", "dog", "emu"}
    np.testing.assert_allclose(made.predict_proba(x[5:6]), probabilities[5:6], atol=1e-5)
    np.testing.assert_allclose(made.predict_proba(x[::-1]), probabilities[::-1], atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in made.learner.state_dict().items())


def test_pictures_may_be_flat_rows_and_bytes():
    x, y = clusters((1, 8, 8))
    made = FewShotClassifier(learner(spec=PICTURES)).fit(x, y)
    flat = FewShotClassifier(learner(spec=PICTURES)).fit(x.reshape(len(x), 64), y)
    np.testing.assert_array_equal(flat.predict_proba(x.reshape(len(x), 64)), made.predict_proba(x))
    assert flat.n_features_in_ == 64
    bytes_ = np.random.default_rng(0).integers(0, 256, x.shape, dtype=np.uint8)
    by_bytes, by_numbers = (FewShotClassifier(learner(spec=PICTURES)).fit(part, y) for part in (bytes_, bytes_ / 255.0))
    np.testing.assert_allclose(by_bytes.predict_proba(bytes_), by_numbers.predict_proba(bytes_ / 255.0), atol=1e-5)


def test_texts_in_a_pipeline():
    words = Vocabulary(("tea", "cup", "rain", "sun"), buckets=3, max_tokens=5)
    spec = TaskSpec(shape=(5,), outputs=2, train_classes=4, vocabulary=len(words))
    pipeline = make_pipeline(FunctionTransformer(words.encode), FewShotClassifier(make_learner("nearest_neighbour", spec)))
    pipeline.fit(["a cup of tea", "rain and sun"], ["drink", "weather"])
    assert pipeline.predict(["Tea!", "sun and rain, sun"]).tolist() == ["drink", "weather"]


def test_regression():
    x = np.linspace(-1, 1, 6)[:, None]
    made = FewShotRegressor(learner("nearest_neighbour", CURVES)).fit(x, 3 * x[:, 0])
    np.testing.assert_allclose(made.predict(x), 3 * x[:, 0], rtol=1e-6)
    assert made.score(x, 3 * x[:, 0]) == pytest.approx(1.0)
    column = FewShotRegressor(learner("nearest_neighbour", CURVES)).fit(x, 3 * x)
    assert column.predict(x).shape == (6, 1)
    maml = FewShotRegressor(learner("maml", CURVES))
    assert np.isfinite(cross_val_score(make_pipeline(StandardScaler(), maml), x, x[:, 0], cv=3, error_score="raise")).all()


def test_what_was_fitted_can_be_pickled():
    x, y = clusters()
    made = FewShotClassifier(learner("maml")).fit(x, y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(made)).predict_proba(x), made.predict_proba(x))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("maml", lambda x, y: (x, np.arange(24) % 6), "y must have at most 5 classes, as the learner was made for, got 6"),
        ("protonet", lambda x, y: (x[:, :3], y), "X must have the shape (M, 4), M > 0, got (24, 3)"),
        ("protonet", lambda x, y: (x[:0], y[:0]), "X must have the shape (M, 4), M > 0, got (0, 4)"),
        ("protonet", lambda x, y: (x, y[:5]), "y must be as many as X (24), got 5"),
        ("protonet", lambda x, y: (np.where(x == x[7, 1], np.nan, x), y), "X must be finite, but example 7 is not"),
        ("protonet", lambda x, y: (x.astype(str), y), "X must be numbers, got <U"),
        ("protonet", lambda x, y: (x, x), "Unknown label type"),
        ("protonet", lambda x, y: (x, x[:, 0]), "Unknown label type"),
    ],
)
def test_bad_input(name, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FewShotClassifier(learner(name)).fit(*change(*clusters()))


def test_the_kind_has_to_fit():
    x, y = clusters()
    with pytest.raises(ValueError, match=r"^learner must be one of classification, got one of regression$"):
        FewShotClassifier(learner("maml", CURVES)).fit(x, y)
    with pytest.raises(ValueError, match=r"^learner must be one of regression, got one of classification$"):
        FewShotRegressor(learner()).fit(x, np.arange(24.0))


def test_a_learner_is_no_name():
    with pytest.raises(ValueError, match=r"^learner must be a FewShotLearner, as make_learner gives, got 'protonet'$"):
        FewShotClassifier("protonet").fit(*clusters())


def test_a_target_that_is_no_number_is_named():
    x = np.linspace(-1, 1, 6)[:, None]
    with pytest.raises(ValueError, match=r"^y must be finite, but that of example 4 is not$"):
        FewShotRegressor(learner("maml", CURVES)).fit(x, np.where(np.arange(6) == 4, np.nan, 1.0))


def test_any_number_of_classes_where_the_learner_takes_it():
    x, _ = clusters(classes=5)
    made = FewShotClassifier(learner()).fit(x, np.arange(len(x)) % 8)
    assert made.predict_proba(x).shape == (40, 8)
