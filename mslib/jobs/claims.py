"""The published claims beside the study's own evidence: each row is decided by numbers, never by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

from mslib.measure import MIN_SUBJECTS
from mslib.study import StudyConfig

from .attribution_claims import attribution_claims
from .depth import compromise, last_convolution, layer_difference, layer_trend, patient_interval, rank_sums
from .predictions import chance_level, read_predictions, tested
from .record import interval_text
from .sleep_report import sleep_rows
from .verdicts import FAILS, HOLDS, undecided, untestable, verdict

PUBLISHED_ACCURACY = {"vgg16": 0.93, "vgg19": 0.95}
#: Mean rank correlation below which a trend is next to nothing (a small effect, Cohen 1988).
SMALL_RANK = 0.1
#: Level of p after correction.
LEVEL = 0.05
HARDLY = "block4_conv4 is hardly readable (tested as: meets lesions worse than the last convolution)"
#: Why a finding about the maps of a layer is not settled.
SHOWS_IMAGE = "this layer's maps stay alike when the weights are random (sanity check below)"


def metrics(run_dir: str | Path) -> dict:
    """Recorded numbers of all notebooks that have run, by notebook."""
    found = sorted((Path(run_dir) / "metrics").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}


def _of_patients(values: pd.Series, config: StudyConfig, sign: int = 1, smallest: float = 0.0) -> tuple[str, str]:
    """Evidence and verdict on "the mean of one value a patient, times `sign`, is above 0", and not below `smallest`."""
    values = sign * values.dropna()
    mean, share = patient_interval(values, config)
    shown = patient_interval(sign * values, config)[0]
    told = f"{interval_text(*shown)}, above 0 in {(sign * values > 0).sum()} of {len(values)} patients"
    if math.isnan(mean.low) and len(values) >= MIN_SUBJECTS and (values != 0).any():
        return told, verdict(share.low, share.high, 0.5, "half of the patients")
    found = verdict(mean.low, mean.high)
    if found == HOLDS and mean.estimate < smallest:
        found = undecided(f"above 0, but below {smallest:g}: next to nothing")
    return told, found


def _row(claim, backbone, evidence, holds):
    return {"published claim": claim, "net": backbone, "our evidence": evidence, "holds?": holds}


def _permuted_row(run_dir, backbone, protocol, accuracy):
    """What accuracy with permuted labels shows: above chance over slices or over subjects, it is leakage."""
    table = tested(read_predictions(run_dir, backbone, protocol))
    chances = {"slice": chance_level(table), "subject": chance_level(table.drop_duplicates("subject"))}
    told = "; ".join(f"over {level}s {interval_text(*accuracy[level])}, chance {chance:.2f}"
                     for level, chance in chances.items())
    found = {level: verdict(*accuracy[level][1:], chance, "chance") for level, chance in chances.items()}
    if HOLDS in found.values():
        holds = FAILS
    elif protocol == "subject_permuted":
        holds = HOLDS if found["slice"] == FAILS else found["slice"]
    elif accuracy["slice"][1] is None:
        holds = found["slice"]
    else:
        holds = undecided("labels without meaning are not learnt here; a longer training might learn them")
    claim = ("A split of slices measures the disease, not the subject" if protocol == "slice_permuted" else
             "A split of subjects does not reward labels without meaning (not above chance)")
    return _row(f"(control) {claim}", backbone, f"accuracy with permuted labels {told}", holds)


def yardstick_accuracy(numbers: dict, protocol: str) -> list | None:
    """Accuracy of the logistic yardstick beside a net: fitted to the subjects of its pre-training, if there were any.

    Parameters
    ----------
    numbers : dict
        What notebook 02 recorded.
    protocol : str

    Returns
    -------
    list or None
        Value, low, high, over subjects; None without known truth.
    """
    logistic = numbers["accuracy"].get("logistic", {})
    return logistic.get(f"{protocol}_further", logistic.get(protocol, {})).get("subject")


def accuracy_claims(run_dir: str | Path) -> list[dict]:
    """Published accuracy, controls with permuted labels, new subjects against chance, 90 % and the yardstick."""
    rows = []
    for name, numbers in metrics(run_dir).items():
        if not name.startswith("02_finetuning_"):
            continue
        backbone = name.removeprefix("02_finetuning_")
        ours = numbers["accuracy"][backbone]
        published = PUBLISHED_ACCURACY[backbone]
        rows.append(_row(f"Test accuracy at least {published:.0%} (split of slices)", backbone,
                         f"split of slices, over slices: {interval_text(*ours['slice']['slice'])}",
                         verdict(*ours["slice"]["slice"][1:], published, f"{published:.0%}")))
        rows += [_permuted_row(run_dir, backbone, protocol, ours[protocol])
                 for protocol in ("slice_permuted", "subject_permuted") if protocol in ours]
        fresh = "independent" if "independent" in ours else "subject"
        where = "independent cohort" if fresh == "independent" else "test part of the split of subjects"
        found, chance = ours[fresh]["subject"], chance_level(read_predictions(run_dir, backbone, fresh))
        rows.append(_row("(not published) The net tells the groups of new subjects apart better than chance", backbone,
                         f"{where}, subjects: {interval_text(*found)}, chance {chance:.2f}",
                         verdict(*found[1:], chance, "chance")))
        base = yardstick_accuracy(numbers, fresh)
        beside = f"; logistic yardstick {interval_text(*base)}" if base else ""
        rows.append(_row("(not published) At least 90 % of new subjects are right", backbone,
                         f"{where}, subjects: {interval_text(*found)}{beside}", verdict(*found[1:], 0.9, "90 %")))
    return rows


def _compromise_row(measures, backbone, config):
    last = last_convolution(backbone)
    rival, gain = compromise(measures, backbone)
    told, found = _of_patients(gain, config)
    ranks = rank_sums(measures, backbone).mean().rank().astype(int)
    return _row("The last convolution is the best compromise", backbone,
                f"ranks of AUPRC and of small spread, added per patient: {last} is number {ranks[last]} of "
                f"{len(ranks)}; strongest rival in one half of the patients {rival}; in the other half its rank sum "
                f"minus that of {last}: {told}", found)


def depth_claims(measures: pd.DataFrame, curves: pd.DataFrame, likeness: pd.DataFrame,
                 config: StudyConfig) -> list[dict]:
    """Shallower is more local; the last convolution is the best compromise; block4_conv4 is hardly readable."""
    rows, masked = [], bool(measures["auprc"].notna().any())
    no_masks = untestable("no lesion masks")
    for backbone in config.model.backbones:
        last = last_convolution(backbone)
        told, found = _of_patients(layer_trend(measures, backbone, "half_heat_share"), config,
                                   smallest=SMALL_RANK)
        rows.append(_row("Shallower layers are more localised, deeper ones more general", backbone,
                         "rank correlation of depth with the brain share that holds half of the heat, all layers, mean "
                         f"over patients: {told}", found))
        if not masked:
            rows += [_row(claim, backbone, "lesions unknown", no_masks) for claim in (
                "(not published) Shallower layers meet lesions better", "The last convolution is the best compromise",
                *([HARDLY] if backbone == "vgg19" else []))]
            continue
        told, found = _of_patients(layer_trend(measures, backbone, "auprc"), config, sign=-1,
                                   smallest=SMALL_RANK)
        rows.append(_row("(not published) Shallower layers meet lesions better", backbone,
                         "rank correlation of depth with AUPRC, all layers, mean over patients: "
                         f"{told}", found))
        rows.append(_compromise_row(measures, backbone, config))
        if backbone == "vgg19":
            part = curves.query("backbone == @backbone and method == 'gradcam' and measure == 'auprc'")
            shallow = part[part["layer"] == "block4_conv4"].iloc[0]
            drop = layer_difference(measures, backbone, "auprc", "block4_conv4", last, config)
            found = verdict(-drop.high, -drop.low)
            if found == FAILS and "block4_conv4" in kept_layers(likeness, backbone):
                found = undecided(SHOWS_IMAGE)
            rows.append(_row(HARDLY, backbone,
                             f"AUPRC there {interval_text(shallow['value'], shallow['low'], shallow['high'])}, chance "
                             f"{shallow['chance']:.2f}; minus {last}: {interval_text(*drop, 3)}", found))
    return rows


def kept_layers(likeness: pd.DataFrame, backbone: str) -> list[str]:
    """Layers whose Grad-CAM surely stays like itself with every layer random: it shows the image, not the net."""
    part = likeness[(likeness["backbone"] == backbone) & (likeness["measure"] == "spearman")]
    return list(part.loc[(part["number"] == part["number"].max()) & (part["low"] > 0), "layer"])


def group_claims(comparison: pd.DataFrame, lobes: pd.DataFrame, likeness: pd.DataFrame,
                 config: StudyConfig) -> list[dict]:
    """Higher 95th percentile in SPMS; frontal and temporal emphasis in SPMS."""
    rows = []
    caveat = "The 95th percentile of Grad-CAM is higher in SPMS than in RRMS"
    scales = untestable("each patient's map is of the own class, and maps of two logits differ in scale whatever the "
                        "disease")
    for backbone in config.model.backbones:
        part = comparison[(comparison["backbone"] == backbone) & (comparison["layer"] == last_convolution(backbone))]
        if part.empty:
            rows.append(_row(caveat, backbone, "", untestable("no explained patients of both groups")))
        for one in part.to_dict("records"):
            apart = one["auc"] in (0, 1) and min(one["n_more"], one["n_less"]) >= MIN_SUBJECTS
            told = (f"{one['auc']:.0f} (no interval: the groups lie wholly apart)" if apart else
                    interval_text(one["auc"], one["low"], one["high"]))
            rows.append(_row(caveat, backbone, f"last convolution, P(SPMS > RRMS): {told}, p after Holm for all layers "
                             f"and nets {one['p_holm']:.2g} (n = {one['n_more']} and {one['n_less']})",
                             scales))
        part = lobes[(lobes["group"] == "SPMS") & (lobes["backbone"] == backbone)]
        for lobe in ("frontal", "temporal"):
            claim = f"{lobe.capitalize()} emphasis in SPMS (more than even heat)"
            if part.empty:
                rows.append(_row(claim, backbone, "", untestable("no such group (SPMS) among the explained patients")))
                continue
            one = part[part["lobe"] == lobe].iloc[0]
            others = lobes.query("group == 'RRMS' and backbone == @backbone and lobe == @lobe").to_dict("records")
            beside = f" (RRMS {interval_text(*(others[0][key] for key in ('value', 'low', 'high')))})" if others else ""
            found = verdict(one["low"], one["high"], one["brain"], "the brain's share")
            if found == HOLDS and last_convolution(backbone) in kept_layers(likeness, backbone):
                found = undecided(SHOWS_IMAGE)
            elif found == HOLDS and any(not other["high"] < one["low"] for other in others):
                found = undecided("not surely more than in RRMS, so no property of SPMS")
            rows.append(_row(claim, backbone,
                             f"share of the heat {interval_text(one['value'], one['low'], one['high'])}{beside}, of "
                             f"the brain {one['brain']:.2f}", found))
    return rows


def sanity_claims(likeness: pd.DataFrame, config: StudyConfig) -> list[dict]:
    """Cascading randomisation: with all layers random, no layer's map keeps its likeness to the original."""
    rows = []
    for backbone in config.model.backbones:
        part = likeness[(likeness["backbone"] == backbone) & (likeness["measure"] == "spearman")]
        end = part[part["number"] == part["number"].max()].set_index("layer")
        judged = end[end["low"].notna()]
        claim = "(sanity check) Grad-CAM forgets the image when all layers of blocks 4 and 5 are random"
        if judged.empty:
            rows.append(_row(claim, backbone, "", untestable("too few subjects for an interval")))
            continue
        kept, most = kept_layers(likeness, backbone), judged["value"].idxmax()
        mute = len(end) - len(judged)
        found = FAILS if kept else HOLDS if not mute else undecided(f"{mute} of {len(end)} layers without an interval")
        rows.append(_row(claim, backbone, "rank correlation with the original map, one random draw: largest "
                         f"{interval_text(*judged.loc[most, ['value', 'low', 'high']])} at {most}; above 0 at "
                         f"{len(kept)} of {len(judged)} layers{': ' if kept else ''}{', '.join(kept)}", found))
    return rows


def claims_table(run_dir: str | Path, measures: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """All claims as a table: published claim, net, our evidence, holds?"""
    tables = Path(run_dir) / "tables"
    read = {name: pd.read_csv(tables / f"{name}.csv")
            for name in ("depth_curves", "percentile_comparison", "lobes", "randomisation")}
    trained = accuracy_claims(run_dir) if config.cohort.source != "open_ms" else [
        _row("Test accuracy 93 % (VGG16) and 95 % (VGG19)", backbone, "",
             untestable("nothing is trained on these patients; there are no healthy controls"))
        for backbone in config.model.backbones]
    rows = [*trained, *depth_claims(measures, read["depth_curves"], read["randomisation"], config),
            *group_claims(read["percentile_comparison"], read["lobes"], read["randomisation"], config),
            *sanity_claims(read["randomisation"], config), *attribution_claims(run_dir, metrics(run_dir), config),
            *sleep_rows(run_dir, config)]
    return pd.DataFrame(rows)


def load_measures(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """Measures of all nets as notebook 03 left them."""
    tables = []
    for backbone in config.model.backbones:
        for path in sorted((Path(run_dir) / "maps" / backbone).glob("sub-*.csv")):
            if path.stat().st_size > 1:
                tables.append(pd.read_csv(path, dtype={"subject": str}).assign(backbone=backbone))
    return pd.concat(tables, ignore_index=True)
