"""The yardstick beside the nets: logistic regression on lesion load and ventricle volume."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FEATURES = ("lesion_load_ml", "ventricle_volume_ml")


def baseline_logits(train: pd.DataFrame, test: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """Class scores of a logistic regression on the logarithms of lesion load and ventricle volume.

    Eitel et al. 2019 found lesion load alone as good as a network, so it belongs beside one.

    Parameters
    ----------
    train, test : pandas.DataFrame
        One row per subject with ``group`` (train only), ``lesion_load_ml`` and ``ventricle_volume_ml``.
    classes : list of str

    Returns
    -------
    ndarray, shape (len(test), len(classes))
        Log-probabilities in the order of `classes`.
    """
    def features(table):
        return np.log(np.maximum(table[list(FEATURES)].to_numpy(float), 0.05))

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(features(train), train["group"])
    order = [list(model.classes_).index(name) for name in classes]
    return model.predict_log_proba(features(test))[:, order]
