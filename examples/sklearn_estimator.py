"""A scikit-learn estimator with fit, partial_fit and predict, linear with Huber's loss, pickled with its optimizer.

Needs scikit-learn 1.6 or later: pip install scikit-learn
"""

import pickle

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

import gradstep as gs


class RobustRegressor(RegressorMixin, BaseEstimator):
    def __init__(self, delta=0.2, lr=0.1, steps=500):
        self.delta, self.lr, self.steps = delta, lr, steps

    def fit(self, X, y):
        return self._step(*self._start(X, y), self.steps)

    def partial_fit(self, X, y):
        if not hasattr(self, "opt_"):
            return self._step(*self._start(X, y))
        return self._step(*validate_data(self, X, y, y_numeric=True, reset=False))

    def _start(self, X, y):
        data = validate_data(self, X, y, y_numeric=True)
        self.params_ = {"coef": np.zeros(self.n_features_in_), "intercept": np.zeros(())}
        self.opt_ = gs.Adam(self.params_, lr=self.lr)  # shares the dict, and still does after pickle
        return data

    def _step(self, X, y, times=1):
        for _ in range(times):
            error = np.clip(self._predict(X) - y, -self.delta, self.delta) / len(X)
            self.opt_.step({"coef": X.T @ error, "intercept": error.sum()})
        return self

    def _predict(self, X):
        return X @ self.params_["coef"] + self.params_["intercept"]

    def predict(self, X):
        check_is_fitted(self)
        return self._predict(validate_data(self, X, reset=False))


unmet = {"check_estimators_pickle": "it also makes the arrays read-only, and an optimizer refuses those"}
check_estimator(RobustRegressor(), expected_failed_checks=unmet, on_skip=None)

rng = np.random.default_rng(0)
X = rng.standard_normal((500, 2))
y = X @ [1, -2] + 5 + 0.1 * rng.standard_normal(500) + 50 * (rng.random(500) < 0.1)  # a tenth is off by 50
model = RobustRegressor().fit(X, y)
again = pickle.loads(pickle.dumps(model))
print("coefficients {:.2f} and {:.2f}, intercept {:.2f}".format(*model.params_["coef"], model.params_["intercept"]))
assert np.allclose([*model.params_["coef"], model.params_["intercept"]], [1, -2, 5], atol=0.05)
assert np.array_equal(model.partial_fit(X, y).predict(X), again.partial_fit(X, y).predict(X))
