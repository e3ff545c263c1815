"""An ordinal mixed model of marks from 1 to 5: proportional odds; raters, prompts and their tastes are random effects.

statsmodels has ordinal models without random effects only (`OrderedModel`), so this is our own, by the Laplace
approximation that R's `ordinal::clmm` makes for crossed effects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NEWTON_STEPS = 50
TOLERANCE = 1e-8  # of the gradient's largest entry
START = (-0.7, -0.7, -1.2, -1.2)  # logarithms of the random effects' standard deviations, where the search begins
SEPARATED = 15.0  # log odds of three millions to one: what a fit runs away to
SMALLEST = np.log(1e-3)  # a standard deviation below this is zero


@dataclass(frozen=True)
class OrdinalFit:
    """Effects (K,) of the systems in log odds against the first one, and their covariance (K, K); the standard
    deviations of the effects of rater, prompt, rater × system and prompt × system."""

    effects: np.ndarray
    covariance: np.ndarray
    deviations: tuple[float, ...]

    def difference(self, a: int, b: int) -> tuple[float, float, float]:
        """(a − b in log odds, its standard error, two-sided p) by Wald's test; error and p are NaN where the marks do
        not overlap, so that no odds are too large."""
        from scipy.stats import norm

        contrast = np.zeros(len(self.effects))
        contrast[a], contrast[b] = 1, -1
        value, error = float(contrast @ self.effects), float(np.sqrt(contrast @ self.covariance @ contrast))
        error = error if abs(value) < SEPARATED else np.nan
        return value, error, 2 * float(norm.sf(abs(value) / error))


def fit_ordinal(marks: np.ndarray, systems: np.ndarray, raters: np.ndarray, prompts: np.ndarray) -> OrdinalFit:
    """Fits logit P(mark ≤ k) = θₖ − (β_system + u_rater + w_prompt + v_rater,system + z_prompt,system) to N marks.

    All arguments have shape (N,), the labels being whole numbers from 0. For given deviations, thresholds θ, β and all
    random effects maximise the penalised likelihood (concave: Newton's method); the deviations maximise its Laplace
    approximation, profiled over θ and β (Nelder & Mead 1965). The covariance of β is its block of the inverse Hessian.
    """
    from scipy.optimize import minimize
    from scipy.sparse import csr_array

    levels, codes = np.unique(marks, return_inverse=True)
    count = int(systems.max()) + 1
    groups = [raters, prompts, raters * count + systems, prompts * count + systems]
    blocks = [np.eye(int(group.max()) + 1)[group] for group in (np.unique(g, return_inverse=True)[1] for g in groups)]
    fixed = np.eye(count)[systems][:, 1:]
    shift = -np.concatenate([fixed, *blocks], axis=1)
    thresholds = len(levels) - 1
    upper, lower = (
        csr_array(np.concatenate([np.eye(thresholds + 1)[codes][:, columns], shift], axis=1))
        for columns in (slice(0, thresholds), slice(1, None))
    )
    design = Design(upper, lower, codes == thresholds, codes == 0, thresholds, count - 1)
    sizes = [block.shape[1] for block in blocks]
    shares = np.bincount(codes)[:-1].cumsum() / len(codes)
    start = np.concatenate([np.log(shares / (1 - shares)), np.zeros(shift.shape[1])])

    def objective(logs: np.ndarray) -> float:
        nonlocal start
        start, value, hessian = design.fit(start, _penalty(logs, sizes, design))
        random = hessian[design.fixed :, design.fixed :]
        return value + float(np.dot(sizes, np.maximum(logs, SMALLEST))) + 0.5 * np.linalg.slogdet(random)[1]

    options = {"xatol": 0.02, "fatol": 0.01, "maxfev": 300}
    logs = minimize(objective, np.array(START), method="Nelder-Mead", options=options).x
    start, _, hessian = design.fit(start, _penalty(logs, sizes, design))
    rows = slice(thresholds, design.fixed)
    covariance = np.zeros((count, count))
    covariance[1:, 1:] = np.linalg.inv(hessian)[rows, rows]
    deviations = np.exp(np.maximum(logs, SMALLEST))
    return OrdinalFit(np.concatenate([[0.0], start[rows]]), covariance, tuple(float(own) for own in deviations))


def _penalty(logs: np.ndarray, sizes: Sequence[int], design: "Design") -> np.ndarray:
    """The precision of every parameter: none for thresholds and systems, 1/σ² for random effects."""
    precisions = np.exp(-2 * np.maximum(logs, SMALLEST))
    return np.concatenate([np.zeros(design.fixed), np.repeat(precisions, sizes)])


@dataclass(frozen=True)
class Design:
    """The model's rows: each mark lies between `lower` @ parameters and `upper` @ parameters on the latent scale (both
    sparse, (N, parameters)).

    `top` and `bottom` (N,) mark the rows without an upper and a lower limit.
    """

    upper: Any
    lower: Any
    top: np.ndarray
    bottom: np.ndarray
    thresholds: int
    systems: int

    @property
    def fixed(self) -> int:
        """The number of parameters that are no random effects: thresholds, then systems."""
        return self.thresholds + self.systems

    def fit(self, start: np.ndarray, penalty: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        """(parameters, penalised negative log likelihood, its Hessian) at the minimum, by Newton's method."""
        parameters = start
        value, gradient, hessian = self.evaluate(parameters, penalty)
        for _ in range(NEWTON_STEPS):
            if np.abs(gradient).max() < TOLERANCE * len(self.top):
                break
            step, size = np.linalg.solve(hessian, gradient), 1.0
            while size > 1e-6:
                attempt = parameters - size * step
                if np.all(np.diff(attempt[: self.thresholds]) > 0):
                    new = self.evaluate(attempt, penalty)
                    if new[0] <= value:
                        break
                size /= 2
            else:
                break
            parameters, (value, gradient, hessian) = attempt, new
        return parameters, value, hessian

    def evaluate(self, parameters: np.ndarray, penalty: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The penalised negative log likelihood, its gradient and its Hessian."""
        from scipy.sparse import diags_array

        above, below = _logistic(self.upper @ parameters), _logistic(self.lower @ parameters)
        above[self.top], below[self.bottom] = 1.0, 0.0
        p = np.maximum(above - below, 1e-300)
        density_above, density_below = above * (1 - above), below * (1 - below)
        first, second = density_above / p, density_below / p
        gradient = -(self.upper.T @ first - self.lower.T @ second) + penalty * parameters
        weights = (
            first**2 - density_above * (1 - 2 * above) / p,
            second**2 + density_below * (1 - 2 * below) / p,
            -first * second,
        )
        cross = self.upper.T @ (diags_array(weights[2]) @ self.lower)
        rows = (
            self.upper.T @ (diags_array(weights[0]) @ self.upper)
            + self.lower.T @ (diags_array(weights[1]) @ self.lower)
        ) + (cross + cross.T)
        hessian = rows.toarray() + np.diag(penalty)
        return float(-np.log(p).sum() + 0.5 * penalty @ parameters**2), gradient, hessian


def _logistic(values: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(values)
