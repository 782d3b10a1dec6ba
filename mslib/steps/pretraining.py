"""Pre-training on simulated people, and the step that compares what networks start from."""

import shutil
import sys
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from mslib import analysis, cohort, explain, nets
from mslib.study import Network, StudyError, load_config, progress
from mslib.study.config import Pretraining
from mslib.study.files import read_table, write_json, write_table, write_tables, write_weights
from mslib.study.provenance import ROOT, commit, file_sha256, training_folder

from .attribution import as_explained, few_of, methods_of
from .networks import recipe_of
from .study import Study


def pretrain(backbone: str, folder: Path, recipe: Path = ROOT / "weights" / "pretraining.yaml") -> None:
    """Pre-train a backbone on simulated people and write what `weights/` ships; goes on where it was stopped.

    The folder gets the people's slices, the weights of every stage and ``<backbone>_simulated.h5`` with its card.
    """
    import fcntl

    import keras
    from joblib import Parallel, delayed
    settings, made_by, pre = load_config(recipe, Pretraining), commit(), nets.pretraining
    people, place = folder / pre.cohort_name(settings), folder / backbone
    people.mkdir(parents=True, exist_ok=True)
    with (people / ".lock").open("w") as lock:  # two backbones may be trained side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        if numbers := pre.missing_people(settings, people):
            cohort.write_template(people / "template.npz", settings.pixel_mm)
            maps = cohort.template(settings.pixel_mm, people / "template.npz")
            list(progress(Parallel(n_jobs=2, return_as="generator")(
                delayed(pre.make_person)(number, settings, people, maps) for number in numbers),
                total=len(numbers), desc="simulate people for pre-training", unit="person"))
    slices, held = pre.read_cohort(settings, people)
    precision, model, stages = nets.choose_precision(settings.precision), None, []
    for number, stage in enumerate(settings.stages):
        facts = settings.model_dump_json(exclude={"stages"}) + repr(settings.stages[:number + 1])
        training = place / f"stage{number + 1}-{zlib.crc32(facts.encode()):08x}"
        stored = training / "weights.weights.h5"
        shape = (*(side // stage.shrink for side in settings.image_size), len(settings.sequences))
        keras.utils.set_random_seed(settings.seed + number)
        earlier, model = model, pre.build_pretrained(backbone, settings, shape, precision)
        if stored.is_file():
            nets.load_weights(model, stored)
        else:
            if earlier is not None:
                model.set_weights(earlier.get_weights())
            history = pre.pretrain_stage(number, model, slices.shrunk(stage.shrink), held, settings, training)
            write_table(training / "stage.csv", history)
            write_weights(stored, model)
            shutil.rmtree(training / "backup")
        seconds = [float(line) for line in (training / "seconds.txt").read_text(encoding="utf-8").split()]
        stages.append({"pixel_mm": settings.pixel_mm * stage.shrink, "hours": round(sum(seconds) / 3600, 3),
                       **read_table(training / "stage.csv").iloc[-1].to_dict()})
    plain = nets.fold_batch_norm(keras.Model(model.input, model.outputs[0], name=backbone))
    path = folder / f"{backbone}_simulated.h5"
    nets.save_half(path, plain, [layer.name for layer in plain.layers if layer.weights], settings.groups)
    shown = np.flatnonzero(held)[::7][:8]
    write_json(path.with_suffix(".json"), {
        "backbone": backbone, "data": "simulated people, in no cohort of any study",
        "recipe": settings.model_dump(mode="json"), "commit": made_by, "precision": precision, "stages": stages,
        "validation": pre.evaluate(model, slices, held), "scope": pre.scope(slices, settings),
        "sha256": file_sha256(path),
        "float16_rank_correlation_of_maps": _likeness_of_half(
            plain, slices.batch(shown), slices.table["target"].to_numpy()[shown])})


def _likeness_of_half(plain, images, targets) -> float:
    """Lowest rank correlation of the Grad-CAMs of a network with those of its weights rounded to float16."""
    from scipy.stats import spearmanr
    full = explain.layer_cams(plain, images, targets)["gradcam"]
    plain.set_weights([weight.astype(np.float16).astype(np.float32) for weight in plain.get_weights()])
    half = explain.layer_cams(plain, images, targets)["gradcam"]
    return float(min(spearmanr(full[name][k].ravel(), half[name][k].ravel()).statistic
                     for name in full for k in range(len(images)) if full[name][k].std() > 0))


def compare_start(study: Study, start: str) -> None:
    """Networks that lesions alone can decide, from one kind of start weights: accuracy and maps of all their trainings.

    ``accuracy.csv``: a row per training and ``state``, ``best`` or ``equal`` (the first epoch that classifies so many
    validation slices correctly; no row where none does); where the start weights cannot be had, one row with the
    ``reason``. ``maps.csv``: rows of `measure_layers`; ``methods.csv``: rows of `localise`, of the first seed.
    """
    config, own, folder = study.config, study.config.comparison, study.folder / "pretraining" / start
    backbone, precision = config.model.backbones[0], nets.choose_precision(config.training.precision)
    networks = [Network(backbone, "cause", seed + 1) for seed in range(config.model.seeds)]
    try:
        model, *others = (study.trainable(network, precision, own.weights[start]) for network in networks)
    except StudyError as error:
        print(f"{start}: {error}; left out", file=sys.stderr)
        nothing = pd.DataFrame(columns=["state"])
        write_tables(folder, 5, accuracy=pd.DataFrame([{"reason": str(error)}]), maps=nothing, methods=nothing)
        return
    starts = [network.get_weights() for network in (model, *others)]
    slices = study.slice_set("cause")
    below, features = nets.cached(model, own.frozen_blocks, slices, study.input_channels, f"{backbone}, {start}")
    explained = study.explained_slices(networks[0], config.explain.slices_per_subject)
    test = np.flatnonzero(slices.table["part"] == "test")
    training = training_folder(folder, "compare_start", "nets", recipe_of(study, "cause", 1), own)
    rows, tables = [], {"maps": [], "methods": []}
    for blocks, network in product(own.frozen_blocks, networks):
        place, label = training / f"{blocks}-{network.seed}", f"{start}, {blocks} frozen blocks, seed {network.seed}"
        lower, upper = nets.split_network(model, blocks)
        equal = place / "equal.weights.h5"
        model.set_weights(starts[0])
        frozen = lower.get_weights()  # what the activations were made with, whatever the seed draws
        model.set_weights(starts[network.seed - 1])
        lower.set_weights(frozen)
        activations = nets.SliceSet(below[blocks], slices.table)
        plain, history = nets.fine_tune(model, blocks, activations, slices.table["part"],
                                        recipe_of(study, "cause", network.seed), place, label,
                                        None if own.weights[start] == "scratch" else features,
                                        [nets.first_reaching(upper, equal, own.accuracy)])
        epochs = {"best": int(history["val_loss"].idxmin()) + 1}
        if equal.is_file():
            epochs["equal"] = int((history["val_accuracy"] >= own.accuracy).idxmax()) + 1
        for state, epoch in epochs.items():
            if state == "equal":  # `plain` is one network for all trainings: what was best has been measured
                upper.load_weights(str(equal))
                plain = nets.plain_network(model)
            names = {"frozen_blocks": blocks, "seed": network.seed, "state": state}
            logits = nets.predict(nets.split_network(plain, blocks)[1], activations, label=label, rows=test)
            right = logits.argmax(1) == slices.table["target"][test]
            rows.append(names | {"epoch": epoch, "accuracy": right.mean()})
            for name, table in _compared_maps(study, plain, explained, network.seed == 1, label).items():
                tables[name].append(table.assign(**names))
    plain.set_weights(explain.randomised_copy(plain, "block1_conv1", config.seed).get_weights())
    for name, table in _compared_maps(study, plain, explained, True, f"{backbone}, untrained").items():
        tables[name].append(table.assign(frozen_blocks=0, seed=1, state="untrained"))
    write_table(folder / "accuracy.csv", pd.DataFrame(rows))
    write_tables(folder, 5, **{name: pd.concat(parts) for name, parts in tables.items()})
    shutil.rmtree(training)


def _compared_maps(study, network, slices, all_methods, label):
    """Measures of the maps of a network of `compare_start`: of blocks 4 and 5, and of all methods."""
    config, own, depth = study.config, study.config.comparison, analysis.depth
    layers = [name for name in depth.explained_layers(network) if "block3" not in name]
    found = explain.explain_layers(network, slices.images, slices.table["target"], layers, ("gradcam", "layercam"), 8)
    correct = found.logits.argmax(1) == slices.table["target"].to_numpy()
    maps = depth.measure_layers(found, slices._replace(table=slices.table.assign(correct=correct)),
                                config.sequences.index("FLAIR"))
    if not all_methods:
        return {"maps": maps}
    rows = few_of(len(correct), own.slices)
    few = as_explained(study, slices.take(rows), own.perturbed_slices)
    made, _ = analysis.attribution.attribute_all(network, few, methods_of([config.relevance.rule]), label,
                                                 **study.attribution_settings)
    scores = analysis.attribution.localise(made, few, source="network")
    return {"maps": maps, "methods": scores.assign(correct=correct[rows][scores["image"]])}
