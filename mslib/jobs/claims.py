"""The published claims beside the study's own evidence: each row is decided by numbers, never by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from mslib.study import StudyConfig

from .depth import last_convolution, layer_difference
from .record import interval_text

PUBLISHED_ACCURACY = {"vgg16": 0.93, "vgg19": 0.95}


def metrics(run_dir: str | Path) -> dict:
    """Recorded numbers of all notebooks that have run, by notebook."""
    found = sorted((Path(run_dir) / "metrics").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}


def _verdict(low: float, high: float, border: float = 0.0) -> str:
    """Whether an interval lies above the border, below it, or leaves the question open."""
    if low > border:
        return "yes"
    return "no" if high < border else "open"


def _row(claim, backbone, evidence, holds):
    return {"published claim": claim, "net": backbone, "our evidence": evidence, "holds?": holds}


def accuracy_claims(run_dir: str | Path) -> list[dict]:
    """Published accuracy, leakage, independent cohort against the yardstick."""
    rows = []
    for name, numbers in metrics(run_dir).items():
        if not name.startswith("02_finetuning_"):
            continue
        backbone = name.removeprefix("02_finetuning_")
        ours = numbers["accuracy"][backbone]
        published = PUBLISHED_ACCURACY[backbone]
        value = ours["slice"]["slice"][0]
        rows.append(_row(f"Test accuracy {published:.0%} (split of slices)", backbone,
                         f"slice-wise split: {interval_text(*ours['slice']['slice'])}",
                         "yes" if value >= published else "no"))
        permuted = ours["slice_permuted"]["slice"]
        rows.append(_row("(not published) The slice-wise split measures the disease", backbone,
                         f"with permuted labels it still gives {interval_text(*permuted)}, chance is about a third",
                         "no, it leaks" if permuted[1] > 0.4 else "open"))
        if "independent" in ours:
            base = numbers["accuracy"].get("logistic", {}).get("independent", {}).get("subject")
            beside = f"; logistic yardstick {interval_text(*base)}" if base else ""
            enough = ours["independent"]["subject"][0] >= 0.9
            rows.append(_row("(not published) It generalises to new subjects (at least 90 %)", backbone,
                             f"independent cohort, subjects: {interval_text(*ours['independent']['subject'])}{beside}",
                             "yes" if enough else "no"))
    return rows


def depth_claims(measures: pd.DataFrame, curves: pd.DataFrame, config: StudyConfig) -> list[dict]:
    """Shallower is more local; the last convolution is the best compromise; block4_conv4 is hardly readable."""
    rows = []
    for backbone in config.model.backbones:
        last = last_convolution(backbone)
        spread = layer_difference(measures, backbone, "half_heat_share", last, "block5_conv1", config)
        rows.append(_row("Shallower layers are more localised, deeper ones more general", backbone,
                         f"brain share with half of the heat, {last} minus block5_conv1: {interval_text(*spread, 3)}",
                         _verdict(spread.low, spread.high)))
        part = curves.query("backbone == @backbone and method == 'gradcam' and measure == 'auprc'")
        ranked = part.sort_values("value", ascending=False)
        best, rival = ranked.iloc[0], last if ranked["layer"].iloc[0] != last else str(ranked["layer"].iloc[1])
        gain = layer_difference(measures, backbone, "auprc", str(best["layer"]), rival, config)
        clear = "yes" if best["layer"] == last else "no"
        rows.append(_row("The last convolution is the best compromise", backbone,
                         f"best AUPRC at {best['layer']}, {interval_text(best['value'], best['low'], best['high'])}; "
                         f"more than {rival} by {interval_text(*gain, 3)}", clear if gain.low > 0 else "open"))
        if backbone == "vgg19":
            shallow = part[part["layer"] == "block4_conv4"].iloc[0]
            drop = layer_difference(measures, backbone, "auprc", "block4_conv4", last, config)
            rows.append(_row("block4_conv4 is hardly readable", backbone,
                             f"AUPRC there {interval_text(shallow['value'], shallow['low'], shallow['high'])}, chance "
                             f"{shallow['chance']:.2f}; minus {last}: {interval_text(*drop, 3)}",
                             _verdict(-drop.high, -drop.low)))
    return rows


def group_claims(comparison: pd.DataFrame, lobes: pd.DataFrame) -> list[dict]:
    """Higher 95th percentile in SPMS; frontal and temporal emphasis in SPMS."""
    rows = []
    for backbone, part in comparison.groupby("backbone"):
        one = part[part["layer"] == last_convolution(backbone)].iloc[0]
        rows.append(_row("The 95th percentile of Grad-CAM is higher in SPMS than in RRMS", backbone,
                         f"last convolution, P(SPMS > RRMS): {interval_text(one['auc'], one['low'], one['high'])}, "
                         f"Holm p = {one['p_holm']:.2g}", _verdict(one["low"], one["high"], 0.5)))
    for backbone, part in lobes[lobes["group"] == "SPMS"].groupby("backbone"):
        for lobe in ("frontal", "temporal"):
            one = part[part["lobe"] == lobe].iloc[0]
            rows.append(_row(f"{lobe.capitalize()} emphasis in SPMS", backbone,
                             f"heat {interval_text(one['value'], one['low'], one['high'])}, brain {one['brain']:.2f}",
                             _verdict(one["low"], one["high"], one["brain"])))
    return rows


def claims_table(run_dir: str | Path, measures: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """All claims as a table: published claim, net, our evidence, holds?"""
    tables = Path(run_dir) / "tables"
    read = {name: pd.read_csv(tables / f"{name}.csv") for name in ("depth_curves", "percentile_comparison", "lobes")}
    rows = [*accuracy_claims(run_dir), *depth_claims(measures, read["depth_curves"], config),
            *group_claims(read["percentile_comparison"], read["lobes"])]
    return pd.DataFrame(rows)


def load_measures(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """Measures of all nets as notebook 03 left them."""
    tables = []
    for backbone in config.model.backbones:
        for path in sorted((Path(run_dir) / "maps" / backbone).glob("sub-*.csv")):
            if path.stat().st_size > 1:
                tables.append(pd.read_csv(path, dtype={"subject": str}).assign(backbone=backbone))
    return pd.concat(tables, ignore_index=True)
