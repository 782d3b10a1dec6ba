"""How often networks classify correctly, under every protocol, beside a baseline model that knows the lesion load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mslib.measure import ClassificationReport, classification_report
from mslib.nets import baseline_logits, chance_level, tested

#: What readers see for each protocol: kinds of network (`mslib.nets.KINDS`) on their test part; the ``honest`` kind
#: also on the independent cohort, where the baseline model is fitted to one of two groups of subjects.
TITLES = {"published": "(a) slice-level split", "honest": "(b) subject-level split",
          "independent": "(c) independent cohort",
          "independent_pretraining": "(c), baseline model of the pre-training cohort",
          "published_permuted": "slice-level, permuted labels", "honest_permuted": "subject-level, permuted labels"}
#: Test accuracy over slices that Hong and Zhang 2021 report.
PUBLISHED_ACCURACY = {"vgg16": 0.93, "vgg19": 0.95}


def by_protocol(predictions: pd.DataFrame, independent: pd.DataFrame) -> dict[tuple[str, str, int], pd.DataFrame]:
    """Tested slices of every network, protocol and seed (the keys), in the order of `TITLES`.

    Tables of ``backbone, kind, seed, subject, target, logit_<class>``; the first with ``part``, the second may be
    empty.
    """
    both = (tested(predictions).drop(columns="part").assign(protocol=lambda rows: rows["kind"]),
            independent.assign(protocol="independent"))
    table = pd.concat([one for one in both if len(one)], ignore_index=True)  # an empty one has columns without type
    found = {key: part for key, part in table.groupby(["backbone", "protocol", "seed"])}
    return dict(sorted(found.items(), key=lambda one: (one[0][0], list(TITLES).index(one[0][1]), one[0][2])))


def evaluate(table: pd.DataFrame, groups: Sequence[str], **draws) -> ClassificationReport:
    """Report of predictions at slice and subject level; ``n, confidence, seed`` of the intervals as `draws`."""
    logits = table[[f"logit_{group}" for group in groups]].to_numpy()
    return classification_report(logits, table["target"].to_numpy(), table["subject"].to_numpy(), list(groups), **draws)


def accuracy_table(tables: Mapping[tuple[str, str, int], pd.DataFrame], groups: Sequence[str], **draws) -> pd.DataFrame:
    """Measures of every network and protocol (`by_protocol`) at both levels, with intervals and chance.

    ``level, measure, group, value, low, high, n, backbone, protocol, seed, title, chance``. Chance is the share of the
    largest class among the slices or subjects, the accuracy of always naming it; NaN for other measures. A table
    without ``slice`` (baseline model) has one row per subject and no level of slices.
    """
    parts = []
    for (backbone, protocol, seed), table in tables.items():
        chance = {"slice": chance_level(table), "subject": chance_level(table.drop_duplicates("subject"))}
        rows = evaluate(table, groups, **draws).measures.rename(columns={"estimate": "value"})
        rows = rows if "slice" in table else rows[rows["level"] == "subject"]
        chance = rows["level"].map(chance).where(rows["measure"] == "accuracy")
        rows = rows.assign(backbone=backbone, protocol=protocol, seed=seed, title=TITLES[protocol], chance=chance)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def baseline_predictions(truth: pd.DataFrame, parts: pd.Series, groups: Sequence[str],
                         pretraining: pd.DataFrame | None = None) -> dict[tuple[str, str, int], pd.DataFrame]:
    """The baseline model on true lesion load and ventricle volume, for the subject-level test part and (c).

    `truth`: ``subject, group, lesion_load_ml, ventricle_volume_ml``; without the last two there is no baseline model.
    `parts`: train, validation, test or independent by subject. `pretraining`, as `truth`, of the pre-training cohort: a
    second model is fitted to it, the fair comparison on (c). Given as by `by_protocol`, one row per subject; the
    backbone is ``logistic``.
    """
    if not {"lesion_load_ml", "ventricle_volume_ml"} <= set(truth):
        return {}
    part = truth["subject"].map(parts)
    train, independent = truth[part == "train"], truth[part == "independent"]
    pairs = {"honest": (train, truth[part == "test"]), "independent": (train, independent)}
    if pretraining is not None and len(pretraining):
        pairs["independent_pretraining"] = pretraining, independent
    tables = {}
    for protocol, (fitted_to, test) in pairs.items():
        if len(test):
            logits = baseline_logits(fitted_to, test, list(groups))
            target = test["group"].map({group: i for i, group in enumerate(groups)})
            tables["logistic", protocol, 1] = pd.DataFrame(logits, columns=[f"logit_{name}" for name in groups]).assign(
                subject=test["subject"].to_numpy(), target=target.to_numpy())
    return tables


def learning_curves(history: pd.DataFrame) -> pd.DataFrame:
    """Epochs numbered through all stages of a network's training, the kept one of every stage marked ``best``.

    `history`: ``backbone, kind, epoch, val_loss`` and more; ``stage`` where there are several. Other kinds than those
    of `TITLES` (pre-training) come first.
    """
    order = {kind: place for place, kind in enumerate(TITLES)}
    history = history.sort_values("kind", key=lambda kind: kind.map(order).fillna(-1), kind="stable", ignore_index=True)
    stage = history["stage"].fillna(1) if "stage" in history else pd.Series(1, index=history.index)
    keys = [history["backbone"], history["kind"]]
    kept = history.groupby([*keys, stage])["val_loss"].idxmin()
    return history.assign(stage=stage, epoch=history.groupby(keys).cumcount() + 1, best=history.index.isin(kept))
