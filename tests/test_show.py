"""What a reader sees: figures with stable bytes, offline viewers."""

import io
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sleep_plots import SLEEP_PLOTS

from mslib import show
from mslib.study import StudyError

GROUPS = ["control", "RRMS", "SPMS"]
LAYERS = ["block5_conv1", "block5_conv2", "block5_pool"]
EVIL = '<script>alert("sub-001")</script><img src=x onerror=alert(1)>'
RNG = np.random.default_rng(7)
SLICES = RNG.uniform(0, 1, (3, 16, 14)).astype(np.float32)
LESIONS = np.zeros(SLICES.shape, bool)
LESIONS[:, 4:7, 5:9] = True


def interval_table(**columns):
    table = pd.DataFrame(columns)
    return table.assign(value=0.5, low=0.4, high=0.6)


def examples():
    return show.plot_examples(np.stack([SLICES] * 3), ["T1w", "T2w", "FLAIR"], GROUPS, lesions=LESIONS, pixel_mm=8,
                              z_mm=[1, 2, 3], caption="n = 3")


def confusions():
    return show.plot_confusions(np.arange(18).reshape(2, 3, 3), GROUPS, ["VGG16+GAP", "VGG19+GAP"],
                                accuracies=[(0.9, 0.8, 1.0)] * 2, sizes=["36 slices, 4 subjects"] * 2)


def layer_block():
    return show.plot_layer_block(SLICES, {"vgg16": dict.fromkeys(LAYERS, SLICES), "vgg19": {LAYERS[0]: 0 * SLICES}},
                                 slice_names=["slice 57 of 135"] * 3, lesions=LESIONS, pixel_mm=8)


def layer_grid():
    return show.plot_layer_grid(SLICES, {"vgg16": dict.fromkeys(LAYERS[1:], SLICES),
                                         "vgg19": dict.fromkeys(LAYERS, SLICES)})


def headline():
    return show.plot_headline(SLICES[0], {"block5_pool": SLICES[1]}, lesion=LESIONS[0],
                              extra=[("signed", SLICES[1] - 0.5, "diverging"), ("none", 0 * SLICES[1], "sequential")])


def learning_curves():
    rows = [{"backbone": net, "protocol": protocol, "epoch": epoch, "loss": 1.0, "val_loss": 1.1, "accuracy": 0.5,
             "val_accuracy": 0.4, "best": epoch == 2}
            for net in ("vgg16", "vgg19") for protocol in ("slice", "subject") for epoch in (1, 2)]
    return show.plot_learning_curves(pd.DataFrame(rows), chance=1 / 3)


def accuracies():
    table = interval_table(protocol=["slice split", "permuted"] * 3, backbone=["vgg16", "vgg19", "logistic"] * 2,
                           level=["slice", "subject"] * 3, n=[10] * 6, chance=[1 / 3] * 6)
    return show.plot_accuracies(table, published={"vgg16": 0.93, "vgg19": 0.95})


def depth_curves():
    table = interval_table(kind=["cause", "honest"] * 3, layer=np.repeat(LAYERS, 2), method=["gradcam"] * 6,
                           backbone=["vgg16"] * 6, chance=[0.1] * 6)
    lines = interval_table(kind=["cause"] * 4, backbone=["vgg16"] * 4, comparator=["oracle"] * 3 + ["prior"],
                           layer=[*LAYERS, "image"])
    return show.plot_depth_curves(table, LAYERS, columns="kind", labels={"cause": "lesions decide"}, comparators=lines)


def test_comparators_stand_beside_the_curves_and_those_without_a_layer_are_level():
    cause, honest = depth_curves().axes
    drawn = [line for line in cause.lines if line.get_color() == "black"]
    assert [line.get_linestyle() for line in drawn] == ["-", ":"], "oracle and prior"
    assert drawn[1].get_xdata().tolist() == [0, 1, 2] and set(drawn[1].get_ydata()) == {0.5}
    assert not any(line.get_color() == "black" for line in honest.lines)
    assert {"oracle", "location prior", "chance"} <= {
        text.get_text() for text in depth_curves().legends[0].get_texts()}


def test_layers_that_are_mostly_blank_are_hollow():
    table = interval_table(measure=["AUPRC"] * 3, layer=LAYERS, method=["gradcam"] * 3, backbone=["vgg16"] * 3,
                           blank=[0.5, 0.6, 0.0])
    for known, hollow in ((table, 1), (table.drop(columns="blank"), 0)):
        lines = show.plot_depth_curves(known, LAYERS).axes[0].lines
        assert sum(len(line.get_xdata()) for line in lines if line.get_markerfacecolor() == "white") == hollow


def size_map():
    table = pd.DataFrame({"backbone": "vgg16", "method": "gradcam", "layer": LAYERS * 2,
                          "size": np.repeat(["small", "large"], 3), "value": [.1, .3, .2, .4, .5, np.nan]})
    return show.plot_size_map(table, LAYERS, ["small", "large"])


def test_the_best_layer_of_each_size_is_framed():
    ax = size_map().axes[0]
    frames = [(box.get_x(), box.get_y()) for box in ax.patches]
    assert frames == [(0, 1), (1, 1)], "block5_conv2 for both"
    assert [label.get_text() for label in ax.get_yticklabels()] == LAYERS
    assert "0.30" in words(size_map())


def cohort():
    table = pd.DataFrame({"group": GROUPS * 3, "lesion_load_ml": np.arange(9.0), "age": np.arange(30.0, 39.0)})
    return show.plot_cohort(table, GROUPS, {"lesion_load_ml": "lesion load [mL]", "age": "age [years]"},
                            reference={"lesion_load_ml": {"RRMS": (14.9, 0.66, 52.6)}})


def registration_errors():
    table = pd.DataFrame({"sequence": ["T2w", "FLAIR"] * 3, "before": 5.0, "after": 0.1})
    return show.plot_registration_errors(table, targets={"median": 0.3, "worst": 1.0})


SEQUENCES = ["T1w", "T2w", "FLAIR"]
IMAGE = np.moveaxis(SLICES, 0, -1)


def attributions():
    maps = {"deeplift": IMAGE - 0.5, "gradcam": IMAGE, "lime": 0 * IMAGE}
    return show.plot_attributions(IMAGE, maps, SEQUENCES, features=np.moveaxis(LESIONS, 0, -1),
                                  shared=["gradcam"])


def scores():
    table = pd.DataFrame({"msfi": [0.9, 0.1, np.nan], "random": [-0.2, 0.8, -0.9], "delta": [4e-4, -2e-4, 1e-4]},
                         index=["deeplift", "lime", "gradcam"])
    return show.plot_scores(table, {"msfi": "high", "random": "near 0", "delta": "high"}, unordered=["delta"],
                            chance={"msfi": 0.08}, labels={"msfi": "MSFI"})


def importance():
    table = interval_table(modality=SEQUENCES * 2, baseline=["zero"] * 3 + ["mean"] * 3)
    return show.plot_importance(table.assign(network="vgg16", worth="accuracy"), SEQUENCES)


def shares():
    table = interval_table(method=["deeplift", "lime"]).set_index("method")
    table.loc["lime"] = np.nan
    return show.plot_shares(table, chance=0.1, unit="share")


def share_points():
    table = interval_table(modality=SEQUENCES * 2, group=["control"] * 3 + ["SPMS"] * 3)
    table = table.assign(backbone="vgg16", chance=.3)
    return show.plot_share_points(table, SEQUENCES, row="backbone", column="backbone", group="group")


def flow():
    table = pd.DataFrame({"backbone": "vgg16", "layer": ["logits", "gap", "image"], "sum": [1, .9, .7],
                          "absolute": [1, 2, 1.5]})
    ends = pd.DataFrame({"backbone": "vgg16", "modality": SEQUENCES, "value": [50, 30, 20]})
    return show.plot_flow(table, ends, SEQUENCES)


def relations():
    table = interval_table(modality=SEQUENCES * 2, label=["age"] * 3 + ["EDSS"] * 3)
    table = table.assign(backbone="vgg16", q=[.01, .5] * 3).rename(columns={"value": "estimate"})
    return show.plot_relations(table, unit="points")


def psychometric():
    return show.plot_psychometric(pd.DataFrame({
        "backbone": "vgg16", "lesions": ["lesion-free", "20-50", "50-100"], "mm2": [0, 35, 75],
        "value": [0.9, 0.6, 0.8], "low": [0.8, 0.5, 0.7], "high": [1.0, 0.7, 0.9]}), border=0.95)


def localisation():
    return show.plot_localisation(pd.DataFrame({
        "backbone": "vgg16", "source": ["network", "network", "untrained", "comparator"],
        "method": ["gradient", "lime", "gradient", "oracle"], "value": [0.4, 0.2, 0.1, 0.8],
        "low": [0.3, 0.1, 0.05, 0.7], "high": [0.5, 0.3, 0.15, 0.9], "chance": 0.02}))


def test_methods_are_ordered_by_their_mean_beside_the_comparators():
    figure = localisation()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["LIME", "Gradient"], "best on top"
    assert "oracle" in words(figure) and "untrained network" in words(figure)


PLOTS = [attributions, scores, importance, shares, share_points, flow, relations, examples, confusions,
         layer_block, layer_grid, headline, learning_curves, accuracies, depth_curves, size_map, cohort,
         registration_errors, psychometric, localisation, *SLEEP_PLOTS]


def words(fig):
    """All text that stands in a figure."""
    return " ".join(text.get_text() for text in fig.findobj(Text))


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_figure_bytes_depend_on_the_figure_alone(plot, tmp_path):
    first, second = plot(), plot()
    assert isinstance(first, Figure)
    one = show.save_figure(first, tmp_path / "one.png", dpi=60).read_bytes()
    two = show.save_figure(second, tmp_path / "folder" / "two.png", dpi=60).read_bytes()
    assert one == two
    picture = Image.open(io.BytesIO(one))
    assert picture.info.keys() <= {"dpi"}, picture.info
    assert np.asarray(picture.convert("L")).std() > 0
    assert not list(tmp_path.rglob(".tmp-*"))


def test_every_public_plot_is_tested():
    shown = {plot for plot in show.__all__ if plot.startswith("plot_")}
    assert shown == {f"plot_{plot.__name__}" for plot in PLOTS}


def test_attributions_name_blank_maps_and_those_of_all_sequences():
    text = words(attributions())
    assert text.count("blank") == 3 and "Grad-CAM *" in text and "DeepLift *" not in text


def test_scores_mark_best_and_worst_whatever_is_better():
    texts = {text.get_text(): text for text in scores().findobj(Text)}
    assert texts["0.90"].get_fontweight() == texts["-0.20"].get_fontweight() == "bold"
    assert texts["0.10"].get_fontstyle() == texts["-0.90"].get_fontstyle() == "italic", "far below 0 is not near it"
    assert {"–", "0.08", "chance", "MSFI", "delta\n(cannot judge here)"} <= set(texts)
    assert texts["0.00"].get_fontweight() == texts["0.00"].get_fontstyle() == "normal", "nothing is ordered"


def test_a_method_without_value_is_not_at_zero():
    assert "n/a" in words(shares())
    assert "n/a" not in words(show.plot_shares(interval_table(method=["lime"]).set_index("method"), chance=0, unit=""))


def test_no_reference_no_black():
    table = pd.DataFrame({"group": ["control", "MS"], "lesion_load_ml": [0.0, 1.0]})
    figure = show.plot_cohort(table, ["control", "MS"], {"lesion_load_ml": "load"},
                              reference={"lesion_load_ml": {"RRMS": (14.9, 0.66, 52.6)}, "age": {"MS": (40, 30, 50)}})
    assert not any("real" in text.get_text() for text in figure.legends[0].get_texts())
    figure.savefig(io.BytesIO())
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1, "one panel is wide enough for the legend"


def test_pictures_keep_all_colours(tmp_path):
    picture = Image.open(show.save_figure(layer_block(), tmp_path / "full.png"))
    assert picture.mode == "RGB" and len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 256


def test_chance_and_published_accuracy_stand_beside_the_values():
    by_slice, by_subject = accuracies().axes
    dashed = [line.get_xdata()[0] for line in by_slice.lines if line.get_linestyle() == "--"]
    assert dashed == [0.93, 0.95] and not any(line.get_linestyle() == "--" for line in by_subject.lines)
    for ax in (by_slice, by_subject):
        chance = [segment[0, 0] for lines in ax.collections for segment in lines.get_segments()]
        assert len(chance) == 3 and chance == pytest.approx([1 / 3] * 3)


def test_figures_are_png_only(tmp_path):
    with pytest.raises(StudyError, match=r"fig\.pdf: figures are saved as '\.png' \(got '\.pdf'\)"):
        show.save_figure(Figure(), tmp_path / "fig.pdf")


def test_blank_maps_are_called_blank_and_rows_tell_their_maximum():
    text = words(layer_block())
    assert text.count("blank") == 3
    assert f"max {SLICES.max():.2g}" in text and "max 0" in text
    assert "VGG16+GAP" in text and "VGG19+GAP" in text and "slice 57 of 135" in text
    assert " R " in f" {text} " and " L " in f" {text} " and "50 mm" in text


def test_one_vanishing_map_in_a_row_is_called_blank():
    heat = SLICES.copy()
    heat[1] = 1e-31
    assert words(show.plot_layer_block(SLICES, {"vgg16": {"block5_pool": heat}})).count("blank") == 1


def test_published_layout():
    assert show.PUBLISHED_FIGURE_3 == {"vgg16": ("block5_conv3", "block5_conv2", "block5_conv1"),
                                       "vgg19": ("block5_pool", "block5_conv4", "block5_conv3")}
    assert show.PUBLISHED_FIGURE_4 == {"vgg19": ("block5_conv2", "block5_conv1", "block4_conv4")}


def test_confusion_tells_counts_shares_accuracy_and_n():
    text = words(confusions())
    for told in ("accuracy 90.0% [80.0%, 100.0%]", "n = 36 slices, 4 subjects", "8\n38%"):
        assert told in text


def test_slices_are_drawn_with_the_patients_right_at_the_left():
    """Row 0 is drawn at the top and column 0 at the left, beside the letter R."""
    ax = examples().axes[0]
    assert ax.get_ylim()[0] > ax.get_ylim()[1] and ax.get_xlim()[0] < ax.get_xlim()[1]
    letters = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert letters["R"] < letters["L"]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: show.plot_examples(SLICES, ["T1w"], GROUPS), r"slices: must be \(1, 3, H, W\) \(got \(3, 16, 14\)\)"),
    (lambda: show.plot_confusions(np.eye(3), GROUPS, ["a"]), r"matrices: must be \(1, 3, 3\)"),
    (lambda: show.plot_layer_block(SLICES, {"vgg16": {"block5_pool": SLICES[:, :4]}}), "vgg16 block5_pool: maps must"),
    (lambda: show.plot_layer_block(SLICES, {"vgg16": {"block5_pool": SLICES * np.nan}}), "not finite"),
    (lambda: show.plot_size_map(pd.DataFrame({"layer": []}), [], []), r"lesion size: the table lacks \['size'"),
    (lambda: show.plot_attributions(IMAGE, {"lime": SLICES}, SEQUENCES), "lime: must be finite, of the shape"),
    (lambda: show.plot_scores(pd.DataFrame({"a": [1]}), {"msfi": "high"}), r"scores: the table lacks \['msfi'"),
    (lambda: show.plot_shares(pd.DataFrame({"value": [1]}), chance=0, unit=""), r"shares: the table lacks \['low'"),
    (lambda: show.plot_share_points(pd.DataFrame({"a": []}), [], row="a", column="a", group="a"),
     r"shares: the table lacks \['modality'"),
    (lambda: show.plot_localisation(pd.DataFrame({"method": []})), r"localisation: the table lacks \[.backbone."),
    (lambda: show.plot_flow(pd.DataFrame({"layer": []}), None, []), r"flow: the table lacks \['backbone'"),
    (lambda: show.plot_relations(pd.DataFrame({"q": []}), unit=""), r"effects: the table lacks \['backbone'"),
    (lambda: show.plot_headline(SLICES[0], {}, extra=[("x", SLICES[0], "odd")]), r"must be 'sequential' or 'diverg")])
def test_wrong_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Page(HTMLParser):
    """Tags, addresses and text of a page, as a browser would read them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.data, self.ids = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.addresses += [value for key, value in attrs if key in ("src", "href", "action", "data", "srcset")]
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_data(self, data):
        self.data.append(data)


@pytest.fixture
def volumes(tmp_path):
    affine = np.diag([6.0, 6, 6, 1])
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 12)] * 3, indexing="ij"))
    scan = np.exp(-(grid ** 2).sum(0)).astype(np.float32)
    heat = np.stack([0 * scan, np.where(scan > 0.8, scan, 0)], axis=-1)
    nib.save(nib.Nifti1Image(scan, affine), tmp_path / "scan.nii.gz")
    nib.save(nib.Nifti1Image(heat, affine), tmp_path / "heat.nii.gz")
    return tmp_path / "scan.nii.gz", tmp_path / "heat.nii.gz"


def test_viewer_is_one_offline_file(volumes, tmp_path):
    made = [show.write_viewer(tmp_path / f"{i}.html", *volumes, index=1, title=EVIL) for i in range(2)]
    text = made[0].read_text(encoding="utf-8")
    assert text == made[1].read_text(encoding="utf-8")
    assert len(text) < 2_500_000
    viewer = Page(text)
    assert all(address.startswith(("#", "data:")) for address in viewer.addresses)
    assert "link" not in [tag for tag, _ in viewer.tags]
    assert EVIL not in text and "<script>alert" not in text


@pytest.mark.parametrize(("change", "message"), [
    ({"index": 0}, r"heat\.nii\.gz: overlay is blank \(maximum 0\)"),
    ({"index": 2}, r"overlay holds 2 volumes: index must be 0 to 1 \(got 2\)"),
    ({}, r"index must be 0 to 1 \(got None\)")])
def test_viewer_refuses_what_cannot_be_seen(volumes, change, message, tmp_path):
    with pytest.raises(StudyError, match=message):
        show.write_viewer(tmp_path / "viewer.html", *volumes, **change)


def test_viewer_names_a_broken_file(volumes, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(volumes[0].read_bytes()[:200])
    with pytest.raises(StudyError, match=r"broken\.nii\.gz: background cannot be read as NIfTI"):
        show.write_viewer(tmp_path / "viewer.html", broken, volumes[1], index=1)
