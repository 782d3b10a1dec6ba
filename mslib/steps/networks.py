"""Steps of the networks: slices that they learn, activations of frozen blocks, trainings, what is shipped."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from mslib.study import (
    Network,
    StudyError,
    atomic_path,
    explained_networks,
    progress,
    read_arrays,
    read_json,
    read_table,
    write_arrays,
    write_json,
    write_table,
    write_weights,
)
from mslib.study.provenance import commit, file_sha256, training_folder

from .study import Study, shipped


def cause_cohort(study: Study) -> None:
    """Slices of simulated patients with and without their lesions, for the ``cause`` networks, into ``nets/cause``.

    The patients are in no cohort. ``images.npy`` (2, n, H, W, M), without lesions first; ``masks.npz``, lesions and
    brain (n, H, W); ``slices.csv``, 2 n rows in that order, with the part of the subject-level split.
    """
    from mslib.cohort import draw_participants, template
    from mslib.nets import CAUSE_CLASSES, CAUSE_SPLIT, assign_parts
    from mslib.nets.simulated import CAUSE_SEED, cause_slices
    config, folder, count = study.config, study.folder / "nets" / "cause", study.config.training.cause_people
    people = draw_participants({"RRMS": count - count // 2, "SPMS": count // 2}, config.seed + CAUSE_SEED, prefix="C")
    mm = config.model.pixel_mm
    grid = {"mm": mm, "size": config.model.image_size, "n_slices": config.prep.n_slices,
            "percentiles": config.prep.percentiles, "sequences": config.sequences,
            "template": template(mm, study.template(mm))}
    with ThreadPoolExecutor(2) as pool:
        jobs = pool.map(lambda person: cause_slices(person, config.training.cause_slices, **grid), people)
        made = list(progress(jobs, total=len(people), desc="patients with and without their lesions", unit="person"))
    table = pd.concat([pd.DataFrame({"subject": person.id, "slice": one["slices"], "group": person.group,
                                     "lesion_mm2": one["areas_mm2"]}) for person, one in zip(people, made)],
                      ignore_index=True)
    both = pd.concat([table.assign(target=target) for target in range(len(CAUSE_CLASSES))], ignore_index=True)
    write_table(folder / "slices.csv", both.assign(part=assign_parts("cause", both, CAUSE_SPLIT, config.seed)))
    write_arrays(folder / "masks.npz", **{name: np.concatenate([one[name] for one in made])
                                          for name in ("lesions", "brain")})
    with atomic_path(folder / "images.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate([one["images"] for one in made], axis=1))


def _areas(study, subject, z_mm):
    """True areas of lesions, black holes and ventricles at heights of a simulated subject; none of a real one."""
    name = f"sub-{subject}"
    path = study.bids_root / "derivatives" / "truth" / name / "anat" / f"{name}_truth.json"
    areas = read_json(path).get("areas_mm2") if path.is_file() else None
    return {} if areas is None else {f"{key}_mm2": np.interp(z_mm, areas["z_mm"], areas[key]).round(2)
                                     for key in ("lesion", "black_hole", "ventricle")}


def slices_of(study, of):
    """Slices that networks learn and are tested on: ``study`` (both cohorts, spread over each brain) or ``cause``."""
    from mslib.nets import SliceSet, evenly
    if of == "cause":
        images = np.load(study.folder / "nets" / "cause" / "images.npy", mmap_mode="r")
        return SliceSet(images.reshape(-1, *images.shape[2:]), read_table(study.folder / "nets/cause/slices.csv"))
    counts = {"study": study.config.training.slices, "independent": study.config.training.independent_slices}
    images, tables = [], []
    for subject, person in progress(study.subjects.iterrows(), total=len(study.subjects), desc="load slices"):
        stack = study.stack(subject)
        index = evenly(np.arange(len(stack.images)), counts[person["cohort"]])
        images.append(stack.images[index])
        tables.append(pd.DataFrame({
            "subject": subject, "slice": index, "group": person["group"], "target": study.target(subject),
            "part": None if person["cohort"] == "study" else "independent",
            **_areas(study, subject, stack.z_mm[index])}))
    return SliceSet(np.concatenate(images), pd.concat(tables, ignore_index=True))


def _cached(study, backbone, of, blocks):
    return study.folder / "nets" / backbone / "activations" / f"{of}_block{blocks}"


def activations(study: Study, backbone: str, of: str, blocks: int) -> None:
    """What frozen blocks make of the slices of ``study`` or ``cause``, and their features, once for all trainings."""
    from mslib.nets import cached, channels_of, choose_precision
    config, slices = study.config, slices_of(study, of)
    model = study.trainable(Network(backbone), choose_precision(config.training.precision))
    made, features = cached(model, [blocks], slices, channels_of(config.model.input, config.sequences),
                            f"{backbone} blocks 1 to {blocks}, {of}")
    path = _cached(study, backbone, of, blocks)
    write_table(path.with_suffix(".csv"), slices.table)
    with atomic_path(path.with_suffix(".npz")) as temporary:
        np.savez(temporary, features=features, activations=made[blocks])


def _parts(study, kind, table):
    """Part of every slice of a table of `_slices` under a kind of network."""
    from mslib.nets import assign_parts
    if kind == "cause":
        return table["part"]
    own = table[table["part"].isna()]
    return assign_parts(kind, own, study.config.training.split, study.config.seed).reindex(table.index).fillna(
        "independent")


def train(study: Study, backbone: str, kind: str) -> None:
    """Train a kind of network from every seed, and predict all slices: of its parts and of the independent cohort.

    The first training learns the whole training part, each further one a bootstrap sample of its subjects (slices,
    where the split is by slices): from given weights trainings would otherwise be copies of each other.
    Then ``permuted.csv``, the test part's predictions after a training on permuted labels of the subjects (empty for
    ``cause``), and ``features.npz``, the pooled features of the start weights (empty where nothing reads them).
    """
    from mslib import nets
    if kind not in nets.KINDS:
        raise StudyError(f"--kind: must be one of {', '.join(nets.KINDS)} (got {kind!r})")
    config, training, schedule = study.config, study.config.training, getattr(study.config.training, kind)
    of, blocks, features = "cause" if kind == "cause" else "study", schedule.frozen_blocks, None
    given, precision = config.model.weights != "scratch", nets.choose_precision(training.precision)
    model = study.trainable(Network(backbone, kind), precision)  # one for all trainings, traced once
    start = model.get_weights()
    if blocks:
        path = _cached(study, backbone, of, blocks)
        stored = read_arrays(path.with_suffix(".npz"))
        slices = nets.SliceSet(stored["activations"], read_table(path.with_suffix(".csv")))
        features = stored["features"]
    else:
        slices, channels = slices_of(study, of), nets.channels_of(config.model.input, config.sequences)
        if given or kind == "honest":
            features = nets.cached(model, [], slices, channels, f"{backbone} features")[1]
    place, done = study.folder / "nets" / backbone / kind, []

    def fitted(network, table, folder):
        seed, parts = config.seed + network.seed - 1, _parts(study, kind, table)
        recipe = nets.Recipe(
            schedule.epochs, schedule.slices_per_subject, schedule.learning_rate, training.batch_size,
            training.weight_decay, training.patience, seed, *((None, None) if blocks else
                                                              (training.augmentation, channels)),
            bootstrap=nets.KINDS[kind] if network.seed > 1 else None)
        if nets.KINDS[kind] == "subject":
            nets.refuse_leakage(table["subject"], parts)
        table = table.assign(part=parts)
        done.append(training_folder(folder, "train", "nets", recipe, schedule, table.to_csv()))
        model.set_weights(start if network.seed == 1 else study.trainable(network, precision).get_weights())
        plain, logits, history = nets.fine_tune(
            model, blocks, nets.SliceSet(slices.images, table), parts, recipe, done[-1],
            folder.relative_to(study.folder / "nets").as_posix(), features if given else None)
        return plain, nets.prediction_table(table, logits, study.classes(kind)), history

    for network in explained_networks(config, backbone, kind):
        folder = study.folder / "nets" / str(network)
        plain, predictions, history = fitted(network, slices.table, folder)
        write_table(folder / "history.csv", history)
        write_table(folder / "predictions.csv", predictions)
        write_weights(folder / "weights.weights.h5", plain)
    control = predictions[:0]
    if kind != "cause":
        own = slices.table["part"].isna()
        labelled = nets.permuted_labels(slices.table[own], config.groups, config.seed)
        table = pd.concat([labelled, slices.table[~own].assign(true=-1)]).loc[slices.table.index]
        control = fitted(Network(backbone, kind), table, place / "permuted")[1].query("part == 'test'")
    write_table(place / "permuted.csv", control.assign(kind=f"{kind}_permuted"))
    write_arrays(place / "features.npz", features=np.empty((0, 0)) if features is None else features)
    for finished in done:  # not before: a job that is stopped finds what it had finished
        shutil.rmtree(finished)
    shutil.rmtree(place / "permuted", ignore_errors=True)


def folds(study: Study, backbone: str) -> None:
    """Every subject of the study tested once, by a last layer on the features of the start weights."""
    from mslib.nets import fold_logits, prediction_table
    config, place = study.config, study.folder / "nets" / backbone / "honest"
    features = read_arrays(place / "features.npz")["features"]
    table = read_table(place / "seed1" / "predictions.csv")
    own = (table["part"] != "independent").to_numpy()
    known = table[own].filter(regex="^(?!logit_|part$)").reset_index(drop=True)
    logits = fold_logits(features[own], known, config.training.folds, config.seed)
    write_table(place / "folds.csv", prediction_table(known, logits, config.groups))


def export(study: Study, network: Network) -> None:
    """Write what fine-tuning has changed in a network to ``weights``, as float16 with a card."""
    from mslib.nets import KINDS, save_half
    config, start, fitted = study.config, study.started(network), study.net(*network)
    if config.model.weights != "simulated":
        raise StudyError("model.weights: must be 'simulated' for networks that are shipped (got "
                         f"{config.model.weights!r})")
    changed = [layer.name for layer in fitted.layers if layer.weights and not all(
        map(np.array_equal, layer.get_weights(), start.get_layer(layer.name).get_weights()))]
    path = shipped(network)
    save_half(path, fitted, changed, study.classes(network.kind))
    table = read_table(study.folder / "nets" / str(network) / "predictions.csv")
    right = table[[f"logit_{name}" for name in study.classes(network.kind)]].to_numpy().argmax(1) == table["target"]
    write_json(path.with_suffix(".json"), {
        "network": str(network), "split": KINDS[network.kind], "classes": study.classes(network.kind),
        "starts from": f"{network.backbone}_simulated.h5", "study": config.study, "commit": commit(),
        "schedule": getattr(config.training, network.kind).model_dump(),
        "accuracy of slices": right.groupby(table["part"]).mean().round(4).to_dict(), "layers": changed,
        "sha256": file_sha256(path)})
