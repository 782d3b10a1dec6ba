"""Steps of attribution and relevance, on networks of the study and on those with a known decision rule."""

import shutil
from collections import defaultdict

import numpy as np
import pandas as pd

from mslib import analysis, explain, nets
from mslib.study import CONTROL, Network, explained_networks, progress, write_tables, write_weights
from mslib.study.provenance import training_folder

from .study import Study, write_maps


def unmarked_controls(study, part):
    """Slices of controls in which marks fit, to ``train`` on or to ``test``; nobody is in both."""
    table = study.subjects[study.subjects["group"] == CONTROL]
    independent = table["cohort"] == "independent"
    test = independent if independent.any() else table["part"] == "test"
    names = table.index[test if part == "test" else ~test]
    stacks = {name: study.stack(name) for name in progress(names, desc=f"controls, {part}", unit="subject")}
    wide = {name: nets.known_rule.wide_slices(stack.images, stack.brain) for name, stack in stacks.items()}
    return nets.gather(wide, table["group"], study.config.groups).shrunk(study.config.attribution.known_rule.shrink)


def methods_of(rules, costly=True):
    """Attribution methods, perturbation methods among them if `costly`, and rules of relevance."""
    chosen = [name for name, method in explain.METHODS.items() if costly or method.family != "perturbation"]
    return [*chosen, *(f"{analysis.attribution.LRP}{rule}" for rule in rules)]


def known_rule(study: Study) -> None:
    """Networks with a known decision rule: train them, and score what every method and relevance rule says of them.

    Tables have a row per slice. An unfinished training is resumed. Seeds start from other weights.
    """
    attribution, known, marks = analysis.attribution, analysis.known_rule, nets.known_rule
    config, own, settings = study.config, study.config.attribution, study.attribution_settings
    sequences, folder, seed = config.sequences, study.folder / "known_rule", config.seed
    mm, rules = config.model.pixel_mm * own.known_rule.shrink, own.known_rule
    methods = methods_of(config.relevance.compared)
    train, unmarked, shown = unmarked_controls(study, "train"), unmarked_controls(study, "test"), sequences[-1]
    recipe = nets.Recipe(rules.epochs, rules.slices_per_subject, rules.learning_rate, config.training.batch_size,
                         config.training.weight_decay, patience=rules.epochs, seed=seed)
    training = training_folder(folder, "known_rule", "nets/known_rule", recipe, rules, train.table.to_csv())
    # One network is trained from several seeds, and that one is removed and randomised.
    tasks = {f"{experiment.name} {number}": (experiment.marked(train, mm, seed), seed + number - 1)
             for experiment in marks.experiments(sequences)
             for number in range(1, rules.seeds + 1 if experiment.name == shown else 2)}
    weights = marks.train_known_rules(tasks, recipe, rules.narrow, training)
    model = nets.build_classifier("vgg16", 2, train.images.shape[1:], narrow=rules.narrow)  # one for all, traced once
    test, many = (marks.spread(unmarked, count * rules.test_slices) for count in (1, 2))
    tables = defaultdict(list)
    for experiment in marks.experiments(sequences):
        name = experiment.name
        model.set_weights(weights[f"{name} 1"])
        tables["use"].append(known.answers_to_cues(model, experiment, many, sequences, mm, seed + 2).assign(training=1))
        marked = experiment.marked(test, mm, seed + 1)
        explained = known.explained_marks(marked, mm, few_of(len(test.table), rules.perturbed_slices))
        maps, seconds = attribution.attribute_all(model, explained, methods, f"known rule, {name}", **settings)
        write_weights(folder / name / "weights.weights.h5", model)
        some, slices = attribution.of_few(maps, explained)
        write_maps(folder / name / "maps.npz", slices, some, len(slices.images) // 2)
        if experiment.shortcut:
            tables["shortcut"].append(known.shortcut_shares(maps, explained, marked.corner, own.superpixels))
            continue
        importance = attribution.slice_importance(model, explained, sequences, seed, name)
        worth = np.equal(sequences, name).astype(float)  # the rule itself: the decisive sequence is all that matters
        scores = attribution.score_maps(maps, explained, worth, model, sequences)
        shares = [analysis.relevance.slice_shares(
            model, explained.images, explained.targets, sequences, rule, explained.brain, explained.features).assign(
            rule=rule, subject=explained.subjects)
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
                answers = known.answers_to_cues(model, experiment, many, sequences, mm, seed + 2)
                tables["use"].append(answers.assign(training=number))
                others, _ = attribution.attribute_all(model, slices, methods, f"{name}, seed {number}", **settings)
                alike = attribution.repeat_similarity(some, others, slices)
                tables["repeated"].append(alike.assign(training=number))
    write_tables(folder, 7, **{key: pd.concat(found, ignore_index=True) for key, found in tables.items()})
    shutil.rmtree(training)


def few_of(count, few):
    """Numbers of a few of so many slices, not everybody's at one height."""
    return nets.evenly(np.arange(count), few, staggered=True)


def as_explained(study, slices, perturbed=None):
    """Slices of `mslib.analysis.depth.gather_slices` for attribution: lesions are features, alike in all sequences."""
    table, features = slices.table, np.repeat(slices.lesions[..., None], slices.images.shape[-1], -1)
    return analysis.attribution.Explained(
        slices.images, table["target"].to_numpy(), slices.brain, features, table["subject"].to_numpy(str),
        study.config.model.pixel_mm, None if perturbed is None else few_of(len(table), perturbed))


def attribute(study: Study, backbone: str) -> None:
    """One patient's slice by every method, what each sequence adds, and scores where lesions alone can decide.

    Perturbation methods, which cost most, explain the first backbone alone.
    """
    config, folder, network = study.config, study.folder / "attributions" / backbone, Network(backbone)
    model, settings, attribution = study.net(*network), study.attribution_settings, analysis.attribution
    patients = as_explained(study, study.explained_slices(network, config.attribution.shapley_slices))
    asked = model if settings["precision"] == "float32" else explain.predict_copy(model)
    tables = {"importance": attribution.slice_importance(asked, patients, config.sequences, config.seed, str(network))}
    shown = study.shown_slices(model)[1]
    methods = methods_of(config.relevance.compared, backbone == config.model.backbones[0])
    joint = [name for name in methods if name in attribution.JOINT]
    maps, _ = attribution.attribute_all(model, shown.at([0]), [name for name in methods if name not in joint],
                                        str(network), **settings)
    joint, _ = attribution.attribute_all(model, shown.at([0, 1, 2]), joint, str(network), **settings)
    write_maps(folder / "honest.npz", shown, maps | joint, 0)
    if config.trains and "cause" in config.model.kinds:
        tables["scores"] = _score_cause(study, Network(backbone, "cause"), methods, settings, folder / "cause.npz")
    write_tables(folder, 7, **tables)


def _score_cause(study, network, methods, settings, path):
    """Scores of maps of slices that a network which lesions alone can decide classifies correctly (of any, below two).

    Slices are drawn of three of each unseen person. Beside them the same methods on a random network, location prior,
    FLAIR and its edges.
    """
    from skimage.filters import sobel
    config, model, attribution = study.config, study.net(*network), analysis.attribution
    slices, correct, explained = correct_cause_slices(study, network, model)
    maps, seconds = attribution.attribute_all(model, explained, methods, str(network), **settings)
    some, few = attribution.of_few(maps, explained)
    write_maps(path, few, some, few.features.sum((1, 2, 3)).argmax())
    model.set_weights(explain.randomised_copy(model, "block1_conv1", config.seed).get_weights())  # traced once
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
    own, slices = study.config.attribution, study.explained_slices(network, 3)
    logits = explain.logits_of(model, explain.batches_of(slices.images, 16))
    correct = logits.argmax(1) == slices.table["target"].to_numpy()
    rows = nets.evenly(np.flatnonzero(correct | (correct.sum() < 2)), own.slices)
    return slices.take(rows), correct[rows], as_explained(study, slices.take(rows), own.perturbed_slices)


def relevance(study: Study, backbone: str) -> None:
    """Shares of the sequences in the relevance of all trainings of a backbone, slice by slice of everybody unseen.

    Real patients: of the explained ones. Of the first training also by other rules and layer by layer, and (first
    backbone) as volumes.
    """
    config, own, folder = study.config, study.config.relevance, study.folder / "relevance" / backbone
    networks = explained_networks(config, backbone, "honest")
    model, tables, arrays = study.net(*networks[0]), [], []
    for subject in progress(study.unseen() if config.trains else study.explained(), desc="slices", unit="subject"):
        person, stack = study.subjects.loc[subject], study.stack(subject)
        index = nets.evenly(np.arange(len(stack.images)), own.slices_per_subject)
        tables.append(pd.DataFrame({"slice": index, "target": study.target(subject)}).assign(
            **person[["subject", "group", "cohort"]]))
        arrays.append((study.images(stack, index), stack.brain[index]))
    table, (images, brain) = pd.concat(tables, ignore_index=True), map(np.concatenate, zip(*arrays))

    def shares(rule, rows):
        part = table.iloc[rows].reset_index(drop=True)
        return part.join(analysis.relevance.slice_shares(model, images[rows], part["target"], config.sequences, rule,
                                                         brain[rows]))

    every = np.arange(len(table))
    some = nets.evenly(every, own.compared_slices, staggered=True)
    rules = [shares(rule, some).assign(rule=rule) for rule in progress(own.compared, desc=f"{backbone}: rules")]
    flow = analysis.relevance.flow_table(model, images[some], own.rule, brain[some])
    _relevance_volumes(study, backbone, model, folder / "volumes")
    tables = []
    for network in progress(networks, desc=f"{backbone}: relevance", unit="network"):
        if network != networks[0]:
            model.set_weights(study.net(*network).get_weights())  # one network, traced once
        tables.append(shares(own.rule, every).assign(seed=network.seed))
    write_tables(folder, 7, rules=pd.concat(rules), flow=flow, shares=pd.concat(tables))


def _relevance_volumes(study, backbone, model, folder):
    """Relevance of every slice of some patients in T1w space, for their own class: one volume per sequence."""
    config, own = study.config, study.config.relevance
    folder.mkdir(parents=True, exist_ok=True)
    for subject in study.shown_as_volumes()[:own.volumes] if backbone == config.model.backbones[0] else ():
        stack = study.stack(subject)
        found = analysis.relevance.relevance_maps(model, study.images(stack), study.target(subject), own.rule,
                                                  stack.brain)
        maps = dict(zip(config.sequences, np.moveaxis(found, -1, 0)))
        study.write_volume(folder, subject, "lrp", Network(backbone), maps, stack, "Sequences", {
            "Description": "Layer-wise relevance for the patient's own class, raw, signed",
            "Units": "logit per pixel of the slice", "Rule": own.rule})
