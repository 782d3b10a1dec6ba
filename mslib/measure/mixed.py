"""Mixed model with a random intercept per subject: effects on values of which every subject gives several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.stats import t as student

#: Residual variance below this share of the outcome's is none: the model fits without error and no p value is given.
NO_VARIANCE = 1e-20
#: Places at which the likelihood is looked at before the best is refined: it can have two maxima.
GRID = 17


class _Sums(NamedTuple):
    """What the likelihood needs of the data: moments, and sums per subject (rows)."""

    xx: np.ndarray
    xy: np.ndarray
    yy: float
    x_of: np.ndarray
    y_of: np.ndarray
    n_of: np.ndarray

    def at(self, ratio: float):
        """X'V^-1X, X'V^-1y and y'V^-1y where the subjects' variance is `ratio` times the residual one."""
        weight = ratio / (1 + self.n_of * ratio)
        return (self.xx - (self.x_of * weight[:, None]).T @ self.x_of, self.xy - self.x_of.T @ (weight * self.y_of),
                self.yy - weight @ self.y_of ** 2)

    def loss(self, share: float) -> float:
        """-2 log restricted likelihood (up to a constant) where the subjects hold this share of the variance."""
        ratio = share / (1 - share)
        xx, xy, yy = self.at(ratio)
        n = self.n_of.sum() - len(xy)
        rest = max(yy - xy @ np.linalg.solve(xx, xy), np.finfo(float).tiny)
        return n * np.log(rest) + np.log1p(self.n_of * ratio).sum() + np.linalg.slogdet(xx)[1]


def mixed_effects(table: pd.DataFrame, outcome: str, effects: Sequence[str], subject: str = "subject",
                  confidence: float = 0.95) -> pd.DataFrame:
    """Effects on an outcome by a linear mixed model with a random intercept per subject (REML).

    Parameters
    ----------
    table : pandas.DataFrame
        One row per observation. Rows without outcome, subject or one of the effects are left out; ``n`` counts the
        others.
    outcome, subject : str
        Columns of numbers, and of whose observation it is.
    effects : sequence of str
        Columns of numbers; categories as 0/1 columns. An intercept is added.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    pandas.DataFrame
        One row per term, the intercept first: ``term, estimate, low, high, t, df, p, n, subjects, subject_sd,
        residual_sd, singular``. Estimates in units of the outcome per unit of the effect. ``singular``: the data show
        no variance between subjects (its estimate is 0), and the fit is that of independent rows. Where the model
        fits without error, ``low, high, t, p`` are NaN.

    Raises
    ------
    ValueError
        A column is absent or holds no finite numbers; an effect that is constant or follows from the others; fewer
        subjects or rows than parameters.

    Notes
    -----
    Wald t with between-within degrees of freedom: an effect that is constant within every subject has as many as
    subjects less such parameters (with the intercept), any other as many as rows less subjects less such effects. With
    the same number of rows from every subject this is the exact analysis: t of a between-subject effect is that of a
    regression of the subjects' means, t of a visit that of the paired test. The variances are the only thing that is
    searched for, along one line, so that a fit takes milliseconds and ends at the boundary where it belongs there;
    `statsmodels.regression.mixed_linear_model.MixedLM` gives the same estimates (tests).

    References
    ----------
    Laird and Ware 1982, Biometrics 38:963; Schluchter and Elashoff 1990, J Stat Comput Simul 37:69 (degrees of
    freedom).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: must lie between 0 and 1 (got {confidence})")
    x, y, number = _read(table, outcome, list(effects), subject)
    within = _varies_within(x, number)
    n_subjects = int(number.max()) + 1
    between_df = n_subjects - int((~within).sum())
    within_df = len(y) - n_subjects - int(within.sum())
    if between_df < 1 or (within.any() and within_df < 1):
        raise ValueError(f"mixed_effects: {len(y)} rows of {n_subjects} subjects are too few for an intercept and "
                         f"{len(effects)} effects; allowed: more subjects than effects that are constant within them")
    estimate, error, subject_sd, residual_sd, singular = _fit(x, y, number)
    df = np.where(within, within_df, between_df)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 0, estimate / error, np.nan)
    half = student.ppf((1 + confidence) / 2, df) * np.where(error > 0, error, np.nan)
    return pd.DataFrame({"term": ["intercept", *effects], "estimate": estimate, "low": estimate - half,
                         "high": estimate + half, "t": t, "df": df, "p": 2 * student.sf(np.abs(t), df), "n": len(y),
                         "subjects": n_subjects, "subject_sd": subject_sd, "residual_sd": residual_sd,
                         "singular": singular})


def _read(table, outcome, effects, subject):
    """Design with intercept, outcome, and the subjects' numbers, of complete rows."""
    absent = [name for name in (outcome, subject, *effects) if name not in table]
    if absent:
        raise ValueError(f"mixed_effects: the table has no column {', '.join(map(repr, absent))}")
    try:
        numbers = table[[outcome, *effects]].astype(float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"mixed_effects: {outcome}, {', '.join(effects)} must be numbers, categories as 0/1 columns "
                         f"({error})") from error
    if np.isinf(numbers.to_numpy()).any():
        raise ValueError(f"mixed_effects: {outcome}, {', '.join(effects)} must be finite or missing (got infinity)")
    whole = numbers.notna().all(axis=1) & table[subject].notna()
    numbers, number = numbers[whole], pd.factorize(table.loc[whole, subject])[0]
    if not len(numbers):
        raise ValueError(f"mixed_effects: no row has {outcome}, {subject} and every effect")
    x = np.column_stack([np.ones(len(numbers)), numbers[effects].to_numpy()])
    if not _independent(x):
        name = next(name for place, name in enumerate(effects, start=2) if not _independent(x[:, :place]))
        raise ValueError(f"mixed_effects: {name} is constant or follows from the other effects in these {len(x)} rows; "
                         "its effect cannot be estimated")
    return x, numbers[outcome].to_numpy(), number


def _independent(x):
    """Whether no column of a design (intercept first) follows from those before it."""
    centred = x[:, 1:] - x[:, 1:].mean(axis=0)
    spread = np.abs(centred).max(axis=0, initial=0)
    return np.linalg.matrix_rank(centred / np.where(spread > 0, spread, 1), tol=1e-9 * len(x)) == x.shape[1] - 1


def _varies_within(x, number):
    order = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[order], prepend=-1))
    spread = np.maximum.reduceat(x[order], starts) - np.minimum.reduceat(x[order], starts)
    return (spread > 0).any(axis=0)


def _fit(x, y, number):
    """Estimates, their errors, SD of subjects and of the rest, and whether that of subjects is 0."""
    # Columns of one size, and the residual of the common regression in the outcome's place: no precision is lost.
    size = np.abs(x).max(axis=0)
    x = x / size
    first = np.linalg.lstsq(x, y, rcond=None)[0]
    rest = y - x @ first
    of = np.eye(number.max() + 1)[number].T
    sums = _Sums(x.T @ x, x.T @ rest, float(rest @ rest), of @ x, of @ rest, of.sum(axis=1))
    share = 0.0
    if sums.yy > NO_VARIANCE * max(float(y @ y), np.finfo(float).tiny) and sums.n_of.max() > 1:
        share = _best_share(sums)
    ratio = share / (1 - share)
    xx, xy, yy = sums.at(ratio)
    change = np.linalg.solve(xx, xy)
    variance = (yy - xy @ change) / (len(y) - len(size))
    if variance <= NO_VARIANCE * float(y @ y) / len(y):
        variance = 0.0
    error = np.sqrt(variance * np.diag(np.linalg.inv(xx)))
    return ((first + change) / size, error / size, float(np.sqrt(variance * ratio)), float(np.sqrt(variance)),
            share == 0)


def _best_share(sums: _Sums) -> float:
    """Share of the subjects' variance at which the restricted likelihood is highest; 0 at the boundary."""
    grid = 1 - np.geomspace(1, 1e-6, GRID)
    losses = [sums.loss(share) for share in grid]
    best = int(np.argmin(losses))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    found = minimize_scalar(sums.loss, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    return float(found.x) if found.fun < losses[0] - 1e-9 else 0.0
