"""What a reader sees: what is drawn is what was given, figures have stable bytes."""

import functools
import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mslib import show
from mslib.study import StudyError

GROUPS = ["control", "RRMS", "SPMS"]
LAYERS = ["block5_conv1", "block5_conv2", "block5_pool"]
SEQUENCES = ["T1w", "T2w", "FLAIR"]
STAGES, MODALITIES = ["W", "N1", "N2", "N3", "REM"], ["EEG", "EOG", "EMG"]
RNG = np.random.default_rng(7)
SLICES = RNG.uniform(0, 1, (3, 16, 14)).astype(np.float32)
IMAGE = np.moveaxis(SLICES, 0, -1)
LESIONS = np.zeros(SLICES.shape, bool)
LESIONS[:, 4:7, 5:9] = True
SIGNAL = RNG.normal(0, 1, (300, 3))
RELEVANCE = np.zeros((300, 3))
RELEVANCE[100:120, 0], RELEVANCE[200:210, 1] = 1.0, -1.0


def interval_table(**columns):
    return pd.DataFrame(columns).assign(value=0.5, low=0.4, high=0.6)


def words(figure):
    """All text that stands in a figure."""
    return " ".join(text.get_text() for text in figure.findobj(Text))


def segments(ax):
    """Straight lines of an axes' collections."""
    return [segment for one in ax.collections if isinstance(one, LineCollection) for segment in one.get_segments()
            if len(segment) and np.isfinite(segment).all()]


NET_MAPS = {"vgg16": dict.fromkeys(LAYERS, SLICES[:2]), "vgg19": {LAYERS[0]: 0 * SLICES[:2]}}
SHOWN = {"slice_names": ["slice 57 of 135"] * 2, "lesions": LESIONS[:2], "pixel_mm": 8}
SCORES = pd.DataFrame({"msfi": [0.9, 0.1, np.nan], "delta": [4e-4, -2e-4, 1e-4]}, index=["deeplift", "lime", "gradcam"])
NIGHT = {"hours": np.arange(20) / 120, "scored": np.arange(20) // 4, "predicted": np.full(20, 2),
         "shares": np.tile([50.0, 30.0, 20.0], (20, 1)), "stages": STAGES, "modalities": MODALITIES}
#: A call of every public plot.
PLOTS = {
    "examples": lambda: show.plot_examples(np.stack([SLICES] * 3), SEQUENCES, GROUPS, lesions=LESIONS, pixel_mm=8,
                                           z_mm=[1, 2, 3], caption="n = 3"),
    "confusions": lambda: show.plot_confusions(
        np.arange(18).reshape(2, 3, 3), GROUPS, ["VGG16+GAP", "VGG19+GAP"], accuracies=[(0.9, 0.8, 1.0)] * 2,
        sizes=["36 slices, 4 subjects"] * 2),
    "layer_grid": lambda: show.plot_layer_grid(SLICES[:2], NET_MAPS, **SHOWN),
    "layer_columns": lambda: show.plot_layer_columns(SLICES[:2], NET_MAPS, **SHOWN),
    "summary": lambda: show.plot_summary(
        SLICES[0], {"Grad-CAM": SLICES[1]}, layers=LAYERS, lesion=LESIONS[0],
        accuracy=interval_table(tested=["known", "new"], backbone=["vgg16"] * 2, chance=[1 / 3] * 2),
        curves=interval_table(layer=[*LAYERS, "image"], backbone=["vgg16"] * 4, method=["gradcam"] * 3 + ["prior"])),
    "learning_curves": lambda: show.plot_learning_curves(pd.DataFrame([
        {"backbone": net, "protocol": protocol, "epoch": epoch, "loss": 1.0, "val_loss": 1.1, "accuracy": 0.5,
         "val_accuracy": 0.4, "best": epoch == 2}
        for net in ("vgg16", "vgg19") for protocol in ("slice", "subject") for epoch in (1, 2)])),
    "accuracies": lambda: show.plot_accuracies(
        interval_table(protocol=["slice split", "permuted"] * 3, backbone=["vgg16", "vgg19", "logistic"] * 2,
                       level=["slice", "subject"] * 3, n=[10] * 6, chance=[1 / 3] * 6),
        published={"vgg16": 0.93, "vgg19": 0.95}),
    "psychometric": lambda: show.plot_psychometric(interval_table(
        backbone=["vgg16"] * 3, lesions=["lesion-free", "20-50", "50-100"], mm2=[0, 35, 75]), border=0.95),
    "depth_curves": lambda: show.plot_depth_curves(
        interval_table(kind=["cause", "honest"] * 3, layer=np.repeat(LAYERS, 2), method=["gradcam"] * 6,
                       backbone=["vgg16"] * 6, chance=[0.1] * 6), LAYERS, columns="kind",
        comparators=interval_table(kind=["cause"] * 4, backbone=["vgg16"] * 4, method=["oracle"] * 3 + ["layercam"],
                                   source=["comparator"] * 3 + ["another patient"], layer=[*LAYERS, "image"]),
        labels={"cause": "lesions decide"}),
    "cohort": lambda: show.plot_cohort(
        pd.DataFrame({"group": GROUPS * 3, "lesion_load_ml": np.arange(9.0), "age": np.arange(30.0, 39.0)}), GROUPS,
        {"lesion_load_ml": "lesion load [mL]", "age": "age [years]"},
        reference={"lesion_load_ml": {"RRMS": (14.9, 0.66, 52.6)}}),
    "registration_errors": lambda: show.plot_registration_errors(
        pd.DataFrame({"sequence": ["T2w", "FLAIR"] * 3, "before": 5.0, "after": 0.1}),
        targets={"median": 0.3, "worst": 1.0}),
    "attributions": lambda: show.plot_attributions(
        IMAGE, {"deeplift": IMAGE - 0.5, "gradcam": IMAGE, "lime": 0 * IMAGE}, SEQUENCES,
        features=np.moveaxis(LESIONS, 0, -1), shared=["gradcam"]),
    "scores": lambda: show.plot_scores(
        pd.concat([SCORES, (SCORES - 0.1).add_suffix("_low"), (SCORES + 0.1).add_suffix("_high")], axis=1),
        ["msfi", "delta"], silent=["delta"], chance={"msfi": 0.08}, labels={"msfi": "MSFI"}),
    "checks": lambda: show.plot_checks(pd.DataFrame(
        {"randomisation": ["passes", "fails"], "shortcut exposed": "not testable"}, index=["deeplift", "lime"])),
    "importance": lambda: show.plot_importance(interval_table(
        modality=SEQUENCES * 2, baseline=["zero"] * 3 + ["mean"] * 3, network=["vgg16"] * 6, worth=["accuracy"] * 6),
        SEQUENCES),
    "shares": lambda: show.plot_shares(
        interval_table(method=["deeplift", "lime"]).set_index("method") * np.array([[1], [np.nan]]), chance=0.1,
        unit="share"),
    "localisation": lambda: show.plot_localisation(pd.DataFrame({
        "backbone": "vgg16", "source": ["network", "network", "untrained", "comparator"],
        "method": ["gradient", "lime", "gradient", "oracle"], "value": [0.4, 0.2, 0.1, 0.8],
        "low": [0.3, 0.1, 0.05, 0.7], "high": [0.5, 0.3, 0.15, 0.9], "chance": 0.02})),
    "share_points": lambda: show.plot_share_points(
        pd.DataFrame([{"panel": panel, "stage": stage, "modality": modality, "value": value, "low": value - 10,
                       "high": value + 10, "chance": chance} for stage in STAGES[:-1] for modality in MODALITIES
                      for panel, value, chance in (("correct", 30.0, 25.0), ("ablation", -5.0, np.nan))]),
        MODALITIES, row="panel", group="stage", groups=STAGES, labels={"correct": "right"},
        unit={"correct": "share [%]", "ablation": "lost [%]"}),
    "flow": lambda: show.plot_flow(
        pd.DataFrame({"backbone": "vgg16", "layer": ["logits", "gap", "image"], "sum": [1, .9, .7],
                      "absolute": [1, 2, 1.5]}),
        pd.DataFrame({"backbone": "vgg16", "modality": SEQUENCES, "value": [50, 30, 20]}), SEQUENCES),
    "relations": lambda: show.plot_relations(
        pd.DataFrame({"modality": MODALITIES * 2, "stage": ["W"] * 3 + ["N1"] * 3, "term": "drug", "low": 0.4,
                      "high": 0.6, "estimate": [0.5] * 5 + [np.nan], "q": [.01, .5, np.nan] * 2, "detectable": 3.0}),
        unit="points", row="term", group="stage", groups=["W", "N1", "N2"], labels={"drug": "drug less placebo"}),
    "night": lambda **changes: show.plot_night(**NIGHT | changes, title="Simulated night", caption="n = 1"),
    "relevant_epochs": lambda relevance=RELEVANCE: show.plot_relevant_epochs(
        {"N2": {"signal": SIGNAL, "relevance": relevance, "title": "SIM01N1, 0.50 h"}}, ["N2", "REM"], MODALITIES,
        rate=10.0)}


@functools.cache
def drawn(name):
    """A figure of `PLOTS`, drawn once."""
    return PLOTS[name]()


def test_every_public_plot_is_tested():
    assert {name for name in show.__all__ if name.startswith("plot_")} == {f"plot_{name}" for name in PLOTS}


@pytest.mark.parametrize("name", PLOTS)
def test_figure_bytes_depend_on_the_figure_alone(name, tmp_path):
    first, second = (PLOTS[name]() for _ in range(2))
    assert isinstance(first, Figure)
    for figure in (first, second):
        figure.set_layout_engine("none")  # which takes most of the time; with it: the next test
    one = show.save_figure(first, tmp_path / "one.png", dpi=40).read_bytes()
    assert one == show.save_figure(second, tmp_path / "folder" / "two.png", dpi=40).read_bytes()
    picture = Image.open(io.BytesIO(one))
    assert picture.info.keys() <= {"dpi"}, picture.info
    assert np.asarray(picture.convert("L")).std() > 0
    assert not list(tmp_path.rglob(".tmp-*"))


def test_pictures_keep_all_colours_and_vectors_their_bytes(tmp_path):
    vectors = [show.save_figure(PLOTS["shares"](), tmp_path / f"{i}.svg").read_bytes() for i in range(2)]
    assert vectors[0] == vectors[1] and b"chance" in vectors[0], "text stays text"
    picture = Image.open(show.save_figure(PLOTS["attributions"](), tmp_path / "one.png"))
    assert picture.mode == "RGB" and len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 256
    small = Image.open(show.save_scans(PLOTS["attributions"](), tmp_path / "scans.png"))
    large = Image.open(tmp_path / "scans.jpg")
    assert np.allclose([small.size, large.size], [picture.size, np.multiply(picture.size, 300 / 130)], atol=3)
    for other in (small, large):
        alike = np.asarray(other.convert("RGB").resize(picture.size), float) - np.asarray(picture, float)
        assert np.abs(alike).mean() < 12, "the same picture"
    with pytest.raises(StudyError, match=r"fig\.pdf: figures are saved as '\.png' or '\.svg' \(got '\.pdf'\)"):
        show.save_figure(Figure(), tmp_path / "fig.pdf")


def test_tables_of_readers_have_standard_names_and_dashes():
    table = pd.DataFrame({"method": ["gradcam", "LRP epsilon_plus"], "value_low": [0.123, np.nan]},
                         index=pd.MultiIndex.from_tuples([("vgg16", "block5_conv3"), ("cause", 3)]))
    shown = show.readable(table, rows=2)
    assert shown["method"].tolist() == ["Grad-CAM", "LRP ε-plus"] and shown["value low"].tolist() == [0.12, "–"]
    assert shown.index.tolist() == [("VGG16+GAP", "block5_conv3"), ("only lesions can decide", 3)]
    assert len(show.readable(table, rows=1)) == 1
    assert "long" * 50 in show.readable(pd.DataFrame({"flags": ["long" * 50]}))._repr_html_()


def test_slices_are_drawn_with_the_patients_right_at_the_left():
    """Row 0 is drawn at the top and column 0 at the left, beside the letter R."""
    ax = drawn("examples").axes[0]
    assert ax.get_ylim()[0] > ax.get_ylim()[1] and ax.get_xlim()[0] < ax.get_xlim()[1]
    letters = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert letters["R"] < letters["L"]


@pytest.mark.parametrize(("name", "counts", "told"), [
    ("layer_grid", {"blank": 2}, ["VGG16+GAP", "VGG19+GAP", "slice 57 of 135", " R ", " L ", "20 mm", "max 0",
                                f"max {SLICES[:2].max():.2g}", r"$\bf{C}$  block5_pool"]),
    ("attributions", {"blank": 3, "DeepLift *": 0}, ["Grad-CAM *"]),
    ("checks", {"✓": 2, "✗": 2}, ["shortcut\nexposed"]),  # a panel and the legend each
    ("shares", {"n/a": 1}, []),
    ("confusions", {}, ["accuracy 90.0% [80.0%, 100.0%]", "n = 36 slices, 4 subjects", "8\n38%"])])
def test_words_that_stand_in_a_figure(name, counts, told):
    text = words(drawn(name))
    assert {word: text.count(word) for word in counts} == counts
    assert [word for word in told if word not in f" {text} "] == []


def test_a_map_of_values_that_round_to_nothing_is_blank():
    heat = SLICES.copy()
    heat[1] = 1e-31
    assert words(show.plot_layer_grid(SLICES, {"vgg16": {"block5_pool": heat}})).count("blank") == 1


def test_layers_are_columns_without_holes():
    figure = drawn("layer_columns")
    panels = np.array(figure.axes[:-1]).reshape(4, 4)  # two networks of two slices; FLAIR and three layers
    assert [[bool(ax.images) for ax in row] for row in panels] == [[True] * 4] * 2 + [[True] * 2 + [False] * 2] * 2
    assert panels[0, 1].get_title().startswith("block5_conv1\nmax") and words(figure).count("blank") == 2


def test_the_summary_draws_levels_over_all_layers_and_leaves_out_what_is_unknown():
    accuracy, curves, flair, _ = drawn("summary").axes
    points, = accuracy.lines
    *_, chance = (lines.get_segments() for lines in accuracy.collections)
    assert points.get_xdata().tolist() == [0, 1] and [one[0, 1] for one in chance] == [1 / 3] * 2
    level, = (line for line in curves.lines if line.get_linestyle() == ":")
    assert list(level.get_xdata()) == [0, 1, 2] and set(level.get_ydata()) == {0.5}
    assert flair.get_title() == "C  FLAIR, lesions"
    assert [ax.get_title() for ax in show.plot_summary(SLICES[0], {"map": SLICES[1]}).axes] == ["A  FLAIR", "map"]


def test_comparators_stand_beside_the_curves_and_those_without_a_layer_are_level():
    figure = drawn("depth_curves")
    cause, honest = figure.axes
    others = [line for line in cause.lines if line.get_color() in ("black", "#888888")]
    assert [line.get_linestyle() for line in others] == ["-", ":"], "oracle and another's"
    assert others[1].get_xdata().tolist() == [0, 1, 2] and set(others[1].get_ydata()) == {0.5}
    assert not any(line.get_color() in ("black", "#888888") for line in honest.lines)
    assert {"oracle", "another patient's map", "chance"} <= {text.get_text() for text in figure.legends[0].get_texts()}


def test_layers_that_are_mostly_blank_are_hollow():
    table = interval_table(measure=["AUPRC"] * 3, layer=LAYERS, method=["gradcam"] * 3, backbone=["vgg16"] * 3,
                           blank=[0.5, 0.6, 0.0])
    for known, hollow in ((table, 1), (table.drop(columns="blank"), 0)):
        lines = show.plot_depth_curves(known, LAYERS).axes[0].lines
        assert sum(len(line.get_xdata()) for line in lines if line.get_markerfacecolor() == "white") == hollow


def test_methods_are_ordered_by_their_mean_beside_the_comparators():
    figure = drawn("localisation")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["LIME", "Gradient"], "best on top"
    assert "oracle" in words(figure) and "untrained network" in words(figure)


def test_scores_are_ordered_dots_beside_chance_and_what_cannot_order_is_grey():
    msfi, delta = drawn("scores").axes
    assert [label.get_text() for label in msfi.get_yticklabels()] == ["Grad-CAM", "LIME", "DeepLift"], "best on top"
    assert msfi.lines[1].get_xdata()[0] == 0.08 and msfi.get_title() == "MSFI" and len(delta.lines) == 1
    assert (msfi.lines[0].get_color(), delta.lines[0].get_color()) == ("#0072B2", "#999999")
    assert sorted(segment[0, 0] for segment in segments(msfi)) == pytest.approx([0.0, 0.8])


def test_no_reference_no_black():
    table = pd.DataFrame({"group": ["control", "MS"], "lesion_load_ml": [0.0, 1.0]})
    figure = show.plot_cohort(table, ["control", "MS"], {"lesion_load_ml": "load"},
                              reference={"lesion_load_ml": {"RRMS": (14.9, 0.66, 52.6)}, "age": {"MS": (40, 30, 50)}})
    assert not any("real" in text.get_text() for text in figure.legends[0].get_texts())
    figure.savefig(io.BytesIO())
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1, "one panel is wide enough for the legend"


def test_chance_and_published_accuracy_stand_beside_the_values():
    by_slice, by_subject = drawn("accuracies").axes
    dashed = [line.get_xdata()[0] for line in by_slice.lines if line.get_linestyle() == "--"]
    assert dashed == [0.93, 0.95] and not any(line.get_linestyle() == "--" for line in by_subject.lines)
    for ax in (by_slice, by_subject):
        chance = [segment[0, 0] for lines in ax.collections for segment in lines.get_segments()]
        assert len(chance) == 3 and chance == pytest.approx([1 / 3] * 3)


def test_points_stand_at_the_given_heights_beside_chance_and_missing_ones_are_dashes():
    figure = drawn("share_points")
    first, second = figure.axes
    dots = [dot.get_offsets() for dot in first.collections if not isinstance(dot, LineCollection)]
    heights = np.concatenate([np.ma.getdata(part)[:, 1] for part in dots])
    assert np.nansum(heights) == 12 * 30 and np.isnan(heights).sum() == 3
    lines = [segment[:, 1] for segment in segments(first)]
    assert [sum(np.allclose(line, limits) for line in lines) for limits in ((25, 25), (20, 40))] == [12, 12]
    assert words(figure).count("–") == 6 and "right\nshare [%]" in words(figure) and "lost [%]" in words(figure)
    assert not first.lines and list(second.lines[0].get_ydata()) == [0, 0], "a line at 0 where values are below it"


def test_sure_effects_are_filled_and_unknown_ones_dashed():
    figure = drawn("relations")
    ax, = figure.axes
    dots = [dot for dot in ax.collections if not isinstance(dot, LineCollection)]
    filled = sum((np.atleast_2d(dot.get_facecolors())[:, :3].min(1) < 1)[np.isfinite(dot.get_offsets()[:, 0])].sum()
                 for dot in dots)
    assert filled == 2 and words(figure).count("–") == 4, "one estimate is missing, and a whole stage"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["W", "N1", "N2"]
    assert "drug less placebo" in words(figure)
    assert [abs(segment[0, 0]) for segment in segments(ax)].count(3.0) == 6, "what a single test would find"


def test_a_night_shows_both_hypnograms_wrong_epochs_and_whole_shares():
    figure = drawn("night")
    top, middle, band = figure.axes
    assert [label.get_text() for label in top.get_yticklabels()] == ["W", "REM", "N1", "N2", "N3"]
    depth, _, _ = top.patches[0].get_data()
    assert depth.tolist() == [0] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [1] * 4, "depth, not number of the stage"
    assert len(middle.lines[0].get_xdata()) == 16, "all but the four of N2 are wrong"
    assert [patch.get_data()[0][0] for patch in band.patches] == [50, 80, 100]
    for name in (*MODALITIES, "predicted", "scored", "wrongly classified epoch", "n = 1", "Simulated night"):
        assert name in words(figure)


def test_what_was_left_out_of_a_night_stays_blank():
    hours = np.delete(np.arange(20), slice(5, 9)) / 120
    scored = np.repeat([0, 1], 8)
    shares = np.full((16, 3), [50, 30, 20])
    figure = show.plot_night(hours, scored, scored, shares, stages=STAGES, modalities=MODALITIES)
    top, _, band = figure.axes
    for patch, value in ((top.patches[0], 0), (band.patches[0], 50)):
        values, edges, _ = patch.get_data()
        assert np.isnan(values[5]) and values[4] == value and edges[5:7] * 120 == pytest.approx([5, 9])


def test_epochs_are_coloured_where_relevance_is_and_nowhere_else():
    figure, blank = drawn("relevant_epochs"), PLOTS["relevant_epochs"](0 * RELEVANCE)
    traces = [one for one in figure.axes[0].collections if isinstance(one, LineCollection)]
    opacity = [one.get_colors()[:, 3] for one in traces]
    assert opacity[0][105:115].min() > 0.9 and opacity[0][:90].max() == opacity[2].max() == 0
    red, blue = traces[0].get_colors()[110], traces[1].get_colors()[205]
    assert red[0] > red[2] and blue[2] > blue[0], "for the stage red, against it blue"
    assert "no epoch of this stage is correctly classified" in words(figure) and "SIM01N1" in words(figure)
    assert all(one.get_colors()[:, 3].max() == 0 for one in blank.axes[0].collections)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: show.plot_examples(SLICES, ["T1w"], GROUPS), r"slices: must be \(1, 3, H, W\) \(got \(3, 16, 14\)\)"),
    (lambda: show.plot_confusions(np.eye(3), GROUPS, ["a"]), r"matrices: must be \(1, 3, 3\)"),
    (lambda: show.plot_layer_grid(SLICES, {"vgg16": {"pool": SLICES[:, :4]}}), "vgg16 pool: maps must be finite, of"),
    (lambda: show.plot_attributions(IMAGE, {"lime": SLICES}, SEQUENCES), "lime: must be finite, of the shape"),
    (lambda: show.plot_scores(pd.DataFrame({"a": [1]}), ["msfi"]), r"scores: the table lacks \['msfi'"),
    (lambda: show.plot_shares(pd.DataFrame({"value": [1]}), chance=0, unit=""), r"shares: the table lacks \['low'"),
    (lambda: show.plot_share_points(pd.DataFrame({"a": []}), [], row="a", group="a"),
     r"shares: the table lacks \['modality'"),
    (lambda: show.plot_localisation(pd.DataFrame({"method": []})), r"localisation: the table lacks \[.backbone."),
    (lambda: show.plot_flow(pd.DataFrame({"layer": []}), None, []), r"flow: the table lacks \['backbone'"),
    (lambda: show.plot_relations(pd.DataFrame({"q": []}), unit=""), r"effects: the table lacks \['backbone'"),
    (lambda: PLOTS["night"](predicted=np.zeros(3, int)), r"one length, with 3 shares \(got 20, 20, 3 and \(20, 3"),
    (lambda: PLOTS["relevant_epochs"](RELEVANCE[:5]), r"N2: signal and relevance must be finite, \(T, 3\)")])
def test_wrong_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
