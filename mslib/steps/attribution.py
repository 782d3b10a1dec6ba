"""Steps of attribution and relevance, on networks of the study and on those with a known decision rule."""

from __future__ import annotations

import shutil
from collections import defaultdict

import numpy as np
import pandas as pd

from mslib.study import CONTROL, Network, explained_networks, progress, write_tables, write_weights
from mslib.study.provenance import training_folder

from .study import Study, write_maps


def unmarked_controls(study, part):
    """Slices of controls in which marks fit, to ``train`` on or to ``test``; nobody is in both."""
    from mslib.nets import gather
    from mslib.nets.known_rule import wide_slices
    table = study.subjects[study.subjects["group"] == CONTROL]
    independent = table["cohort"] == "independent"
    test = independent if independent.any() else table["part"] == "test"
    names = table.index[test if part == "test" else ~test]
    stacks = {name: study.stack(name) for name in progress(names, desc=f"controls, {part}", unit="subject")}
    wide = {name: wide_slices(stack.images, stack.brain) for name, stack in stacks.items()}
    return gather(wide, table["group"], study.config.groups).shrunk(study.config.attribution.known_rule.shrink)


def methods_of(rules, costly=True):
    """Attribution methods, perturbation methods among them if `costly`, and rules of relevance."""
    from mslib.analysis.attribution import LRP
    from mslib.explain import METHODS
    chosen = [name for name, method in METHODS.items() if costly or method.family != "perturbation"]
    return [*chosen, *(f"{LRP}{rule}" for rule in rules)]


def known_rule(study: Study) -> None:
    """Networks with a known decision rule: train them, and score what every method and relevance rule says of them.

    Tables have a row per slice. An unfinished training is resumed. Seeds start from other weights.
    """
    from mslib.analysis import attribution, relevance
    from mslib.analysis import known_rule as known
    from mslib.nets import Recipe, build_classifier, evenly
    from mslib.nets.known_rule import experiments, spread, train_known_rules
    config, own, settings = study.config, study.config.attribution, study.attribution_settings
    sequences, folder, seed = config.sequences, study.folder / "known_rule", config.seed
    mm, rules = config.model.pixel_mm * own.known_rule.shrink, own.known_rule
    methods = methods_of(config.relevance.compared)
    train, unmarked, shown = unmarked_controls(study, "train"), unmarked_controls(study, "test"), sequences[-1]
    recipe = Recipe(rules.epochs, rules.slices_per_subject, rules.learning_rate, config.training.batch_size,
                    config.training.weight_decay, patience=rules.epochs, seed=seed)
    training = training_folder(folder, "known_rule", "nets/known_rule", recipe, rules, train.table.to_csv())
    # One network is trained from several seeds, and that one is removed and randomised.
    tasks = {f"{experiment.name} {number}": (experiment.marked(train, mm, seed), seed + number - 1)
             for experiment in experiments(sequences)
             for number in range(1, rules.seeds + 1 if experiment.name == shown else 2)}
    weights = train_known_rules(tasks, recipe, rules.narrow, training)
    model = build_classifier("vgg16", 2, train.images.shape[1:], narrow=rules.narrow)  # one for all, traced once
    test, many = spread(unmarked, rules.test_slices), spread(unmarked, 2 * rules.test_slices)
    tables = defaultdict(list)
    for experiment in experiments(sequences):
        name = experiment.name
        model.set_weights(weights[f"{name} 1"])
        tables["use"].append(known.answers_to_cues(model, experiment, many, sequences, mm, seed + 2))
        marked = experiment.marked(test, mm, seed + 1)
        index = np.arange(len(test.table))
        explained = known.explained_marks(marked, mm, evenly(index, rules.perturbed_slices, staggered=True))
        maps, seconds = attribution.attribute_all(model, explained, methods, f"known rule, {name}", **settings)
        write_weights(folder / name / "weights.weights.h5", model)
        some, slices = attribution.of_few(maps, explained)
        middle = len(slices.images) // 2
        write_maps(folder / name / "maps.npz", slices.at([middle]), {key: raw[[middle]] for key, raw in some.items()})
        if experiment.shortcut:
            tables["shortcut"].append(known.shortcut_shares(maps, explained, marked.corner, own.superpixels))
            continue
        importance = attribution.slice_importance(model, explained, sequences, seed, name)
        worth = np.equal(sequences, name).astype(float)  # the rule itself: the decisive sequence is all that matters
        scores = attribution.score_maps(maps, explained, worth, model, sequences)
        shares = [relevance.slice_shares(model, explained.images, explained.targets, sequences, rule, explained.brain,
                                         explained.features).assign(rule=rule, subject=explained.subjects)
                  for rule in progress(config.relevance.compared, desc=f"known rule, {name}", unit="rule")]
        for key, table in (("importance", importance), ("relevance", pd.concat(shares)),
                           ("scores", scores.assign(seconds=scores["method"].map(seconds))),
                           ("layers", known.layer_scores(model, explained, worth))):
            tables[key].append(table.assign(experiment=name))
        if name == shown:
            tables["removal"].append(attribution.removal_table(
                maps, explained, model, own.baselines, own.levels, seed, name))
            tables["randomised"].append(attribution.randomised_similarity(model, maps, explained, name, **settings))
            for number in range(2, rules.seeds + 1):
                model.set_weights(weights[f"{name} {number}"])
                others, _ = attribution.attribute_all(model, slices, methods, f"{name}, seed {number}", **settings)
                tables["repeated"].append(attribution.repeat_similarity(some, others, slices))
    write_tables(folder, 7, **{key: pd.concat(found, ignore_index=True) for key, found in tables.items()})
    shutil.rmtree(training)


def as_explained(slices, pixel_mm, few=None):
    """Slices of `mslib.analysis.depth.gather_slices` for attribution: lesions are features, alike in all sequences."""
    from mslib.analysis.attribution import Explained
    features, table = np.repeat(slices.lesions[..., None], slices.images.shape[-1], -1), slices.table
    return Explained(slices.images, table["target"].to_numpy(), slices.brain, features, table["subject"].to_numpy(str),
                     pixel_mm, few)


def attribute(study: Study, backbone: str) -> None:
    """One patient's slice by every method, what each sequence adds, and scores where lesions alone can decide.

    Perturbation methods, which cost most, explain the first backbone alone.
    """
    from mslib.analysis import attribution, depth
    config, folder, network = study.config, study.folder / "attributions" / backbone, Network(backbone)
    model, settings, mm = study.net(*network), study.attribution_settings, config.model.pixel_mm
    patients = depth.gather_slices(study.cases(network), config.attribution.shapley_slices, mm)
    tables = {"importance": attribution.slice_importance(model, as_explained(patients, mm), config.sequences,
                                                         config.seed, str(network))}
    shown = study.shown_slices(model)[1]
    methods = methods_of(config.relevance.compared, backbone == config.model.backbones[0])
    joint = [name for name in methods if name in attribution.JOINT]
    maps, _ = attribution.attribute_all(model, shown.at([0]), [name for name in methods if name not in joint],
                                        str(network), **settings)
    joint, _ = attribution.attribute_all(model, shown.at([0, 1, 2]), joint, str(network), **settings)
    write_maps(folder / "honest.npz", shown.at([0]), maps | {name: raw[:1] for name, raw in joint.items()})
    if config.trains and "cause" in config.model.kinds:
        tables["scores"] = _score_cause(study, Network(backbone, "cause"), methods, settings, folder / "cause.npz")
    write_tables(folder, 7, **tables)


def _score_cause(study, network, methods, settings, path):
    """Scores of maps of slices that a network which lesions alone can decide classifies correctly (of any, below two).

    Slices are drawn of three of each unseen person. Beside them the same methods on a random network, location prior,
    FLAIR and its edges.
    """
    from skimage.filters import sobel

    from mslib.analysis import attribution
    from mslib.explain import randomised_copy
    config, model = study.config, study.net(*network)
    slices, correct, explained = correct_cause_slices(study, network, model)
    maps, seconds = attribution.attribute_all(model, explained, methods, str(network), **settings)
    some, few = attribution.of_few(maps, explained)
    largest = few.features.sum((1, 2, 3)).argmax()
    write_maps(path, few.at([largest]), {name: raw[[largest]] for name, raw in some.items()})
    model.set_weights(randomised_copy(model, "block1_conv1", config.seed).get_weights())  # traced once
    cheap = methods_of(config.relevance.compared, costly=False)
    random, _ = attribution.attribute_all(model, few, cheap, f"{network}, untrained", **settings)
    flair = np.maximum(slices.images[..., config.sequences.index("FLAIR")], 0)
    beside = {"prior": slices.prior, "intensity": flair, "edges": np.stack([sobel(image) for image in flair])}
    untrained = attribution.localise(random, few, source="untrained")
    table = pd.concat([
        attribution.localise(maps, explained, source="network"),
        untrained.assign(image=explained.rows()[untrained["image"]]),
        attribution.localise(beside, explained, source="comparator")], ignore_index=True)
    return table.assign(correct=correct[table["image"]], seconds=table["method"].map(seconds))


def correct_cause_slices(study, network, model):
    """Slices that a ``cause`` network classifies correctly (any, below two), whether it does, and as explained."""
    from mslib.analysis import depth
    from mslib.explain import batches_of, logits_of
    from mslib.nets import evenly
    own, mm = study.config.attribution, study.config.model.pixel_mm
    slices = depth.gather_slices(study.cases(network), 3, mm)
    correct = logits_of(model, batches_of(slices.images, 16)).argmax(1) == slices.table["target"].to_numpy()
    rows = evenly(np.flatnonzero(correct | (correct.sum() < 2)), own.slices)
    slices = slices.take(rows)
    few = evenly(np.arange(len(rows)), own.perturbed_slices, staggered=True)
    return slices, correct[rows], as_explained(slices, mm, few)


def relevance(study: Study, backbone: str) -> None:
    """Shares of the sequences in the relevance of all trainings of a backbone, slice by slice of everybody unseen.

    Real patients: of the explained ones. Of the first training also by other rules and layer by layer, and (first
    backbone) as volumes.
    """
    from mslib.analysis.relevance import flow_table, slice_shares
    from mslib.nets import evenly
    config, own, folder = study.config, study.config.relevance, study.folder / "relevance" / backbone
    networks = explained_networks(config, backbone, "honest")
    model, tables, arrays = study.net(*networks[0]), [], []
    for subject in progress(study.unseen() if config.trains else study.explained(), desc="slices", unit="subject"):
        person, stack = study.subjects.loc[subject], study.stack(subject)
        index = evenly(np.arange(len(stack.images)), own.slices_per_subject)
        tables.append(pd.DataFrame({"slice": index, "target": study.target(subject)}).assign(
            **person[["subject", "group", "cohort"]]))
        arrays.append((study.images(stack, index), stack.brain[index]))
    table, (images, brain) = pd.concat(tables, ignore_index=True), map(np.concatenate, zip(*arrays))

    def shares(rule, rows):
        part = table.iloc[rows].reset_index(drop=True)
        return part.join(slice_shares(model, images[rows], part["target"], config.sequences, rule, brain[rows]))

    every = np.arange(len(table))
    some = evenly(every, own.compared_slices, staggered=True)
    rules = [shares(rule, some).assign(rule=rule) for rule in progress(own.compared, desc=f"{backbone}: rules")]
    flow = flow_table(model, images[some], own.rule, brain[some])
    _relevance_volumes(study, backbone, model, folder / "volumes")
    tables = []
    for network in progress(networks, desc=f"{backbone}: relevance", unit="network"):
        if network != networks[0]:
            model.set_weights(study.net(*network).get_weights())  # one network, traced once
        tables.append(shares(own.rule, every).assign(seed=network.seed))
    write_tables(folder, 7, rules=pd.concat(rules), flow=flow, shares=pd.concat(tables))


def _relevance_volumes(study, backbone, model, folder):
    """Relevance of every slice of some patients in T1w space, for their own class: one volume per sequence."""
    from mslib.analysis.relevance import relevance_maps
    config, own = study.config, study.config.relevance
    folder.mkdir(parents=True, exist_ok=True)
    for subject in study.shown_as_volumes()[:own.volumes] if backbone == config.model.backbones[0] else ():
        stack = study.stack(subject)
        found = relevance_maps(model, study.images(stack), study.target(subject), own.rule, stack.brain)
        maps = {sequence: found[..., m] for m, sequence in enumerate(config.sequences)}
        study.write_volume(folder, subject, "lrp", Network(backbone), maps, stack, "Sequences", {
            "Description": "Layer-wise relevance for the patient's own class, raw, signed",
            "Units": "logit per pixel of the slice", "Rule": own.rule})
