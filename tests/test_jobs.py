"""Jobs on made-up runs: planted differences are found, claims decided rightly, results published alike twice."""

import base64
import io
import json
import os
import subprocess
import sys

import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from repository import ROOT

from mslib.__main__ import main
from mslib.jobs import claims, cohort, depth, explained, finetuning, maps, report, words
from mslib.jobs.lobes import LOBES, TEMPLATE_PLACE, brain_top, lobe_labels, lobe_shares
from mslib.jobs.publish import clean_notebook, executed_notebooks, lighter, publish
from mslib.jobs.record import interval_text, record
from mslib.study import StudyConfig, StudyError, load_config, write_table, write_text

CONFIG = StudyConfig(study="test", model={"backbones": ["vgg19"]}, statistics={"bootstrap": 300})
LAYERS = ["block4_conv4", "block4_pool", "block5_conv1", "block5_conv4", "block5_pool"]
LAST = {"vgg19": "block5_conv4"}
#: Planted means per layer of LAYERS, with the names of the measures.
PLANTED = {"auprc": [0.10, 0.30, 0.60, 0.40, 0.35], "half_heat_share": [0.05, 0.08, 0.10, 0.20, 0.30]}


def make_measures(planted=PLANTED, q95=(1.0, 2.0), noise=0.01, seed=0):
    """Measures of 16 patients x 5 slices.

    Every slice has an offset that all its layers share (0 on average); the n-th patients of both groups have the same
    deviation of the 95th percentile, so that equal means are equal distributions.
    """
    rng = np.random.default_rng(seed)
    offsets = rng.normal(0, 0.1, (16, 5))
    offsets -= offsets.mean()
    deviations = rng.normal(0, 0.1, 8)
    rows = []
    for number in range(16):
        group = ["RRMS", "SPMS"][number % 2]
        for index in range(5):
            for position, layer in enumerate(LAYERS):
                row = {"backbone": "vgg19", "method": "gradcam", "layer": layer, "subject": f"{number:03d}",
                       "group": group, "slice": index, "blank": False, "q95": q95[number % 2] + deviations[number // 2]}
                for name in depth.MEASURES:
                    mean = planted.get(name, PLANTED["auprc"])[position]
                    row |= {name: mean + offsets[number, index] + rng.normal(0, noise), f"{name}_chance": 0.05}
                for lobe in LOBES:
                    row |= {f"lobe {lobe}": 0.1 + rng.normal(0, 0.005), f"brain {lobe}": 1 / 6}
                row["lobe frontal"] = 0.5 + rng.normal(0, 0.02)
                rows.append(row)
    return pd.DataFrame(rows)


# Measures over depth


def test_layers_are_ordered_by_depth():
    shuffled = ["block5_pool", "block4_pool", "block5_conv1", "block4_conv4", "block5_conv4"]
    assert depth.layers_of(pd.DataFrame({"layer": shuffled * 2})) == LAYERS


def test_planted_means_are_found():
    measures = make_measures()
    table = depth.depth_table(measures, CONFIG)
    assert len(table) == len(LAYERS) * len(depth.MEASURES)
    curve = table[table["measure"] == "auprc"].set_index("layer")
    for layer, mean in zip(LAYERS, PLANTED["auprc"]):
        row = curve.loc[layer]
        assert row["low"] < mean < row["high"] and abs(row["value"] - mean) < 0.005
        assert (row["slices"], row["subjects"], row["blank"]) == (80, 16, 0) and row["chance"] == pytest.approx(0.05)
    assert depth.best_layer(table, "vgg19") == "block5_conv1"


def test_a_layer_that_is_mostly_blank_is_not_the_best():
    measures = make_measures()
    table = depth.depth_table(measures, CONFIG)
    others = table[(table["measure"] == "auprc") & (table["layer"] != "block5_conv1")]
    second = others.loc[others["value"].idxmax(), "layer"]
    rows = measures.index[measures["layer"] == "block5_conv1"]
    for blank, best in ((40, "block5_conv1"), (41, second)):
        lost = measures.assign(blank=measures["blank"] | measures.index.isin(rows[:blank]))
        assert depth.best_layer(depth.depth_table(lost, CONFIG), "vgg19") == best
    assert depth.best_layer(table.assign(mostly_blank=True), "vgg19") == "block5_conv1", "all alike: the highest of all"


def test_a_sure_trend_of_next_to_nothing_is_undecided():
    values = pd.Series(0.05 + 0.01 * np.sin(np.arange(20)), index=[f"{i:02d}" for i in range(20)])
    assert claims._of_patients(values, CONFIG)[1] == "holds"
    assert claims._of_patients(values, CONFIG, smallest=0.1)[1].startswith("undecided: above 0, but below 0.1")
    assert claims._of_patients(values + 0.1, CONFIG, smallest=0.1)[1] == "holds"


def test_blank_maps_are_counted_not_averaged():
    measures = make_measures()
    blank = (measures["layer"] == "block5_pool") & (measures["slice"] == 0)
    measures.loc[blank, "blank"] = True
    measures.loc[blank, list(depth.MEASURES)] = np.nan
    row = depth.depth_table(measures, CONFIG).query("layer == 'block5_pool' and measure == 'auprc'").iloc[0]
    assert row["blank"] == 16 and row["low"] < 0.35 < row["high"]


def test_differences_are_paired():
    """The slices' common offset (SD 0.1) cancels: the interval is that of the noise (SD 0.01)."""
    found = depth.layer_difference(make_measures(), "vgg19", "auprc", "block5_conv1", "block5_conv4", CONFIG)
    assert found.low < 0.2 < found.high and found.high - found.low < 0.01


@pytest.mark.parametrize("q95,holds", [((1.0, 2.0), "holds"), ((2.0, 1.0), "does not hold"),
                                       ((1.0, 1.0), "undecided")])
def test_direction_of_the_percentile_comparison(q95, holds):
    measures = make_measures(q95=q95, seed=3)
    table = depth.percentile_comparison(measures, CONFIG)
    row = table[table["layer"] == "block5_conv4"].iloc[0]
    assert (row["n_more"], row["n_less"]) == (8, 8)
    assert (table["p_holm"] >= table["p"]).all()
    if holds == "undecided":
        assert row["low"] < row["auc"] == 0.5 < row["high"]
    else:
        assert row["auc"] == (holds == "holds") and (row["p"] < 0.001) == (holds == "holds")
        assert np.isnan(row["low"]), "groups wholly apart have no interval"
    row = claims.group_claims(table, depth.lobe_table(measures, LAST, CONFIG), likeness(), CONFIG)[0]
    assert row["holds?"].startswith("not testable: each patient's map is of the own class"), "whatever the direction"
    assert ("the groups lie wholly apart" in row["our evidence"]) == (holds != "undecided")
    values = depth.percentile_values(measures, LAST)
    assert values.groupby("group")["value"].mean().to_dict() == pytest.approx({"RRMS": q95[0], "SPMS": q95[1]}, abs=0.1)


def test_no_comparison_without_the_second_group():
    measures = make_measures().query("group == 'RRMS'")
    table = depth.percentile_comparison(measures, CONFIG)
    assert table.empty and "p_holm" in table
    rows = claims.group_claims(table, depth.lobe_table(measures, LAST, CONFIG), likeness(), CONFIG)
    assert len(rows) == 3 and all(row["holds?"].startswith("not testable: no ") for row in rows)


def test_randomisation_summary():
    table = pd.DataFrame([{"backbone": "vgg19", "layer": "block5_conv4", "step": step, "randomised": name,
                           "subject": f"{i:02d}", "spearman": value + 0.01 * (i % 3 - 1), "ssim": value, "blank": False}
                          for step, (name, value) in enumerate([("none", 1.0), ("logits", 0.2)]) for i in range(9)])
    found = depth.randomisation_summary(table, CONFIG).query("measure == 'spearman'")
    assert found["step"].tolist() == ["none", "logits"] and found["number"].tolist() == [0, 1]
    np.testing.assert_allclose(found["value"], [1.0, 0.2], atol=1e-9)


# Claims


def verdicts(measures):
    curves = depth.depth_table(measures, CONFIG)
    return [row["holds?"].split(":")[0] for row in claims.depth_claims(measures, curves, likeness(), CONFIG)]


def test_claims_of_depth():
    """Shallower is more local, meets lesions better; last convolution best compromise; block4_conv4 hardly readable."""
    yes, no, none = "holds", "does not hold", "undecided"
    assert verdicts(make_measures()) == [yes, no, no, yes]
    last_best = {"auprc": [0.1, 0.2, 0.3, 0.6, 0.35], "half_heat_share": [0.2, 0.21, 0.22, 0.1, 0.3]}
    assert verdicts(make_measures(last_best))[2:] == [yes, yes]
    upside_down = {"auprc": [0.7, 0.5, 0.45, 0.4, 0.35], "half_heat_share": [0.3, 0.25, 0.2, 0.1, 0.05]}
    found = verdicts(make_measures(upside_down))
    assert (found[0], found[1], found[3]) == (no, yes, no)
    flat = {name: [0.3] * 5 for name in PLANTED}
    assert verdicts(make_measures(flat, noise=0.2)) == [none] * 4


def test_trend_over_depth_uses_every_layer():
    """The outer layers rise, all of them fall (ranks 2 5 4 1 3: Spearman -0.2): two layers would say the opposite."""
    measures = make_measures({"half_heat_share": [0.4, 0.9, 0.7, 0.3, 0.5]}, noise=0.001)
    trend = depth.layer_trend(measures, "vgg19", "half_heat_share")
    assert len(trend) == 16
    np.testing.assert_allclose(trend, -0.2, atol=1e-12)
    rising = depth.layer_trend(make_measures(), "vgg19", "half_heat_share")
    mean, share = depth.patient_interval(rising, CONFIG)
    assert mean.estimate == pytest.approx(1) and np.isnan(mean.low), "all patients alike: no bootstrap interval"
    assert share.estimate == 1 and 0.75 < share.low < 1, "their share decides"


def test_the_rival_is_chosen_by_other_patients():
    """A layer that is best in the half that chooses only, and poor in the half that tests, does not win."""
    measures = make_measures(PLANTED | {"half_heat_share": [0.2] * 5}, noise=0.001)
    order = measures["subject"].astype(int).to_numpy()
    second = (order // 2) % 2 == 1
    lucky = (measures["layer"] == "block4_conv4").to_numpy()
    for name, good, poor in (("auprc", 5.0, 0.0), ("half_heat_share", 0.0, 5.0)):
        measures.loc[lucky & ~second, name] = good
        measures.loc[lucky & second, name] = poor
    rival, gain = depth.compromise(measures, "vgg19")
    assert (rival, len(gain)) == ("block4_conv4", 8) and (gain > 0).all()


def test_no_masks_no_claims_about_lesions():
    measures = make_measures()
    measures[["auprc", "auprc_chance", "pointing", "mass_share", "iou"]] = np.nan
    found = verdicts(measures)
    assert found == ["holds", "not testable", "not testable", "not testable"]
    assert depth.best_layer(depth.depth_table(measures, CONFIG), "vgg19") is None


def test_two_patients_decide_nothing():
    measures = make_measures().query("subject in ['000', '001']")
    table = depth.depth_table(measures, CONFIG)
    assert table["value"].notna().all() and table["low"].isna().all()
    rows = claims.depth_claims(measures, table, likeness(), CONFIG)
    assert all(row["holds?"] == "not testable: too few subjects for an interval" for row in rows)
    assert all("n < 5 subjects" in row["our evidence"] for row in rows if "compromise" not in row["published claim"])
    assert all("not measured" in row["our evidence"] for row in rows if "compromise" in row["published claim"])


def test_claims_of_lobes():
    empty = pd.DataFrame(columns=["backbone", "layer"])
    lobes = depth.lobe_table(make_measures(), LAST, CONFIG)
    rows = claims.group_claims(empty, lobes, likeness(), CONFIG)[1:]
    assert [row["holds?"].split(":")[0] for row in rows] == ["undecided", "does not hold"], "as frontal in RRMS"
    lobes.loc[(lobes["group"] == "RRMS") & (lobes["lobe"] == "frontal"), ["value", "low", "high"]] = 0.3, 0.28, 0.32
    rows = claims.group_claims(empty, lobes, likeness(), CONFIG)[1:]
    assert {row["published claim"].split()[0]: row["holds?"] for row in rows} == {
        "Frontal": "holds", "Temporal": "does not hold"}
    kept = likeness().assign(layer="block5_conv4", low=0.1)
    rows = claims.group_claims(empty, lobes, kept, CONFIG)[1:]
    assert [row["holds?"].split(":")[0] for row in rows] == ["undecided", "does not hold"], "maps of the image alone"


def test_a_layer_that_shows_the_image_settles_nothing():
    """block4_conv4 meets lesions better than the last convolution, but also with random weights."""
    better = {"auprc": [0.7, 0.5, 0.45, 0.4, 0.35], "half_heat_share": [0.3, 0.25, 0.2, 0.1, 0.05]}
    measures = make_measures(better)
    curves = depth.depth_table(measures, CONFIG)
    kept = likeness().assign(layer="block4_conv4", low=0.1)
    found = [claims.depth_claims(measures, curves, one, CONFIG)[3]["holds?"] for one in (likeness(), kept)]
    assert found[0] == "does not hold" and found[1].startswith("undecided: this layer's maps stay alike")


def accuracy(slice_wise, permuted, independent):
    return {"vgg19": {"slice": {"slice": slice_wise, "subject": slice_wise},
                      "slice_permuted": {"slice": permuted, "subject": permuted},
                      "subject_permuted": {"slice": permuted, "subject": permuted},
                      "independent": {"slice": independent, "subject": independent}},
            "logistic": {"independent": {"subject": [0.9, 0.8, 1.0]}}}


def fitted(run, shares=(19, 10, 9)):
    """Predictions whose tested slices have these classes: the majority share is 1/2, and 1/3 in the other cohort."""
    for name in ("slice", "slice_permuted", "subject_permuted", "subject"):
        target = np.repeat([0, 1, 2, 2], [*shares, 50])
        part = np.repeat(["test", "validation"], [sum(shares), 50])
        table = pd.DataFrame({"subject": [f"{i:03d}" for i in range(len(target))], "target": target, "part": part})
        write_table(run / "nets" / "vgg19" / name / "predictions.csv", pd.concat([table, table]))
    write_table(run / "nets" / "vgg19" / "independent" / "predictions.csv", pd.DataFrame({"target": [0, 1, 2]}))


ABOVE, FALLS, EVEN, OPEN = "holds", "does not hold", "undecided", "not testable"


@pytest.mark.parametrize("values,expected", [
    (([0.97, 0.96, 0.99], [0.8, 0.7, 0.9], [0.95, 0.92, 1.0]), [ABOVE, FALLS, FALLS, ABOVE, ABOVE]),
    (([0.90, 0.85, 0.94], [0.45, 0.4, 0.6], [0.6, 0.4, 0.8]), [FALLS, EVEN, EVEN, ABOVE, FALLS]),
    (([0.96, 0.93, 0.98], [0.45, 0.4, 0.6], [0.93, 0.8, 0.98]), [EVEN, EVEN, EVEN, ABOVE, EVEN]),
    (([0.96, None, None], [0.45, None, None], [0.3, 0.2, 0.4]), [OPEN, OPEN, OPEN, EVEN, FALLS])])
def test_claims_of_accuracy(tmp_path, values, expected):
    record(tmp_path, "02_finetuning_vgg19", {"accuracy": accuracy(*values)})
    fitted(tmp_path)
    rows = claims.accuracy_claims(tmp_path)
    assert [row["holds?"].split(":")[0] for row in rows] == expected
    assert interval_text(*values[0]) in rows[0]["our evidence"] and "0.90 (0.80 to 1.00)" in rows[4]["our evidence"]
    assert claims.yardstick_accuracy({"accuracy": accuracy(*values)}, "independent") == [0.9, 0.8, 1.0]
    assert "chance 0.50" in rows[1]["our evidence"] and "chance 0.33" in rows[3]["our evidence"]


def test_leakage_that_only_subjects_show_is_leakage(tmp_path):
    numbers = accuracy([.9, .8, 1], [.55, .45, .65], [.6, .4, .8])
    numbers["vgg19"]["slice_permuted"]["subject"] = [0.8, 0.6, 0.9]
    record(tmp_path, "02_finetuning_vgg19", {"accuracy": numbers})
    fitted(tmp_path)
    rows = claims.accuracy_claims(tmp_path)
    assert [row["holds?"].split(":")[0] for row in rows[1:3]] == ["does not hold", "undecided"]
    assert "over subjects 0.80 (0.60 to 0.90), chance 0.50" in rows[1]["our evidence"]


def test_the_yardstick_knows_the_subjects_of_pretraining_where_there_are_any():
    numbers = {"accuracy": {"logistic": {"independent": {"subject": [0.8]}, "independent_further": {"subject": [0.9]}}}}
    assert claims.yardstick_accuracy(numbers, "independent") == [0.9]
    assert claims.yardstick_accuracy({"accuracy": {}}, "independent") is None


def likeness(lows=(-0.3, -0.1), values=(0.0, 0.1)):
    rows = [{"backbone": "vgg19", "layer": layer, "number": number, "step": step, "measure": "spearman",
             "value": value if number else 1.0, "low": low if number else 1.0, "high": 1.0}
            for layer, low, value in zip(LAYERS, lows, values) for number, step in enumerate(["none", "block4_conv1"])]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("lows,holds,told", [
    ((-0.3, -0.1), "holds", "0.10 (-0.10 to 1.00) at block4_pool; above 0 at 0 of 2 layers"),
    ((-0.3, 0.05), "does not hold", "above 0 at 1 of 2 layers: block4_pool"),
    ((np.nan, -0.1), "undecided: 1 of 2 layers without an interval", "above 0 at 0 of 1 layers"),
    ((np.nan, 0.05), "does not hold", "above 0 at 1 of 1 layers: block4_pool"),
    ((np.nan, np.nan), "not testable: too few subjects for an interval", "")])
def test_maps_that_keep_their_likeness_fail_the_sanity_check(lows, holds, told):
    """Judged where all layers are random, not on the way there."""
    row, = claims.sanity_claims(likeness(lows), CONFIG)
    assert row["holds?"] == holds and row["our evidence"].endswith(told)


@pytest.mark.parametrize("best,chosen", [
    ("block4_conv1", [1, 3, 5, 6, 8]), ("block4_conv2", [1, 2, 5, 6, 8]), (None, [1, 3, 5, 6, 8]),
    ("block4_pool", [1, 3, "block4_pool", 6, 8])])
def test_the_headline_goes_from_shallow_to_deep_with_the_best_layer(best, chosen):
    layers = [f"block{block}_{kind}" for block in (4, 5) for kind in ("conv1", "conv2", "conv3", "conv4", "pool")]
    convolutions = [layer for layer in layers if "pool" not in layer]
    assert depth.headline_layers(layers, best) == [convolutions[one - 1] if isinstance(one, int) else one
                                                   for one in chosen]


@pytest.mark.parametrize("numbers,text", [
    ((0.93, 0.88, 0.97), "0.93 (0.88 to 0.97)"),
    ((0.93, None, None), "0.93 (no interval: n < 5 subjects, or all alike)"),
    ((0.93, float("nan"), float("nan")), "0.93 (no interval: n < 5 subjects, or all alike)"),
    ((None, None, None), "not measured")])
def test_interval_in_words(numbers, text):
    assert interval_text(*numbers) == text


def test_interval_with_its_name():
    assert interval_text(0.9, 0.8, 1.0, name="95 % interval") == "0.90 (95 % interval 0.80 to 1.00)"


def test_the_table_of_claims_is_put_together(tmp_path):
    measures = make_measures()
    record(tmp_path, "02_finetuning_vgg19", {"accuracy": accuracy([.9, .8, 1], [.9, .8, 1], [.9, .8, 1])})
    for name, table in (("depth_curves", depth.depth_table(measures, CONFIG)),
                        ("percentile_comparison", depth.percentile_comparison(measures, CONFIG)),
                        ("lobes", depth.lobe_table(measures, LAST, CONFIG)), ("randomisation", likeness())):
        write_table(tmp_path / "tables" / f"{name}.csv", table)
    for subject, part in measures.groupby("subject"):
        write_table(tmp_path / "maps" / "vgg19" / f"sub-{subject}.csv", part.drop(columns="backbone"))
    fitted(tmp_path)
    write_table(tmp_path / "maps" / "vgg19" / "sub-999.csv", pd.DataFrame())
    loaded = claims.load_measures(CONFIG, tmp_path)
    pd.testing.assert_frame_equal(loaded[measures.columns], measures.sort_values("subject", kind="stable",
                                                                                 ignore_index=True))
    table = claims.claims_table(tmp_path, loaded, CONFIG)
    assert list(table) == ["published claim", "net", "our evidence", "holds?"] and len(table) == 5 + 4 + 3 + 1


def test_numbers_that_are_none_are_recorded_as_such(tmp_path):
    record(tmp_path, "a", {"x": np.float32(1 / 3), "n": np.int64(4), "none": float("nan"), "b": True, "t": (1, "a")})
    assert json.loads((tmp_path / "metrics" / "a.json").read_text()) == {
        "x": 0.33333, "n": 4, "none": None, "b": True, "t": [1, "a"]}


def test_a_blank_map_has_no_viewer_and_is_named(tmp_path, monkeypatch, capsys):
    for name, top in (("dark", 0), ("bright", 1)):
        volume = tmp_path / f"sub-{name}_cam.nii.gz"
        data = np.zeros((4, 4, 4, 2), "float32")
        data[1, 1, 1, 1] = top
        nib.save(nib.Nifti1Image(data, np.eye(4)), volume)
        write_text(tmp_path / f"sub-{name}_cam.json", json.dumps({"Layers": ["block4_conv1", "block5_conv4"]}))
    monkeypatch.setattr(report, "volume_subjects", lambda *_: [person(id="dark"), person(id="bright")])
    monkeypatch.setattr(report, "volume_path", lambda backbone, run, subject: tmp_path / f"sub-{subject}_cam.nii.gz")
    monkeypatch.setattr(report, "write_viewer", lambda path, *_, **__: path)
    made = report.write_viewers(CONFIG, tmp_path, None)
    assert [path.name for path in made] == ["sub-bright_vgg19_block5_conv4.html"]
    assert capsys.readouterr().out == "sub-dark: the Grad-CAM of vgg19 at block5_conv4 is blank; no viewer\n"


# Lobes


def ellipsoid(mm=4.0, shift=(0.0, 0.0, 0.0)):
    """A brain-sized ellipsoid as slice stack: column 0 is right, row 0 anterior, slices upwards; RAS mm."""
    n, height, width = 44, 54, 44
    affine = np.diag([-mm, -mm, mm, 1.0])
    affine[:3, 3] = [mm * (width - 1) / 2, mm * (height - 1) / 2 - 17, 82 - mm * (n - 1) + 2 * mm]
    z, y, x = np.indices((n, height, width))
    place = np.stack([x, y, z, np.ones_like(x)], -1) @ affine.T[:, :3]
    brain = (((place - [0, -17, 7]) / [70, 88, 75]) ** 2).sum(-1) <= 1
    affine[:3, 3] += shift
    return {"brain": brain, "affine": affine}, place


def test_a_planted_blob_lies_in_its_lobe():
    stack, place = ellipsoid()
    labels = lobe_labels(stack)
    assert ((labels >= 0) == stack["brain"]).all()
    for lobe, point in (("frontal", [10, 55, 10]), ("occipital", [10, -95, 5]), ("temporal", [-58, -30, -15]),
                        ("parietal", [-40, -55, 50]), ("cerebellum", [20, -65, -38]),
                        ("insula and deep grey", [10, -15, 8])):
        blob = (np.linalg.norm(place - point, axis=-1) < 7) & stack["brain"]
        assert blob.any()
        shares = lobe_shares(blob.astype(float), labels)
        assert shares[lobe] == pytest.approx(1), (lobe, shares)
        assert sum(shares.values()) == pytest.approx(1)


def test_lobes_follow_the_head_wherever_it_lies():
    (stack, _), (moved, _) = ellipsoid(), ellipsoid(shift=(30.0, -12.0, 55.0))
    np.testing.assert_array_equal(lobe_labels(stack), lobe_labels(moved))
    assert TEMPLATE_PLACE.shape == (3,)


def test_a_stack_that_does_not_reach_the_top_is_put_in_place_by_the_mask():
    stack, _ = ellipsoid()
    whole = lobe_labels(stack)
    volume = np.transpose(stack["brain"], (2, 1, 0)).astype("uint8")
    top = brain_top(nib.Nifti1Image(volume, stack["affine"]))
    kept = slice(0, np.flatnonzero(stack["brain"].any((1, 2)))[-1] - 4)
    low = {"brain": stack["brain"][kept], "affine": stack["affine"]}
    np.testing.assert_array_equal(lobe_labels(low, top), whole[kept])
    assert (lobe_labels(low) != whole[kept]).any()


def test_chance_is_the_share_of_the_largest_tested_class():
    table = pd.DataFrame({"part": ["train", "test", "test", "test", "test"], "target": [1, 0, 0, 0, 1]})
    found = finetuning.chance_levels({"subject": table, "independent": table.drop(columns="part"), "slice": table[:0]})
    assert found == {finetuning.TITLES["subject"]: 0.75, finetuning.TITLES["independent"]: 0.6}


def test_no_heat_has_no_lobe():
    stack, _ = ellipsoid(8.0)
    assert all(np.isnan(share) for share in lobe_shares(np.zeros(stack["brain"].shape), lobe_labels(stack)).values())


class Person:
    id, group, cohort, lesion_mask = "001", "SPMS", "study", "mask"


def test_lobes_are_those_of_the_whole_brain(monkeypatch):
    """Lesions in a few low slices must not put the top of the head there."""
    stack, _ = ellipsoid()
    lesion = np.zeros_like(stack["brain"])
    lesion[[8, 12], 27, 20] = True
    stack |= {"lesion": lesion, "images": np.zeros((*lesion.shape, 3), "float16")}
    heat = np.ones((2, *lesion.shape[1:]), "float32")
    monkeypatch.setattr(maps, "layer_cams", lambda *_, **__: {"gradcam": {"block5_conv4": heat}})
    monkeypatch.setattr(maps, "upsample_maps", lambda raw, size: raw)
    table = maps._measure_subject(None, Person, stack, CONFIG)
    labels = lobe_labels(stack)[[8, 12]]
    for name, share in lobe_shares(heat, labels).items():
        weights = (labels >= 0).sum((1, 2))
        assert np.average(table[f"lobe {name}"], weights=weights) == pytest.approx(share, abs=1e-6)
    assert table["slice"].tolist() == [8, 12] and set(table["subject"]) == {"001"}


# Who is explained


def person(**changes):
    return type("Someone", (Person,), changes)


@pytest.fixture
def two_people(monkeypatch):
    people = [person(id="001", group="CIS"), person(id="002", group="RRMS"), person(id="003", lesion_mask=None)]
    monkeypatch.setattr(explained, "usable_subjects", lambda *_: people)
    return people


def test_real_patients_of_a_type_that_no_net_knows_are_left_out(two_people, tmp_path):
    config = StudyConfig(study="real", cohort={"source": "open_ms"})
    assert [one.id for one in explained.explained_subjects(config, tmp_path)] == ["002"]


def test_training_subjects_are_not_explained(two_people, tmp_path):
    with pytest.raises(StudyError, match="no fitted nets yet"):
        explained.explained_subjects(CONFIG, tmp_path)
    path = tmp_path / "nets" / "vgg19" / "subject" / "predictions.csv"
    write_table(path, pd.DataFrame({"subject": ["002", "003"], "part": ["test", "validation"]}))
    assert [one.id for one in explained.explained_subjects(CONFIG, tmp_path)] == ["002"]
    two_people[1].group = "control"
    assert [one.id for one in explained.fresh_subjects(CONFIG, tmp_path)] == ["002"], "controls too"
    write_table(path, pd.DataFrame({"subject": ["009"], "part": ["test"]}))
    with pytest.raises(StudyError, match="no patient outside training and validation") as caught:
        explained.explained_subjects(CONFIG, tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_patients_without_lesion_masks_are_explained_where_none_has_one(two_people, tmp_path):
    path = tmp_path / "nets" / "vgg19" / "subject" / "predictions.csv"
    write_table(path, pd.DataFrame({"subject": ["002", "003"], "part": "test"}))
    assert [one.id for one in explained.explained_subjects(CONFIG, tmp_path)] == ["002"], "with masks: those alone"
    write_table(path, pd.DataFrame({"subject": ["003"], "part": ["test"]}))
    assert [one.id for one in explained.explained_subjects(CONFIG, tmp_path)] == ["003"]


def test_patients_are_all_groups_but_the_controls():
    own = StudyConfig(study="own", groups=["AQP4", "MOG"], cohort={"source": "bids", "root": "data"})
    assert words.patient_groups(own) == ["AQP4", "MOG"]
    assert words.patient_groups(CONFIG) == ["RRMS", "SPMS"]


def test_without_a_mask_every_slice_is_measured_but_not_against_lesions(monkeypatch):
    stack, _ = ellipsoid(8.0)
    stack |= {"lesion": np.zeros_like(stack["brain"]), "images": np.zeros((*stack["brain"].shape, 3), "float16")}
    filled = stack["brain"].any(axis=(1, 2))
    stack = {key: value[filled] if key != "affine" else value for key, value in stack.items()}
    heat = np.ones(stack["brain"].shape, "float32")
    monkeypatch.setattr(maps, "layer_cams", lambda *_, **__: {"gradcam": {"block5_conv4": heat}})
    monkeypatch.setattr(maps, "upsample_maps", lambda raw, size: raw)
    table = maps._measure_subject(None, person(lesion_mask=None), stack, CONFIG)
    assert len(table) == filled.sum() and table["auprc"].isna().all() and table["half_heat_share"].notna().all()


def test_own_cohort_is_found_from_every_folder(tmp_path, monkeypatch):
    """Notebooks run in notebooks/, jobs in the project's folder: a relative root means the same to both."""
    config = StudyConfig(study="own", cohort={"source": "bids", "root": "data/own"})
    monkeypatch.chdir(tmp_path)
    assert cohort.bids_root(config, "run") == ROOT / "data" / "own"
    absolute = StudyConfig(study="own", cohort={"source": "bids", "root": str(tmp_path)})
    assert cohort.bids_root(absolute, "run") == tmp_path


def test_files_of_an_own_cohort_that_decide_it(tmp_path):
    """Snakemake watches them: no file that is not there, no broken link, nothing of other derivatives."""
    config = StudyConfig(study="own", cohort={"source": "bids", "root": str(tmp_path)})
    assert cohort.own_files(config) == []
    wanted = ["participants.tsv", "sub-1/ses-a/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_T2w.nii",
              "derivatives/truth/sub-1/anat/sub-1_label-lesion_mask.nii.gz"]
    for file in [*wanted, "sub-1/func/sub-1_bold.nii.gz", "derivatives/other/sub-1/anat/sub-1_T1w.nii.gz"]:
        write_text(tmp_path / file, "")
    (tmp_path / "sub-1" / "anat" / "sub-1_FLAIR.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    assert set(cohort.own_files(config)) == {tmp_path / file for file in wanted}


# Publishing


def executed(path, run):
    """What two runs of a notebook differ in: ids, times, progress bars, where printed text is cut."""
    cell = nbformat.v4.new_code_cell("print(1)", execution_count=1, metadata={
        "tags": ["injected-parameters"], "papermill": {"duration": run}, "execution": {"iopub.status.busy": str(run)}})
    cut = [("stdout", "one\n"), ("stderr", f"{run} s"), ("stdout", "two\n")]
    streams = cut if run == 1 else [("stdout", "one\ntwo\n")]
    cell.outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in streams]
    if run == 1:
        cell.outputs.append(nbformat.v4.new_output("display_data", {
            "application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "bar"}))
    cell.outputs.append(nbformat.v4.new_output("execute_result", {"text/plain": "3"}, execution_count=1))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), cell], metadata={
        "papermill": {"duration": 60.0 * run}, "widgets": {"x": run},
        "kernelspec": {"name": "python3", "display_name": "Python 3"}})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def test_two_runs_give_the_same_notebook(tmp_path):
    first, second = (clean_notebook(executed(tmp_path / f"{run}.ipynb", run)) for run in (1, 2))
    assert first == second
    notebook = nbformat.reads(first, as_version=4)
    nbformat.validate(notebook)
    printed, result = notebook.cells[1].outputs
    assert (printed["text"], result["data"]["text/plain"]) == ("one\ntwo\n", "3")
    assert notebook.cells[1].metadata == {"tags": ["injected-parameters"]}


def png(pixels):
    Image.fromarray(pixels).save(drawn := io.BytesIO(), "PNG")
    return base64.b64encode(drawn.getvalue()).decode()


def test_large_pictures_of_published_notebooks_get_a_palette_and_small_ones_stay():
    rows, columns = np.mgrid[:300, :400]
    drawn = np.stack([rows * 250 // 299, columns * 250 // 399, 100 + 0 * rows], -1)
    drawn = (drawn + np.random.default_rng(0).integers(0, 5, drawn.shape)).astype("uint8")
    large, small = png(drawn), png(drawn[:20, :20])
    assert lighter(small) == small
    assert len(lighter(large)) < len(large) and lighter(large) == lighter(large)
    with Image.open(io.BytesIO(base64.b64decode(lighter(large)))) as picture:
        assert picture.mode == "P" and picture.size == (400, 300)
        apart = np.abs(np.asarray(picture.convert("RGB"), int) - drawn)
    assert apart.mean() < 8, "256 colours for a plane of 62,500"
    assert lighter(lighter(large)) == lighter(large)


@pytest.fixture
def finished_run(tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(report, "findings", lambda *_: {"00_cohort": "38 subjects"}, raising=False)
    for name in executed_notebooks(CONFIG):
        executed(run / "notebooks" / f"{name}.ipynb", 1)
        record(run, name, {})
    write_text(run / "report.html", "<p>report</p>")
    write_table(run / "tables" / "lobes.csv", pd.DataFrame({"a": [1]}))
    record(run, "03_gradcam_layers", {"best_layer_auprc": {"vgg19": "block5_conv1"}, "patients": 16, "slices": 80,
                                      "auprc": {"vgg19": {"block5_conv1": [0.6, 0.5, 0.7, 0.05]}},
                                      "blank": {"vgg19": {"block5_conv1": 0}}})
    return run


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_publishing_twice_gives_the_same_files(finished_run, tmp_path):
    results = tmp_path / "results" / "test"
    publish(CONFIG, "config/test.yaml", finished_run, results)
    first = content(results)
    assert {"README.md", "report.html", "metrics.json", "provenance.json", "tables/lobes.csv",
            *(f"notebooks/{name}.ipynb" for name in executed_notebooks(CONFIG))} == set(first)
    assert "38 subjects" in first["README.md"].decode()
    assert "0.60 (95 % interval 0.50 to 0.70)" in first["README.md"].decode()
    (results / "tables" / "stale.csv").write_text("from an earlier run")
    publish(CONFIG, "config/test.yaml", finished_run, results)
    assert content(results) == first
    assert str(tmp_path) not in b"".join(first.values()).decode()
    assert list(results.parent.iterdir()) == [results]


def test_what_another_run_left_in_the_folder_is_not_published(finished_run, tmp_path):
    """Figures, tables and notebooks of other settings or code: this study's notebooks have not made them."""
    for name in ("figures/accuracy_vgg16.png", "tables/old.csv", "viewers/sub-9.html",
                 "metrics/02_finetuning_vgg16.json"):
        (finished_run / name).parent.mkdir(exist_ok=True)
        (finished_run / name).write_text("{}")
    executed(finished_run / "notebooks" / "02_finetuning_vgg16.ipynb", 1)
    publish(CONFIG, "config/test.yaml", finished_run, tmp_path / "results" / "test")
    assert not [name for name in content(tmp_path / "results") if "vgg16" in name or "old" in name or "sub-9" in name]
    recorded = json.loads((tmp_path / "results" / "test" / "metrics.json").read_text())
    assert set(recorded) == set(executed_notebooks(CONFIG))


def test_a_notebook_that_has_not_run_is_told_of(finished_run, tmp_path):
    (finished_run / "made" / "00_cohort.json").unlink()
    with pytest.raises(StudyError, match=r"made/00_cohort\.json: is absent or damaged .*run the same command again"):
        publish(CONFIG, "config/test.yaml", finished_run, tmp_path / "results" / "test")
    assert not (tmp_path / "results" / "test").exists()


def test_results_that_cannot_be_written(finished_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be written") as caught:
        publish(CONFIG, "config/test.yaml", finished_run, tmp_path / "file" / "test")
    assert len(str(caught.value).splitlines()) == 1


def test_an_unfinished_run_leaves_the_published_results(finished_run, tmp_path):
    results = tmp_path / "results" / "test"
    publish(CONFIG, "config/test.yaml", finished_run, results)
    first = content(results)
    (finished_run / "report.html").unlink()
    with pytest.raises(StudyError, match=r"report\.html"):
        publish(CONFIG, "config/test.yaml", finished_run, results)
    assert content(results) == first


# Command line


def test_bad_config_ends_with_status_1_and_one_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("study: bad\nmodel: {backbones: [vgg61]}")
    command = [sys.executable, "-m", "mslib", "check", "--config", "bad.yaml", "--run-dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "bad.yaml: model.backbones.0: must be 'vgg16' or 'vgg19' (got 'vgg61')\n"


@pytest.mark.parametrize("job,subject", [("simulate", "999"), ("simulate", "../001")])
def test_unknown_subject_ends_with_status_1_and_one_line(tmp_path, capsys, job, subject):
    smoke = str(ROOT / "config" / "smoke.yaml")
    assert main([job, "--config", smoke, "--run-dir", str(tmp_path), "--subject", subject]) == 1
    told = capsys.readouterr().err
    assert told == f"sub-{subject}: is not a subject of the simulated cohorts of study smoke\n"
    assert list(tmp_path.iterdir()) == []


def test_a_net_that_is_not_there_ends_with_status_1_and_one_line(tmp_path, capsys):
    smoke = str(ROOT / "config" / "smoke.yaml")
    assert main(["maps", "--config", smoke, "--run-dir", str(tmp_path / "smoke"), "--backbone", "vgg16"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "no fitted vgg16; run the study that trains it first" in told[0]


def test_unknown_job_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["simulte", "--config", "a", "--run-dir", "b"])
    assert ended.value.code == 2 and "simulate" in capsys.readouterr().err


def test_simulated_participants_are_those_of_the_config():
    config = load_config(ROOT / "config" / "smoke.yaml")
    people = cohort.participants(config)
    counts = pd.Series([one.group for one in people if not one.id.startswith("T")]).value_counts().to_dict()
    assert counts == config.cohort.simulated.study
    more = sum(config.cohort.simulated.independent.values())
    assert len({one.id for one in people}) == len(people) == sum(counts.values()) + more
