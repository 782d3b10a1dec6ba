"""What a reader sees: figures with stable bytes, a report that is safe and offline, viewers, the gallery."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sleep_plots import SLEEP_PLOTS

from mslib import show
from mslib.show.figure import colours_by_depth
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


def registration():
    return show.plot_registration(SLICES[0], SLICES[:2], SLICES[1:], ["T2w", "FLAIR"], title="sub-001",
                                  errors={"T2w": (5.0, 0.1), "FLAIR": (4.0, 0.2)})


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
                           level=["slice", "subject"] * 3, n=[10] * 6)
    return show.plot_accuracies(table, chance=1 / 3, published={"vgg16": 0.93, "vgg19": 0.95})


def depth_curves():
    table = interval_table(measure=["AUPRC", "spread"] * 3, layer=np.repeat(LAYERS, 2), method=["gradcam"] * 6,
                           backbone=["vgg16"] * 6, chance=[0.1] * 6)
    return show.plot_depth_curves(table, LAYERS, labels={"AUPRC": "AUPRC (higher: better)"})


def test_layers_that_are_mostly_blank_are_hollow():
    table = interval_table(measure=["AUPRC"] * 3, layer=LAYERS, method=["gradcam"] * 3, backbone=["vgg16"] * 3,
                           mostly_blank=[False, True, False])
    for known, hollow in ((table, 1), (table.drop(columns="mostly_blank"), 0)):
        lines = show.plot_depth_curves(known, LAYERS).axes[0].lines
        assert sum(len(line.get_xdata()) for line in lines if line.get_markerfacecolor() == "white") == hollow


def randomisation():
    table = interval_table(measure=["SSIM"] * 3, step=["none", *LAYERS[:2]], layer=["block5_pool"] * 3)
    return show.plot_randomisation(table, ["none", *LAYERS[:2]], rows=None)


def groups():
    points = pd.DataFrame({"group": GROUPS * 4, "value": RNG.uniform(0, 1, 12), "net": ["vgg16", "vgg19"] * 6})
    return show.plot_groups(points.assign(value=points.index / 12), GROUPS, panel="net", notes={"vgg16": "p = .04"},
                            intervals=interval_table(group=GROUPS, net=["vgg16"] * 3))


def lobes():
    return show.plot_lobes(interval_table(lobe=["frontal"] * 3, group=GROUPS), ["frontal"], GROUPS,
                           reference={"frontal": 0.4})


def cohort():
    table = pd.DataFrame({"group": GROUPS * 3, "lesion_load_ml": np.arange(9.0), "age": np.arange(30.0, 39.0)})
    return show.plot_cohort(table, GROUPS, {"lesion_load_ml": "lesion load [mL]", "age": "age [years]"},
                            reference={"lesion_load_ml": {"RRMS": (14.9, 0.66, 52.6)}})


def registration_errors():
    table = pd.DataFrame({"sequence": ["T2w", "FLAIR"] * 3, "before": 5.0, "after": 0.1})
    return show.plot_registration_errors(table, targets={"median": 0.3, "worst": 1.0})


def qc_table():
    values = pd.DataFrame({"motion": [1.0, 2.0], "MI": [0.5, np.nan]}, index=["sub-001", "sub-002"])
    return show.plot_qc_table(values, flags=values > 1.5, formats={"motion": ".1f"}, title="QC")


SEQUENCES = ["T1w", "T2w", "FLAIR"]
IMAGE = np.moveaxis(SLICES, 0, -1)


def attributions():
    maps = {"deeplift": IMAGE - 0.5, "gradcam": IMAGE, "lime": 0 * IMAGE}
    return show.plot_attributions(IMAGE, maps, SEQUENCES, features=np.moveaxis(LESIONS, 0, -1),
                                  modality_blind=["gradcam"])


def scores():
    table = pd.DataFrame({"msfi": [0.9, 0.1, np.nan], "random": [0.2, 0.8, 0.4]}, index=["deeplift", "lime", "gradcam"])
    return show.plot_scores(table, {"msfi": 1, "random": -1}, chance={"msfi": 0.08}, labels={"msfi": "MSFI"})


def importance():
    table = interval_table(modality=SEQUENCES * 2, fill=["zero"] * 3 + ["mean"] * 3)
    return show.plot_importance(table.assign(net="vgg16", worth="accuracy"), SEQUENCES)


def shares():
    return show.plot_shares(interval_table(method=["deeplift", "lime"]).set_index("method"), chance=0.1, unit="share")


def share_bars():
    table = interval_table(modality=SEQUENCES * 2, group=["control"] * 3 + ["SPMS"] * 3)
    table = table.assign(backbone="vgg16", chance=.3)
    return show.plot_share_bars(table, SEQUENCES, row="backbone", column="backbone", bars="group")


def subject_shares():
    table = pd.DataFrame({"backbone": "vgg16", "group": ["control", "SPMS"] * 3, "right": [0, 1] * 3,
                          **{f"absolute_{name}": np.arange(6.0) for name in SEQUENCES}})
    return show.plot_subject_shares(table, SEQUENCES, GROUPS, seed=1)


def flow():
    table = pd.DataFrame({"backbone": "vgg16", "layer": ["logits", "gap", "image"], "sum": [1, .9, .7],
                          "absolute": [1, 2, 1.5]})
    ends = pd.DataFrame({"backbone": "vgg16", "modality": SEQUENCES, "value": [50, 30, 20]})
    return show.plot_flow(table, ends, SEQUENCES)


def relations():
    table = interval_table(modality=SEQUENCES * 2, label=["age"] * 3 + ["EDSS"] * 3)
    table = table.assign(backbone="vgg16", q=[.01, .5] * 3).rename(columns={"value": "estimate"})
    return show.plot_relations(table, unit="points")


PLOTS = [attributions, scores, importance, shares, share_bars, subject_shares, flow, relations, examples, confusions,
         layer_block, layer_grid, registration, headline, learning_curves, accuracies, depth_curves, randomisation,
         groups, lobes, cohort, registration_errors, qc_table, *SLEEP_PLOTS]


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


def test_attributions_name_blank_and_modality_blind_maps():
    text = words(attributions())
    assert text.count("blank") == 3 and "Grad-CAM *" in text and "DeepLift *" not in text


def test_scores_mark_best_and_worst_whatever_is_better():
    texts = {text.get_text(): text for text in scores().findobj(Text)}
    assert texts["0.90"].get_fontweight() == texts["0.20"].get_fontweight() == "bold"
    assert texts["0.10"].get_fontstyle() == texts["0.80"].get_fontstyle() == "italic"
    assert {"–", "0.08", "chance", "MSFI"} <= set(texts)


def test_layers_are_told_apart_and_their_legend_fits():
    layers = [f"block{block}_{kind}" for block in (4, 5) for kind in ("conv1", "conv2", "conv3", "conv4", "pool")]
    light = [np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour in colours_by_depth(layers).values()]
    assert (np.diff(light) > 0).all() and light[-1] < 0.7, "from dark to light, and seen on white"
    table = pd.concat([interval_table(measure=[measure] * 2, step=["none", "logits"], layer=[layer] * 2)
                       for measure in ("spearman", "ssim") for layer in layers])
    figure = show.plot_randomisation(table, ["none", "logits"], hues=layers, rows=None)
    figure.savefig(io.BytesIO())
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_no_reference_no_black():
    table = pd.DataFrame({"group": ["control", "MS"], "lesion_load_ml": [0.0, 1.0]})
    figure = show.plot_cohort(table, ["control", "MS"], {"lesion_load_ml": "load"},
                              reference={"lesion_load_ml": {"RRMS": (14.9, 0.66, 52.6)}, "age": {"MS": (40, 30, 50)}})
    assert not any("real" in text.get_text() for text in figure.legends[0].get_texts())
    figure.savefig(io.BytesIO())
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1, "one panel is wide enough for the legend"


def test_large_figures_get_a_palette_and_stay_close(tmp_path):
    full = Image.open(show.save_figure(layer_block(), tmp_path / "full.png"))
    small = Image.open(show.save_figure(layer_block(), tmp_path / "small.png", full_colour_kb=1))
    assert (full.mode, small.mode) == ("RGB", "P")
    difference = np.abs(np.asarray(full, float) - np.asarray(small.convert("RGB"), float))
    assert difference.mean() < 1.5


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
    (lambda: show.plot_lobes(pd.DataFrame({"lobe": []}), [], GROUPS), r"lobes: the table lacks \['group'"),
    (lambda: show.plot_attributions(IMAGE, {"lime": SLICES}, SEQUENCES), "lime: must be finite, of the shape"),
    (lambda: show.plot_scores(pd.DataFrame({"a": [1]}), {"msfi": 1}), r"scores: the table lacks \['msfi'"),
    (lambda: show.plot_shares(pd.DataFrame({"value": [1]}), chance=0, unit=""), r"shares: the table lacks \['low'"),
    (lambda: show.plot_share_bars(pd.DataFrame({"a": []}), [], row="a", column="a", bars="a"),
     r"shares: the table lacks \['modality'"),
    (lambda: show.plot_subject_shares(pd.DataFrame({"group": []}), [], []), r"shares: the table lacks \['backbone'"),
    (lambda: show.plot_flow(pd.DataFrame({"layer": []}), None, []), r"flow: the table lacks \['backbone'"),
    (lambda: show.plot_relations(pd.DataFrame({"q": []}), unit=""), r"effects: the table lacks \['backbone'"),
    (lambda: show.plot_headline(SLICES[0], {}, extra=[("x", SLICES[0], "odd")]), r"must be 'sequential' or 'diverg"),
    (lambda: show.plot_registration(SLICES[0], SLICES, SLICES, ["T2w"]), "one slice per sequence"),
    (lambda: show.plot_qc_table(pd.DataFrame({"a": [1]}), flags=pd.DataFrame({"a": [True, False]})), "flags: must be")])
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


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    figure = show.save_figure(lobes(), folder / "figure.png")
    panel = show.Panel(EVIL, see=EVIL, good=EVIL, image=figure, alt=EVIL, caption=EVIL, text=EVIL,
                       table=pd.DataFrame({EVIL: [EVIL], "n": [3], "share": [np.nan]}))
    table = show.Panel("Table", caption=EVIL, table=pd.DataFrame({"id": [EVIL]}))
    sections = {key: show.Section([panel, table], EVIL) for key in ("training", "summary", "cohort", "methods")}
    path = show.build_report(folder / "report.html", EVIL, sections, simulated=True, lead=EVIL,
                             versions={EVIL: EVIL}, faults=[EVIL])
    return Page(path.read_text(encoding="utf-8"))


def test_report_escapes_what_data_say(report):
    tags = [tag for tag, _ in report.tags]
    assert "script" not in tags
    assert not [attributes for _, attributes in report.tags if any(key.startswith("on") for key in attributes)]
    assert tags.count("img") == 4
    assert EVIL in "".join(report.data)


def test_report_loads_nothing(report):
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in report.addresses)
    assert len([address for address in report.addresses if address.startswith("data:")]) == 4
    assert not [tag for tag, _ in report.tags if tag in ("script", "link", "iframe", "object", "base")]
    assert not re.search(r"@import|url\(", (Path(show.__file__).parent / "report.css").read_text(encoding="utf-8"))
    policy = next(attributes["content"] for tag, attributes in report.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")


def test_report_can_be_read_by_all(report):
    assert dict(report.tags)["html"]["lang"] == "en"
    assert all(attributes.get("alt") for tag, attributes in report.tags if tag == "img")
    headings = [tag for tag, _ in report.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1" and headings.count("h1") == 1 and {"h2", "h3"} <= set(headings)
    links = [address[1:] for address in report.addresses if address.startswith("#")]
    assert set(links) <= set(report.ids) and len(report.ids) == len(set(report.ids))


def test_report_keeps_its_order_and_names_what_is_absent(report):
    order = [identifier for identifier in report.ids if identifier in show.SECTIONS]
    assert order == ["summary", "cohort", "registration", "training", "layers", "methods", "faults"]
    text = "".join(report.data)
    assert text.count("Not part of this run.") == 2
    assert "What you see" in text and "What good looks like" in text and "Simulated data" in text


def test_report_of_real_patients_has_no_banner(tmp_path):
    path = show.build_report(tmp_path / "report.html", "Real", {}, simulated=False)
    text = path.read_text(encoding="utf-8")
    assert "Simulated data" not in text and "No fault was recorded" in text


def test_report_is_reproducible(tmp_path):
    section = {"summary": show.Section([show.Panel("A", text="B")])}
    first = show.build_report(tmp_path / "one.html", "T", section, simulated=True).read_bytes()
    assert first == show.build_report(tmp_path / "two.html", "T", section, simulated=True).read_bytes()


@pytest.mark.parametrize(("panel", "message"), [
    (show.Panel("A", image=b"\x89PNG\r\n\x1a\n"), r"panel 'A': an image needs its text"),
    (show.Panel("A", image=b"GIF89a", alt="a"), "must be a PNG, JPEG or WebP"),
    (show.Panel("A", image="absent.png", alt="a"), r"absent\.png: figure of panel 'A' cannot be read")])
def test_report_refuses_bad_images(panel, message, tmp_path):
    with pytest.raises(StudyError, match=message):
        show.build_report(tmp_path / "report.html", "T", {"summary": show.Section([panel])}, simulated=True)
    assert not list(tmp_path.iterdir())


def test_report_refuses_an_unknown_section(tmp_path):
    with pytest.raises(StudyError, match=r"report sections must be among .* \(got \['sumary'\]\)"):
        show.build_report(tmp_path / "report.html", "T", {"sumary": show.Section()}, simulated=True)


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


def test_gallery(tmp_path):
    (tmp_path / "00_cohort.ipynb").write_text("{}", encoding="utf-8")
    show.save_figure(lobes(), tmp_path / "figures" / "fig1.png", dpi=40)
    entry = show.GalleryEntry("00_cohort.ipynb", "Who | was <studied>?", "figures/fig1.png", "n = *38*")
    path = show.write_gallery(tmp_path, "Study", [entry], lead="One sentence.", simulated=True,
                              headline="figures/fig1.png")
    text = path.read_text(encoding="utf-8")
    assert path.name == "README.md" and "**Simulated data.**" in text and "One sentence." in text
    row = next(line for line in text.splitlines() if line.startswith("| [00"))
    assert row == r"| [00\_cohort](00_cohort.ipynb) | Who \| was &lt;studied&gt;? | n = \*38\* |"
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (tmp_path / target).is_file()


@pytest.mark.parametrize(("file", "message"), [
    ("absent.ipynb", r"absent\.ipynb: the gallery names this file but it is not there"),
    ("../other.ipynb", r"gallery files must lie inside it")])
def test_gallery_links_only_what_is_there(file, message, tmp_path):
    with pytest.raises(StudyError, match=message):
        show.write_gallery(tmp_path, "Study", [show.GalleryEntry(file, "Why?")])
