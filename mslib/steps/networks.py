"""Steps of the networks: slices that they learn, activations of frozen blocks, trainings, what is shipped."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from mslib import cohort, nets
from mslib.study import Network, StudyError, explained_networks, progress, read_arrays, read_table
from mslib.study.files import atomic_path, write_arrays, write_json, write_table, write_weights
from mslib.study.provenance import commit, file_sha256, training_folder

from .study import Study, shipped


def cause_cohort(study: Study) -> None:
    """Slices of simulated patients with and without their lesions, for the ``cause`` networks, into ``nets/cause``.

    The patients are in no cohort. ``images.npy`` (2, n, H, W, M), without lesions first; ``masks.npz``, lesions and
    brain (n, H, W); ``slices.csv``, 2 n rows in that order, with the part of the subject-level split.
    """
    config, folder, count = study.config, study.folder / "nets" / "cause", study.config.training.cause_people
    people = cohort.draw_participants({"RRMS": count - count // 2, "SPMS": count // 2},
                                      config.seed + nets.simulated.CAUSE_SEED, prefix="C")
    grid = {"mm": (mm := config.model.pixel_mm), "size": config.model.image_size, "n_slices": config.prep.n_slices,
            "percentiles": config.prep.percentiles, "sequences": config.sequences,
            "template": cohort.template(mm, study.template(mm))}
    with ThreadPoolExecutor(2) as pool:
        jobs = pool.map(lambda one: nets.simulated.cause_slices(one, config.training.cause_slices, **grid), people)
        made = list(progress(jobs, total=len(people), desc="patients with and without their lesions", unit="person"))
    table = pd.concat([pd.DataFrame({"subject": person.id, "slice": one["slices"], "group": person.group,
                                     "lesion_mm2": one["areas_mm2"]}) for person, one in zip(people, made)],
                      ignore_index=True)
    both = pd.concat([table.assign(target=target) for target in range(len(nets.CAUSE_CLASSES))], ignore_index=True)
    parts = nets.assign_parts("cause", both, nets.CAUSE_SPLIT, config.seed)
    write_table(folder / "slices.csv", both.assign(part=parts))
    masks = {name: np.concatenate([one[name] for one in made]) for name in ("lesions", "brain")}
    write_arrays(folder / "masks.npz", **masks)
    with atomic_path(folder / "images.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate([one["images"] for one in made], axis=1))


def activations(study: Study, backbone: str, of: str, blocks: int) -> None:
    """What frozen blocks make of the slices of ``study`` or ``cause``, and their features, once for all trainings."""
    slices, label = study.slice_set(of), f"{backbone} blocks 1 to {blocks}, {of}"
    model = study.trainable(Network(backbone), nets.choose_precision(study.config.training.precision))
    made, features = nets.cached(model, [blocks], slices, study.input_channels, label)
    path = study.folder / "nets" / backbone / "activations" / f"{of}_block{blocks}.npz"
    write_table(path.with_suffix(".csv"), slices.table)
    with atomic_path(path) as temporary:
        np.savez(temporary, features=features, activations=made[blocks])


def recipe_of(study, kind, seed, **options):
    """How a kind of network is trained from a seed; all but the first on a bootstrap sample."""
    training, schedule = study.config.training, getattr(study.config.training, kind)
    return nets.Recipe(schedule.epochs, schedule.slices_per_subject, schedule.learning_rate, training.batch_size,
                       training.weight_decay, training.patience, study.config.seed + seed - 1,
                       bootstrap=nets.KINDS[kind] if seed > 1 else None, **options)


def train(study: Study, backbone: str, kind: str) -> None:
    """Train a kind of network from every seed, and predict the slices that it neither learns nor is stopped by.

    The first training learns the whole training part, each further one a bootstrap sample of its subjects (slices,
    where the split is by slices): from given weights trainings would otherwise be copies of each other.
    Then ``permuted.csv``, the test part's predictions after a training on permuted labels of the subjects (of a
    slice-level split, else empty), and ``features.npz``, the pooled features of the start weights (empty where nothing
    reads them).
    """
    if kind not in nets.KINDS:
        raise StudyError(f"--kind: must be one of {', '.join(nets.KINDS)} (got {kind!r})")
    config, training, schedule = study.config, study.config.training, getattr(study.config.training, kind)
    given, precision = config.model.weights != "scratch", nets.choose_precision(training.precision)
    model = study.trainable(Network(backbone, kind), precision)  # one for all trainings, traced once
    start, place, done = model.get_weights(), study.folder / "nets" / backbone / kind, []
    of, features, options = "cause" if kind == "cause" else "study", None, {}
    if blocks := schedule.frozen_blocks:
        path = study.folder / "nets" / backbone / "activations" / f"{of}_block{blocks}.npz"
        stored, table = read_arrays(path), read_table(path.with_suffix(".csv"))
        slices, features = nets.SliceSet(stored["activations"], table), stored["features"]
    else:
        slices = study.slice_set(of)
        options = {"augmentation": training.augmentation, "channels": study.input_channels}
        if given or kind == "honest":
            features = nets.cached(model, [], slices, study.input_channels, f"{backbone} features")[1]

    def fitted(network, table, folder, asked=("test", "independent")):
        parts, recipe = table["part"], recipe_of(study, kind, network.seed, **options)
        if kind != "cause":
            own = nets.assign_parts(kind, table[parts.isna()], training.split, config.seed)
            parts = own.reindex(table.index).fillna("independent")
        if nets.KINDS[kind] == "subject":
            nets.refuse_leakage(table["subject"], parts)
        table = table.assign(part=parts)
        done.append(training_folder(folder, "train", "nets", recipe, schedule, table.to_csv()))
        model.set_weights(start if network.seed == 1 else study.trainable(network, precision).get_weights())
        label = folder.relative_to(study.folder / "nets").as_posix()
        plain, history = nets.fine_tune(model, blocks, nets.SliceSet(slices.images, table), parts, recipe, done[-1],
                                        label, features if given else None)
        rows, logits = np.flatnonzero(parts.isin(asked)), np.full((len(table), len(study.classes(kind))), np.nan)
        logits[rows] = nets.predict(nets.split_network(plain, blocks)[1], slices, recipe.channels, f"{label}: predict",
                                    rows=rows)
        return plain, nets.prediction_table(table, logits, study.classes(kind)), history

    for network in explained_networks(config, backbone, kind):
        folder = study.folder / "nets" / str(network)
        plain, predictions, history = fitted(network, slices.table, folder)
        write_table(folder / "history.csv", history)
        write_table(folder / "predictions.csv", predictions)
        write_weights(folder / "weights.weights.h5", plain)
    control = predictions[:0]
    if nets.KINDS[kind] == "slice":
        own = slices.table["part"].isna()
        labelled = nets.permuted_labels(slices.table[own], config.groups, config.seed)
        table = pd.concat([labelled, slices.table[~own].assign(true=-1)]).loc[slices.table.index]
        control = fitted(Network(backbone, kind), table, place / "permuted", ["test"])[1].query("part == 'test'")
    write_table(place / "permuted.csv", control.assign(kind=f"{kind}_permuted"))
    write_arrays(place / "features.npz", features=np.empty((0, 0)) if features is None else features)
    for finished in done:  # not before: a job that is stopped finds what it had finished
        shutil.rmtree(finished)
    shutil.rmtree(place / "permuted", ignore_errors=True)


def folds(study: Study, backbone: str) -> None:
    """Every subject of the study tested once, by a last layer on the features of the start weights.

    ``protocol``: ``folds``, and with permuted labels ``folds_permuted``.
    """
    config, place = study.config, study.folder / "nets" / backbone / "honest"
    features = read_arrays(place / "features.npz")["features"]
    table = read_table(place / "seed1" / "predictions.csv")
    own = (table["part"] != "independent").to_numpy()
    known = table[own].filter(regex="^(?!logit_|part$)").reset_index(drop=True)
    tables = []
    for protocol, labelled in (("folds", known),
                               ("folds_permuted", nets.permuted_labels(known, config.groups, config.seed))):
        logits = nets.fold_logits(features[own], labelled, config.training.folds, config.seed)
        tables.append(nets.prediction_table(labelled, logits, config.groups).assign(protocol=protocol))
    write_table(place / "folds.csv", pd.concat(tables))


def export(study: Study, network: Network) -> None:
    """Write what fine-tuning has changed in a network to ``weights``, as float16 with a card."""
    config, start, fitted = study.config, study.started(network), study.net(*network)
    classes, path = study.classes(network.kind), shipped(network)
    if config.model.weights != "simulated":
        raise StudyError("model.weights: must be 'simulated' for networks that are shipped (got "
                         f"{config.model.weights!r})")
    changed = [layer.name for layer in fitted.layers if layer.weights and not all(
        map(np.array_equal, layer.get_weights(), start.get_layer(layer.name).get_weights()))]
    nets.save_half(path, fitted, changed, classes)
    table = read_table(study.folder / "nets" / str(network) / "predictions.csv")
    table = table[table["part"].isin(("test", "independent"))]
    right = table[[f"logit_{name}" for name in classes]].to_numpy().argmax(1) == table["target"]
    write_json(path.with_suffix(".json"), {
        "network": str(network), "split": nets.KINDS[network.kind], "classes": classes,
        "starts from": f"{network.backbone}_simulated.h5", "study": config.study, "commit": commit(),
        "schedule": getattr(config.training, network.kind).model_dump(),
        "accuracy of slices": right.groupby(table["part"]).mean().round(4).to_dict(), "layers": changed,
        "sha256": file_sha256(path)})
