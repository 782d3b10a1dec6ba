"""The baseline model beside the networks: logistic regression on lesion load and ventricle volume."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def baseline_logits(train: pd.DataFrame, test: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """Class scores of a logistic regression on the logarithms of lesion load and ventricle volume.

    Eitel et al. 2019 found lesion load alone as good as a network, so that it belongs beside one.

    Parameters
    ----------
    train, test : pandas.DataFrame
        One row per subject with ``group`` (train only), ``lesion_load_ml`` and ``ventricle_volume_ml``.
    classes : list of str
        Order of the log-probabilities that are returned, (len(test), len(classes)).
    """
    def features(table):
        return np.log(table[["lesion_load_ml", "ventricle_volume_ml"]].to_numpy(float).clip(0.05))

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features(train), train["group"])
    order = [list(model.classes_).index(name) for name in classes]
    return model.predict_log_proba(features(test))[:, order]
