"""Notebook 08: networks from several start weights, on slices in which a bright square is the lesion."""

from collections import defaultdict

import keras
import numpy as np
import pandas as pd
import pytest
import yaml

from mslib.nets import CAUSE_SPLIT, assign_parts, first_reaching
from mslib.nets.vgg import CONVOLUTIONS
from mslib.steps import Study, pretraining
from mslib.steps.results import notebook
from mslib.study import read_json, write_arrays, write_table

SETTINGS = {
    "study": "pretraining", "notebooks": ["08_pretraining"],
    "model": {"backbones": ["vgg16"], "kinds": ["cause"], "image_size": [32, 32], "pixel_mm": 6.0, "seeds": 2,
              "narrow": 16},
    "training": {"batch_size": 8, "precision": "float32",
                 "cause": {"epochs": 3, "slices_per_subject": 4, "learning_rate": 1e-3}},
    "explain": {"slices_per_subject": 1},
    "attribution": {"superpixels": 2, "samples": 24, "permutations": 1, "steps": 2},
    "comparison": {"weights": {"scratch": "scratch", "imagenet": "absent.h5"}, "frozen_blocks": [4],
                   "accuracy": 0.5, "slices": 2, "perturbed_slices": 2},
    "statistics": {"bootstrap": 100}}
kernels = defaultdict(list)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A run whose slices are noise, with a bright square or without, and what `compare_start` makes of them."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "pretraining.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    rng, people, each = np.random.default_rng(0), 12, 2
    lesions = np.zeros((people * each, 32, 32), bool)
    for mask, (row, column) in zip(lesions, rng.integers(6, 22, (len(lesions), 2))):
        mask[row:row + 5, column:column + 5] = True
    without = rng.uniform(0.2, 0.4, (len(lesions), 32, 32, 3)).astype(np.float16)
    images = np.stack([without, np.where(lesions[..., None], np.float16(1), without)])
    one = pd.DataFrame({"subject": np.repeat([f"C{i:02d}" for i in range(people)], each),
                        "slice": np.tile(np.arange(each), people), "lesion_mm2": 900.0,
                        "group": np.repeat(["RRMS", "SPMS"], people * each // 2)})
    table = pd.concat([one.assign(target=0), one.assign(target=1)], ignore_index=True)
    table["part"] = assign_parts("cause", table, CAUSE_SPLIT, 0)
    cause = folder / "run" / "nets" / "cause"
    cause.mkdir(parents=True)
    np.save(cause / "images.npy", images)
    write_arrays(cause / "masks.npz", lesions=lesions, brain=np.ones_like(lesions))
    write_table(cause / "slices.csv", table)
    study, measure = Study(folder / "pretraining.yaml", folder / "run"), pretraining._compared_maps

    def measured(study, network, slices, all_methods, label):
        kernels[label].append(network.get_layer("block1_conv1").get_weights()[0])
        return measure(study, network, slices, all_methods, label)

    with pytest.MonkeyPatch.context() as patch:  # one convolution a block, as of the fixture `shallow`
        patch.setitem(CONVOLUTIONS, "vgg16", (1, 1, 1, 1, 1))
        patch.setattr(pretraining, "_compared_maps", measured)
        for start in SETTINGS["comparison"]["weights"]:
            pretraining.compare_start(study, start)
    return study


def test_every_training_is_compared_at_its_best_and_at_equal_accuracy(study):
    accuracy = study.read("pretraining_accuracy")
    own = accuracy[accuracy["start"] == "scratch"]
    assert set(zip(own["frozen_blocks"], own["seed"], own["state"])) >= {(4, seed, "best") for seed in (1, 2)}
    assert own["accuracy"].between(0, 1).all() and "equal" in set(own["state"])
    epochs = own.pivot_table("epoch", "seed", "state")
    other = epochs.index[epochs["equal"] < epochs["best"]]
    maps = study.read("pretraining_maps").query("source == 'network' and seed in @other and method == 'layercam'")
    means = maps.pivot_table("auprc", ["seed", "subject", "slice", "layer"], "state")
    assert len(other) and not np.allclose(means["best"], means["equal"], equal_nan=True)  # another epoch's maps
    assert not list((study.folder / "pretraining").rglob("*.weights.h5"))  # trainings are cleared away


def test_frozen_blocks_are_those_that_the_activations_were_made_with(study):
    first, second = (kernels[f"scratch, 4 frozen blocks, seed {seed}"] for seed in (1, 2))
    assert all(np.array_equal(first[0], kernel) for kernel in (*first, *second))
    assert not np.array_equal(first[0], kernels["vgg16, untrained"][0])


def test_weights_that_cannot_be_had_are_a_row_with_the_reason(study):
    row = study.read("pretraining_accuracy").query("start == 'imagenet'")
    assert len(row) == 1 and "absent.h5" in row["reason"].item()


def test_maps_stand_beside_their_comparators(study):
    maps = study.read("pretraining_maps")
    own = maps[(maps["source"] == "network") & (maps["state"] == "best")]
    assert set(own["layer"]) == {f"block{block}_{name}" for block in (4, 5) for name in ("conv1", "pool")}
    means = maps.groupby(["source", "method"])["auprc"].mean()
    assert means["comparator", "intensity"] == pytest.approx(1)  # the square is the brightest
    assert {"oracle", "prior", "edges"} <= set(maps.loc[maps["source"] == "comparator", "method"])
    assert "untrained" in set(maps["state"])
    methods = study.read("pretraining_methods")
    assert methods["method"].nunique() == 17 and set(methods["seed"]) == {1}


def test_the_notebook_runs_on_them(study, monkeypatch):
    monkeypatch.setenv("MSLIB_DRIVEN", "1")
    notebook(study, "08_pretraining")
    record = read_json(study.folder / "metrics" / "08_pretraining.json")
    assert record["answer"].startswith("Best AUPRC") and "absent.h5" in record["absent"]["imagenet"]
    assert (study.folder / "figures" / "pretraining_depth.png").is_file()


def test_the_first_epoch_that_reaches_the_border_is_kept(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    keep = first_reaching(model, tmp_path / "first.weights.h5", 0.7)
    for epoch, accuracy in enumerate((0.6, 0.7, 0.9)):
        model.layers[0].kernel.assign([[float(epoch)]])
        keep.on_epoch_end(epoch, {"val_accuracy": accuracy})
    model.load_weights(tmp_path / "first.weights.h5")
    assert float(model.layers[0].kernel[0, 0]) == 1
