"""Claims as rows (text, table, query, border) and the one function that judges them."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import pandas as pd

from mslib.measure import interval_text
from mslib.show import label_of

HOLDS, FAILS, OPEN, UNTESTABLE = "holds", "does not hold", "undecided", "not testable"
#: Of a claim that the simulator has planted; of an accuracy that simulated patients cannot refute; of an accuracy over
#: people that the network has learnt from.
RECOVERED, LOST = "recovered in simulation", "not recovered in simulation"
UNREACHED = "not reached in simulation"
LEAKY = "reproduced; not evidence of generalisation"
#: Fewer subjects give no verdict.
LEAST_SUBJECTS = 6
#: Three tables: what was published, controls of the method, checks of this study.
PUBLISHED, CONTROL, CHECK = "published", "control", "check"


@dataclass(frozen=True)
class Claim:
    """One claim about rows of a table with ``value, low, high``: their intervals lie above a border."""

    text: str
    source: str  # who claims it
    kind: str  # `PUBLISHED`, `CONTROL` or `CHECK`
    table: str  # that a notebook has saved
    query: str  # pandas query of the rows; all of them have to pass
    border: float | str = 0.0  # number, or column that holds it
    evidence: str = ""  # what the value is
    direction: str = "above"  # or "below", or "not above": some intervals may include the border
    by: str = "backbone"  # column whose values get a verdict each, where the table has it
    least: float = 0.0  # distance from the border below which a passed test is next to nothing, and so undecided
    #: Tables, queries (of rows with the same value of `by`) and reasons: such rows make the verdict `spoils` undecided.
    unless: tuple[tuple[str, str, str], ...] = ()
    spoils: str = HOLDS
    refutes: str = ""  # why passing does not make the claim hold: it can only be refuted
    #: Of sleep: whether the simulator has put it in; of simulated nights no more can be recovered, the rest not tested.
    planted: bool | None = None
    holds: str = HOLDS  # the verdict in place of it
    conjunction: bool = True  # one row that fails refutes the claim; else rows that differ leave it undecided


def verdict(low: float, high: float, border: float = 0.0, direction: str = "above") -> tuple[str, str]:
    """Verdict and reason: does an interval lie where it is claimed to lie (`Claim.direction`)?"""
    if math.isnan(low) or math.isnan(high) or math.isnan(border):
        return UNTESTABLE, "no interval: too few subjects, or all resamples alike"
    if direction == "not above":
        return (FAILS if low > border else HOLDS), ""
    if low > border or high < border:
        return (HOLDS if (low > border) == (direction == "above") else FAILS), ""
    return OPEN, "the interval includes the border"


def _border(claim, row) -> float:
    return float(row[claim.border] if isinstance(claim.border, str) else claim.border)


def _of_row(claim: Claim, row: dict) -> tuple[str, str]:
    border = _border(claim, row)
    found = verdict(float(row["low"]), float(row["high"]), border, claim.direction)
    if row.get("subjects", LEAST_SUBJECTS) < LEAST_SUBJECTS:
        return UNTESTABLE, f"fewer than {LEAST_SUBJECTS} subjects ({row['subjects']:.0f})"
    if found[0] == HOLDS and abs(float(row["value"]) - border) < claim.least:
        return OPEN, f"less than {claim.least:g} from the border: next to nothing"
    return found


def _of_training(claim: Claim, rows: list[dict]) -> tuple[str, str]:
    """Verdict of all rows of one training together."""
    found = [_of_row(claim, row) for row in rows]
    failed = [one for one in found if one[0] == FAILS]
    if failed and len(failed) < len(found) and not claim.conjunction:
        return OPEN, "not alike in all rows"
    return failed[0] if failed else next((one for one in found if one[0] != HOLDS), found[0])


def _decide(claim: Claim, rows: list[dict], read: Callable[[str], pd.DataFrame], owner) -> tuple[str, str]:
    """Verdict of all trainings, and what speaks against it."""
    seeds: dict = {}
    for row in rows:
        seeds.setdefault(row.get("seed"), []).append(row)
    each = [_of_training(claim, part) for part in seeds.values()]
    if len({one[0] for one in each}) > 1:
        return OPEN, "seeds disagree: " + ", ".join(f"{seed} {one[0]}" for seed, one in zip(seeds, each))
    if each[0][0] == HOLDS and claim.refutes:
        return OPEN, claim.refutes
    for table, query, reason in claim.unless if each[0][0] == claim.spoils else ():
        spoiling = read(table)
        spoiling = spoiling.query(query) if len(spoiling) else spoiling
        if len(spoiling[spoiling[claim.by] == owner] if claim.by in spoiling else spoiling):
            return OPEN, reason
    return each[0][0], "; ".join(dict.fromkeys(reason for _, reason in each if reason))


def judge(claims: list[Claim], read: Callable[[str], pd.DataFrame], simulated: Collection[str] = ()) -> pd.DataFrame:
    """Judge claims by the tables that notebooks have saved.

    Parameters
    ----------
    claims : list of Claim
    read : callable
        Table by name; empty where there is none.
    simulated : collection of {"patients", "nights"}
        Which data are.

    Returns
    -------
    DataFrame
        ``kind, claim, source, network, evidence, verdict, reason``: one row per claim and network.
    """
    nights, judged = "nights" in simulated, []
    for claim in claims:
        table = read(claim.table)
        rows = table.query(claim.query) if len(table) else table
        words = {HOLDS: claim.holds}
        if claim.planted and nights:
            words = {HOLDS: RECOVERED, FAILS: LOST}
        if claim.holds == LEAKY and "patients" in simulated:
            words[FAILS] = UNREACHED
        groups = [("", rows)]
        if claim.by in rows and len(rows):
            groups = rows.groupby(claim.by, sort=False)
        for owner, part in groups:
            part, evidence = part.to_dict("records"), ""
            decided, reason = UNTESTABLE, "not measured in this study"
            if part:
                borders = ", ".join(sorted({f"{_border(claim, row):.3g}" for row in part}))
                evidence = f"{claim.evidence}: {'; '.join(map(interval_text, part))}; border {borders}"
                decided, reason = _decide(claim, part, read, owner)
                if nights and claim.planted is False:
                    decided, reason = UNTESTABLE, "the simulated nights do not contain it"
            judged.append({"kind": claim.kind, "claim": claim.text, "source": claim.source, "network": owner,
                           "evidence": evidence, "verdict": words.get(decided, decided), "reason": reason})
    return pd.DataFrame(judged)


HONG, COMPANION = "Hong and Zhang 2021", "Hong and Zhang 2021, companion paper (abstract)"
JIN, ADEBAYO, ELLIS, STUDY = "Jin et al. 2022", "Adebayo et al. 2018", "Ellis et al. 2021", "this study"
#: Accuracy of every training; the deepest randomisation; layers whose maps show the image and not the network.
ACCURACY = "measure == 'accuracy' and backbone in ('vgg16', 'vgg19')"
BALANCED = ACCURACY.replace("'accuracy'", "'balanced_accuracy'")
RANDOM = "measure == 'spearman' and all_random"
LAST = "((backbone == 'vgg16' and layer == 'block5_conv3') or (backbone == 'vgg19' and layer == 'block5_conv4'))"
SHOWS_IMAGE = "this layer's maps stay alike when the weights are random"

CLAIMS: list[Claim] = [
    # Accuracy (notebook 02)
    *(Claim(f"Test accuracy at least {border:.0%} ({backbone.upper()}, slice-level split)", HONG, PUBLISHED, "accuracy",
            f"{ACCURACY} and protocol == 'published' and level == 'slice' and backbone == '{backbone}'", border,
            "accuracy over slices", holds=LEAKY) for backbone, border in (("vgg16", 0.93), ("vgg19", 0.95))),
    Claim("A slice-level split measures the disease, not the subject", STUDY, CONTROL, "accuracy",
          f"{BALANCED} and protocol == 'published_permuted' and level == 'slice'", "chance",
          "balanced accuracy over slices of a network trained on permuted labels", direction="not above",
          refutes="not surely above chance, which is no proof that nothing leaks"),
    Claim("A subject-level split does not reward permuted labels", STUDY, CONTROL, "accuracy",
          f"{BALANCED} and protocol == 'folds_permuted' and level == 'slice'", "chance",
          "balanced accuracy over slices of last layers trained on permuted labels, in folds", direction="not above",
          refutes="not surely above chance, which is no proof that nothing is learnt"),
    *(Claim(text, STUDY, CHECK, "accuracy", f"{ACCURACY} and protocol == 'independent' and level == 'subject'", border,
            "accuracy over independent subjects") for text, border in (
          ("New subjects are classified better than by chance", "chance"),
          ("At least 90 % of new subjects are classified correctly", 0.9))),
    # Depth (notebook 03)
    Claim("Shallower layers are more localised (attribution on less of the brain), deeper ones more general", HONG,
          PUBLISHED, "depth_tests", "kind == 'published' and test == 'spread with depth, beyond untrained'", "border",
          "rank correlation of depth with the brain share that holds half of the map, minus that of untrained networks",
          least=0.1, unless=(("depth_tests", "kind == 'published' and test == 'spread with depth' and not low > border",
                              "the rank correlation itself is not surely above 0"),)),
    Claim("The last convolution is the best compromise", HONG, PUBLISHED, "depth_tests",
          "kind == 'published' and test == 'last convolution over rival'", "border",
          "rank sum of the strongest rival (chosen on other patients) minus that of the last convolution"),
    Claim("block4_conv4 of VGG19 is hard to read (tested as: overlaps lesions worse than the last convolution)", HONG,
          PUBLISHED, "depth_tests", "test == 'hard layer minus last'", "border",
          "difference in AUPRC, under both splits", direction="below", conjunction=False,
          unless=(("randomisation", f"{RANDOM} and kind == 'published' and low > 0 and layer == 'block4_conv4'",
                   SHOWS_IMAGE),), spoils=FAILS),
    Claim("The 95th percentile of Grad-CAM is higher in SPMS than in RRMS", COMPANION, PUBLISHED,
          "percentile_comparison", f"kind == 'published' and {LAST}", 0.5, "last convolution, P(SPMS > RRMS)",
          refutes="each patient's map explains the own class, and maps of two logits differ in scale"),
    *(Claim(f"{lobe.capitalize()} emphasis in SPMS (more than a uniform map)", HONG, PUBLISHED, "lobes",
            f"kind == 'published' and group == 'SPMS' and lobe == '{lobe}'", "brain",
            "share of the map, last convolution",
            unless=(("randomisation", f"{RANDOM} and kind == 'published' and low > 0 and {LAST}", SHOWS_IMAGE),
                    ("lobes",
                     f"kind == 'published' and group == 'SPMS' and lobe == '{lobe}' and not exceeds_others",
                     "not surely more than in RRMS, so no property of SPMS")))
      for lobe in ("frontal", "temporal")),
    Claim("The map that goes furthest finds lesions better than the activations of its layer alone", STUDY, CHECK,
          "over_activations", "kind == 'cause'", 0.0, "AUPRC minus that of the activations, slice by slice",
          refutes="the map was chosen on the same slices"),
    Claim("Shallower layers overlap lesions better", STUDY, CHECK, "depth_tests",
          "kind == 'honest' and test == 'auprc with depth'", "border",
          "rank correlation of depth with AUPRC", direction="below", least=0.1),
    Claim("Grad-CAM of a random network is no more like the original than another patient's map is", ADEBAYO, CONTROL,
          "randomisation", f"{RANDOM} and kind == 'honest'", 0.0,
          "rank correlation with the original map minus that of another patient's map, layer by layer",
          direction="not above", refutes="no layer is surely above, which is no proof that none is"),
    Claim("Networks that only lesions can decide detect lesions of 100 mm2 and more, and pass slices without", STUDY,
          CONTROL, "psychometric", "lesions in ('lesion-free', '100 or more')", 0.95,
          "accuracy over slices of unseen people"),
    # Sixteen methods and LRP against a known decision rule (notebooks 04 and 05)
    Claim("Guided BackProp and Guided Grad-CAM come nearest to known truth (MSFI .49, .42)", JIN, PUBLISHED,
          "msfi_advantage", "index >= 0", 0.0, "MSFI minus that of the best other method"),
    Claim("Grad-CAM finds nothing of known truth (MSFI .02, on a map of 2 x 2 x 2)", JIN, PUBLISHED,
          "gradcam_msfi_by_layer", "method == 'gradcam' and layer == 'block5_conv3'", "chance",
          "MSFI at the last convolution, one network a sequence", direction="not above", conjunction=False,
          refutes="not surely above chance, which is no proof that it finds nothing"),
    *(Claim(f"Guided BackProp and Guided Grad-CAM keep their maps when {what} are random", ADEBAYO, kind,
            "randomisation_methods", f"random == '{random}' and method in ('guided_backprop', 'guided_gradcam')", 0.5,
            "similarity to the original map", conjunction=False)
      for what, kind, random in (("the higher layers", PUBLISHED, "block 5 and logits"),
                                 ("all weights", CHECK, "all layers"))),
    Claim("An earlier layer repairs Grad-CAM", STUDY, CHECK, "gradcam_layer_gain", "method == 'gradcam'", 0.0,
          "gain in MSFI of the best layer over the last one and over chance", conjunction=False),
    *(Claim(f"{label_of(rule)} gives the decisive sequence the largest share"
            + (f" over its share of the summed {'distance from the mean' if rule.endswith('_centred') else 'intensity'}"
               if kind == "over intensity" else ""), STUDY, CONTROL,
            "relevance_known_rule_margins", f"kind == '{kind}' and rule == '{rule}'", 0.0,
            "share of the decisive sequence minus the largest other, one network a sequence")
      for rule in ("epsilon_plus", "epsilon_plus_centred", "epsilon", "epsilon_centred", "alpha2_beta1",
                   "alpha2_beta1_centred", "gamma", "gamma_centred")
      for kind in ("absolute", "over intensity")),
    # Sleep staging (notebook 06)
    *(Claim(text, ELLIS, PUBLISHED, "sleep_differences", query, 0.0,
            "difference of two shares of the relevance in percentage points, correctly classified epochs",
            # Simulated wake shows best in EEG and EMG, and over all stages EOG tells as much as EEG.
            planted=not text.startswith(("Awake", "Overall")))
      for text, query in (
          ("Overall relevance EEG > EOG > EMG",
           "stage == 'overall' and ((more == 'EEG' and less == 'EOG') or (more == 'EOG' and less == 'EMG'))"),
          ("Awake: EEG and EOG above EMG", "stage == 'W' and more in ('EEG', 'EOG') and less == 'EMG'"),
          ("NREM1: EEG and EOG above EMG", "stage == 'N1' and more in ('EEG', 'EOG') and less == 'EMG'"),
          ("NREM2: EEG highest", "stage == 'N2' and more == 'EEG'"),
          ("NREM3: EEG highest", "stage == 'N3' and more == 'EEG'"),
          ("REM: EOG highest", "stage == 'REM' and more == 'EOG'"))),
    Claim("Relevance is more consistent over folds when classified correctly than when not", ELLIS, PUBLISHED,
          "sleep_consistency", "index >= 0", 0.0,
          "SD between folds, misclassified minus correct, beyond that of random folds, percentage points",
          planted=False),
    *(Claim(text, ELLIS, PUBLISHED, "sleep_effects_corrected", query, 0.0,
            "size of the effect in percentage points, limits corrected for all tests",
            planted=not text.startswith("Medication"))  # simulated temazepam acts on EEG alone in N2
      for text, query in (
          ("Medication is associated with the relevance of EEG and EOG in NREM2",
           "term == 'drug' and stage == 'N2' and modality in ('EEG', 'EOG')"),
          ("Sex is associated with the relevance of EEG", "term == 'woman' and modality == 'EEG' and strongest"),
          ("Age is associated with the relevance of EOG", "term == 'decade' and modality == 'EOG' and strongest"))),
]
