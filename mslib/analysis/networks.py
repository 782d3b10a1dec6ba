"""How often networks classify correctly, under every protocol, beside what knowing the disease's extent would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from mslib.measure import ClassificationReport, classification_report, mean_by

#: What readers see for each protocol: kinds of network (`mslib.nets.KINDS`) on their test part, on the independent
#: cohort and with permuted labels; last layers alone over folds.
TITLES = {"published": "(a) slice-level split", "published_independent": "network of (a), independent cohort",
          "honest": "(b) subject-level split", "independent": "(c) network of (b), independent cohort",
          "folds": "(d) every subject tested once, last layer only",
          "published_permuted": "(a), permuted labels", "folds_permuted": "(d), permuted labels"}
#: Kind of network to its protocol on the independent cohort.
INDEPENDENT = {"honest": "independent", "published": "published_independent"}
#: Test accuracy over slices that Hong and Zhang 2021 report.
PUBLISHED_ACCURACY = {"vgg16": 0.93, "vgg19": 0.95}
#: True areas of a slice, mm2.
AREAS = ("lesion_mm2", "black_hole_mm2", "ventricle_mm2")
#: Lesion areas in mm2 between which the accuracy of ``cause`` networks is averaged.
LESION_MM2 = (20.0, 50.0, 100.0, 200.0, 400.0, np.inf)
LESION_FREE = "lesion-free"


def by_protocol(predictions: pd.DataFrame, permuted: pd.DataFrame,
                folds: pd.DataFrame) -> dict[tuple[str, str, int], pd.DataFrame]:
    """Tested slices of every network (but ``cause``), protocol and seed (the keys), in the order of `TITLES`.

    Tables of ``backbone, subject, target, logit_<class>``; the first two also of ``kind``, the first of ``part, seed``,
    the last of ``protocol``.
    """
    own = predictions[predictions["kind"].isin(list(INDEPENDENT)) & predictions["part"].isin(["test", "independent"])]
    own = own.assign(protocol=own["kind"].where(own["part"] == "test", own["kind"].map(INDEPENDENT)))
    table = pd.concat([own, permuted.assign(protocol=permuted["kind"], seed=1), folds.assign(seed=1)])
    found = {key: part.dropna(axis=1, how="all") for key, part in table.groupby(["backbone", "protocol", "seed"])}
    return dict(sorted(found.items(), key=lambda one: (one[0][0], list(TITLES).index(one[0][1]), one[0][2])))


def _tables(name, table, known, part, groups, degree, protocols):
    """Predictions, as of `by_protocol`, of a logistic regression on numbers and their products, fitted to ``train``."""
    tables, train = {}, part == "train"
    model = make_pipeline(StandardScaler(), PolynomialFeatures(degree, include_bias=False), StandardScaler(),
                          LogisticRegression(max_iter=2000))
    for protocol, tested in protocols.items():
        if (test := part == tested).any():
            logits = model.fit(known[train], table["target"][train]).predict_log_proba(known[test])
            tables[name, protocol, 1] = table.loc[test].assign(**dict(zip([f"logit_{g}" for g in groups], logits.T)))
    return tables


def class_knowledge(true, labels) -> float:
    """Balanced accuracy over permuted labels of whoever knows the true class of a person, and nothing else."""
    counts = pd.crosstab(np.asarray(true), np.asarray(labels))
    return float((counts / counts.sum()).max(axis=1).sum() / counts.shape[1])


def evaluate(table: pd.DataFrame, groups: Sequence[str], **draws) -> ClassificationReport:
    """Report of predictions at slice and subject level; ``n, confidence, seed`` of the intervals as `draws`."""
    logits = table[[f"logit_{group}" for group in groups]].to_numpy()
    return classification_report(logits, table["target"].to_numpy(int), table["subject"].to_numpy(), list(groups),
                                 **draws)


def accuracy_table(tables: Mapping[tuple[str, str, int], pd.DataFrame], groups: Sequence[str], **draws) -> pd.DataFrame:
    """Measures of every network and protocol (`by_protocol`) at both levels, with intervals and chance.

    ``level, measure, group, value, low, high, n, subjects, backbone, protocol, seed, title, chance``. Chance of
    accuracy is the share of the largest class among the slices or subjects, reached by always naming it; of balanced
    accuracy one over the number of groups that have people, reached by whatever does not depend on the class (of
    permuted labels `class_knowledge`); NaN for other measures. A table without ``slice`` (baseline model) has one row
    per subject and no level of slices.
    """
    parts = []
    for (backbone, protocol, seed), table in tables.items():
        people, known = table.drop_duplicates("subject"), protocol.endswith("permuted")
        largest = {level: float(rows["target"].value_counts(normalize=True).max())
                   for level, rows in (("slice", table), ("subject", people))}
        balanced = class_knowledge(people["true"], people["target"]) if known else 1 / people["target"].nunique()
        rows = evaluate(table, groups, **draws).measures
        rows = rows if "slice" in table else rows[rows["level"] == "subject"]
        chance = rows["level"].map(largest).where(rows["measure"] == "accuracy")
        parts.append(rows.assign(subjects=len(people), backbone=backbone, protocol=protocol, seed=seed,
                                 title=TITLES[protocol],
                                 chance=chance.mask(rows["measure"] == "balanced_accuracy", balanced)))
    return pd.concat(parts, ignore_index=True)


def baseline_predictions(truth: pd.DataFrame, parts: pd.Series,
                         groups: Sequence[str]) -> dict[tuple[str, str, int], pd.DataFrame]:
    """Logistic regression on a subject's true lesion load and ventricle volume, for the test part of (b) and for (c).

    Eitel et al. 2019 found lesion load alone as good as a network. `truth`: ``subject, group, lesion_load_ml,
    ventricle_volume_ml``, without the last two no baseline model; `parts`: by subject. Given as by `by_protocol`, one
    row per subject; the backbone is ``logistic``.
    """
    if not {"lesion_load_ml", "ventricle_volume_ml"} <= set(truth):
        return {}
    known = np.log(truth[["lesion_load_ml", "ventricle_volume_ml"]].to_numpy(float).clip(0.05))
    target, part = truth["group"].map({group: i for i, group in enumerate(groups)}), truth["subject"].map(parts)
    return _tables("logistic", truth.assign(target=target), known, part.to_numpy(), groups, 1,
                   {"honest": "test", "independent": "independent"})


def attainable_predictions(predictions: pd.DataFrame,
                           groups: Sequence[str]) -> dict[tuple[str, str, int], pd.DataFrame]:
    """What the true areas of a slice say of its class: logistic regression on their logarithms, squares and products.

    `predictions` of one network, all parts, with the areas `AREAS` (without them nothing is given); the backbone is
    ``areas``.
    """
    if not set(AREAS) <= set(predictions):
        return {}
    known, kind = np.log1p(predictions[list(AREAS)].to_numpy(float) / 20), predictions["kind"].iloc[0]
    return _tables("areas", predictions, known, predictions["part"].to_numpy(), groups, 2,
                   {kind: "test", INDEPENDENT[kind]: "independent"})


def psychometric_table(predictions: pd.DataFrame, **draws) -> pd.DataFrame:
    """Accuracy of ``cause`` networks on unseen people's slices over the lesion area, and on lesion-free slices.

    ``backbone, lesions, mm2, value, low, high, n`` (slices), ``subjects``: a row per range of areas (``20-50``;
    ``mm2`` is their median), ``lesion-free``, and ``100 or more``. Intervals are over subjects and trainings.
    """
    table = predictions[(predictions["kind"] == "cause") & (predictions["part"] == "test")]
    shown, areas = table["target"] == 1, table["lesion_mm2"]
    table = table.assign(correct=(table["logit_lesions"] > table["logit_lesion-free"]) == shown)
    ranges = {f"{low:g}-{high:g}" if np.isfinite(high) else f"{low:g} or more": shown & (areas >= low) & (areas < high)
              for low, high in pairwise(LESION_MM2)}
    chosen = {LESION_FREE: ~shown, **ranges, "100 or more": shown & (areas >= 100)}
    table = pd.concat([table[rows].assign(lesions=name) for name, rows in chosen.items()])
    by = ["lesions", "backbone"]
    beside = table.groupby(by).agg(mm2=("lesion_mm2", "median"), n=("subject", "size"), trainings=("seed", "nunique"))
    found = mean_by(table, by, ["correct"], "seed", **draws).join(beside, on=by)
    found["mm2"] = found["mm2"].where(found["lesions"] != LESION_FREE, 0.0)
    found["n"] //= found["trainings"]
    return found[["backbone", "lesions", "mm2", "value", "low", "high", "n", "subjects"]]


def kept_epochs(history: pd.DataFrame) -> pd.DataFrame:
    """Epochs of every network and seed, the kept one (lowest validation loss) marked ``best``."""
    kept = history.groupby(["backbone", "kind", "seed"])["val_loss"].idxmin()
    return history.assign(best=history.index.isin(kept))
