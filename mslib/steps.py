"""The steps of a study, one per rule of the Snakefile: read, call the science, write; and what notebooks open.

`python -m mslib STEP --config FILE --run-dir FOLDER` runs one. Only this module and `mslib.study` know folders.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import zlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mslib.study import (
    CONTROL,
    Network,
    Run,
    StudyConfig,
    StudyError,
    WriteError,
    atomic_path,
    progress,
    read_arrays,
    read_json,
    read_table,
    write_arrays,
    write_json,
    write_table,
)
from mslib.study.provenance import ROOT, code_digest

if TYPE_CHECKING:
    import keras

    from mslib.analysis.attribution import Explained
    from mslib.prep import SliceStack
    from mslib.sleep import EpochSet

# Many networks are explained, each traced once on purpose; TensorFlow takes that for a mistake and prints it.
logging.getLogger("tensorflow").addFilter(lambda record: "triggered tf.function retracing" not in record.getMessage())

#: Who is seen, and what may be concluded, for captions.
DATA = {"simulated": "Simulated patients",
        "open_ms": "Real patients; networks trained on simulated ones (transfer, no accuracy claim)",
        "bids": "Patients of the study's own cohort"}


class Study(Run):
    """A run with its subjects, slice stacks and networks: what notebooks and steps work with."""

    @property
    def data(self) -> str:
        """Whose data it is, for captions."""
        return DATA[self.config.cohort.source]

    @cached_property
    def subjects(self) -> pd.DataFrame:
        """By id: ``group, cohort, part, age, sex, edss, lesion_mask, explained, attributed, volume``."""
        return self.read("subjects").set_index("subject", drop=False)

    def target(self, subject: str) -> int:
        """Class of a subject; StudyError where the networks do not know it."""
        group, groups = self.subjects.loc[subject, "group"], self.config.groups
        if group not in groups:
            raise StudyError(f"sub-{subject}: group {group} is none of the networks' classes {groups}")
        return groups.index(group)

    def explained(self) -> list[str]:
        """Ids of the patients whom no explained network has trained or stopped on."""
        return list(self.subjects.index[self.subjects["explained"]])

    def attributed(self) -> list[str]:
        """Ids of the patients of notebook 04, in order."""
        rows = self.subjects[self.subjects["attributed"] > 0]
        return list(rows.sort_values("attributed").index)

    def example(self) -> str:
        """Id of the patient of the figures."""
        return self.subjects.index[self.subjects["volume"] == 1][0]

    def explained_slices(self, subject: str, stack: SliceStack) -> np.ndarray:
        """Indices of the slices that are explained: those with lesions; all where no lesion mask is known."""
        masked = self.subjects.loc[subject, "lesion_mask"]
        return np.flatnonzero(stack.lesions.any(axis=(1, 2))) if masked else np.arange(len(stack.images))

    def unseen(self) -> list[str]:
        """Ids of everybody outside training and validation, controls too."""
        return list(self.subjects.index[~self.subjects["part"].isin(("train", "validation"))])

    def stack(self, subject: str) -> SliceStack:
        """Slice stack of a subject."""
        from mslib.prep import load_stack
        return load_stack(self.anat(subject) / f"sub-{subject}_space-T1w_desc-slices.npz")

    def images(self, stack: SliceStack, index=slice(None)) -> np.ndarray:
        """Slices of a stack as the networks take them, float32 (n, H, W, M)."""
        from mslib.nets import channels_of
        images = stack.images[index].astype("float32")
        channels = channels_of(self.config.model.input, self.config.sequences)
        return images if channels is None else images[..., channels]

    def net(self, backbone: str, kind: str = "honest", seed: int = 1) -> keras.Model:
        """A fitted network, plain and in float32; StudyError where it has not been trained."""
        from mslib.nets import build_classifier
        path = self.nets_folder / str(Network(backbone, kind, seed)) / "weights.weights.h5"
        if not path.is_file():
            raise StudyError(f"{path}: no fitted {backbone}; run the study that trains it first "
                             f"(snakemake --config study={self.nets_folder.parent.name})")
        shape = (*self.config.model.image_size, len(self.config.sequences))
        return build_classifier(backbone, len(self.config.groups), shape, path)

    @property
    def attribution_settings(self) -> dict:
        """Parameters of attribution methods in this study: ``superpixels, samples, permutations, steps, seed``."""
        own = self.config.attribution
        return {name: getattr(own, name) for name in ("superpixels", "samples", "permutations", "steps")} | {
            "seed": self.config.seed}

    def fullest(self, stack: SliceStack) -> int:
        """Slice of a stack that shows most lesion (without a mask: most brain), which notebook 04 explains."""
        content = stack.lesions if stack.lesions.any() else stack.brain
        return int(content.sum(axis=(1, 2)).argmax())

    def attributed_slices(self, subjects: list[str] | None = None) -> Explained:
        """The fullest slice of each of some patients (default: of notebook 04), with lesions as features."""
        from mslib.analysis.attribution import Explained
        names, images, brains, lesions = subjects or self.attributed(), [], [], []
        for name in names:
            stack = self.stack(name)
            index = [self.fullest(stack)]
            images.append(self.images(stack, index))
            brains.append(stack.brain[index])
            lesions.append(stack.lesions[index] & stack.brain[index])
        images, targets = np.concatenate(images), np.array([self.target(name) for name in names])
        features = np.repeat(np.concatenate(lesions)[..., None], images.shape[-1], -1)
        return Explained(images, targets, np.concatenate(brains), features, np.array(names))

    def maps(self, network: Network) -> dict[str, np.ndarray]:
        """Maps of the attributed patients' slices by all methods, (N, H, W, M) each."""
        return _attributions(self, network)[0]

    def known_rule_net(self, experiment: str, number: int = 1) -> keras.Model:
        """A network with a known decision rule, of `mslib.nets.known_rule.experiments`."""
        from mslib.nets import load_weights
        from mslib.nets.known_rule import narrow_classifier
        shape = (*self.config.model.image_size, len(self.config.sequences))
        model = narrow_classifier(shape, self.config.attribution.known_rule.narrow)
        load_weights(model, _known_rule_folder(self, experiment, number) / "weights.weights.h5")
        return model

    def marked(self, experiment: str, number: int = 1) -> tuple[Explained, dict[str, np.ndarray], np.ndarray]:
        """Marked test slices of a network with a known decision rule, their maps, and which show the shortcut."""
        from mslib.analysis.attribution import Explained
        from mslib.explain import METHODS
        stored = read_arrays(_known_rule_folder(self, experiment, number) / "maps.npz")
        slices = Explained(*(stored[name] for name in ("images", "targets", "brain", "features", "subjects")))
        return slices, {name: stored[name] for name in METHODS}, stored["corner"]

    def epochs(self) -> EpochSet:
        """Sleep: the epochs of all nights that can be used; signals stay on disk until they are asked for."""
        from mslib.sleep import EpochSet
        folder, notes = self.folder / "sleep", read_json(self.folder / "sleep" / "nights.json")
        return EpochSet(folder / "epochs", read_table(folder / "epochs" / "epochs.csv"), tuple(notes["faults"]),
                        notes["quality"])

    def stager(self, fold: int) -> keras.Model:
        """Sleep: the staging network of a fold; StudyError where it has not been trained."""
        from mslib.sleep.staging import build_stager
        path = self.folder / "sleep" / f"fold-{fold}" / "weights.weights.h5"
        if not path.is_file():
            raise StudyError(f"{path}: no staging network yet; run the study that trains it first")
        model = build_stager(*self.epochs().shape, pool=self.config.sleep.pool)
        model.load_weights(path)
        return model

    def show(self, name: str, figure):
        """Save a figure to ``figures/<name>.png``, close it and return the picture, which a notebook then displays."""
        from IPython.display import Image

        from mslib.show import save_figure
        path = save_figure(figure, self.folder / "figures" / f"{name}.png")
        self._made.append(f"figures/{name}.png")
        return Image(path)


# --- cohort ------------------------------------------------------------------------------------------------------


def simulated_people(config: StudyConfig) -> list:
    """The simulated participants of both cohorts: the study's, and the independent one (ids T..)."""
    from mslib.cohort import draw_participants
    own = config.cohort.simulated
    laws = {"misplacement_mm": own.misplacement_mm, "misplacement_deg": own.misplacement_deg,
            "thick_slice_share": own.thick_slice_share}
    return [*draw_participants(own.study, config.seed, **laws),
            *draw_participants(own.independent, config.seed + 1, prefix="T", **laws)]


def start(study: Study) -> None:
    """Describe the simulated dataset, or fetch and convert the real patients; look at given weights first."""
    from mslib.cohort import openms, write_dataset, write_template
    config, root = study.config, study.bids_root
    if config.trains and config.model.weights not in ("scratch", "simulated"):
        from mslib.nets import start_network
        for backbone in config.model.backbones:
            start_network(backbone, len(config.groups), (*config.model.image_size, 3), _weights(config), "float32")
    if config.cohort.source == "simulated":
        write_template(study.folder / "template.npz", config.cohort.simulated.voxel_mm)
        people = simulated_people(config)
        _drop_others(root, {person.id for person in people})
        write_dataset(people, root)
    elif config.cohort.source == "open_ms":
        _drop_others(root, set())
        missing = openms.fetch(study.folder / "source")
        faults = openms.source_faults(missing, openms.to_bids(study.folder / "source", root).incomplete)
        write_json(study.folder / "source_faults.json", faults)


def _drop_others(root, ids):
    """Remove subjects that an earlier run with other settings has left in the run's dataset."""
    for folder in [*root.glob("sub-*"), *root.glob("derivatives/*/sub-*")]:
        if folder.name.removeprefix("sub-") not in ids:
            shutil.rmtree(folder)


def simulate(study: Study, subject: str) -> None:
    """Simulate one subject into the run's BIDS dataset."""
    from mslib.cohort import simulate_subject
    chosen = [person for person in simulated_people(study.config) if person.id == subject]
    if not chosen:
        raise StudyError(f"sub-{subject}: is not a subject of the simulated cohorts of study {study.config.study}")
    simulate_subject(chosen[0], study.bids_root, study.config.cohort.simulated.voxel_mm, study.folder / "template.npz")


def check(study: Study) -> None:
    """Check the whole cohort and list its subjects and faults in ``cohort.json``."""
    from mslib.cohort import Cohort, write_listing
    config = study.config
    cohort = Cohort.from_bids(study.bids_root, config.sequences, groups=config.groups if config.trains else None,
                              group_column=config.cohort.group_column, min_per_group=3 if config.trains else 1,
                              on_fault=config.cohort.on_fault)
    if not config.trains:
        faults = [*read_json(study.folder / "source_faults.json"), *cohort.faults]
        cohort = dataclasses.replace(cohort, faults=faults)
    write_listing(study.folder / "cohort.json", cohort, study.bids_root)


def _checked(study) -> list:
    from mslib.cohort import read_listing
    return read_listing(study.folder / "cohort.json", study.bids_root)


def preprocess(study: Study, subject: str) -> None:
    """Preprocess one subject. With ``on_fault: skip`` a faulty one is marked excluded; a full disk always fails."""
    from mslib.prep import preprocess_subject
    config = study.config
    chosen = [person for person in _checked(study) if person.id == subject]
    if not chosen:
        raise StudyError(f"sub-{subject}: is not in the checked cohort of study {config.study}")
    try:
        preprocess_subject(chosen[0], study.anat(subject).parents[1], config.prep, config.sequences,
                           config.model.image_size, config.model.pixel_mm)
    except WriteError:
        raise
    except StudyError as error:
        if config.cohort.on_fault == "stop" or isinstance(error.__cause__, WriteError):
            raise
        write_json(study.anat(subject) / f"sub-{subject}_desc-qc.json", {"subject": subject, "excluded": str(error)})


def subjects(study: Study) -> None:
    """``subjects.csv``: everybody usable, with the part of the subject-level split and whether maps are made of them.

    Explained are patients outside training and validation (real patients: whose type of MS the networks know). Where
    one of them has a lesion mask, those without are left out. Notebook 04 takes the first of them, groups taking turns.
    """
    from mslib.nets import split_subjects
    config = study.config
    quality = {person.id: read_json(study.anat(person.id) / f"sub-{person.id}_desc-qc.json")
               for person in _checked(study)}
    table = pd.DataFrame([{"subject": person.id, "group": person.group, "cohort": person.cohort, "age": person.age,
                           "sex": person.sex, "edss": person.edss, "lesion_mask": person.lesion_mask is not None}
                          for person in _checked(study) if "excluded" not in quality[person.id]])
    table["part"] = "test"
    if config.trains:
        own = table["cohort"] == "study"
        parts = split_subjects(table[own].set_index("subject")["group"], config.training.split, config.seed)
        table["part"] = table["subject"].map(parts).fillna("independent")
    patients = table["group"].isin(config.patient_groups) & ~table["part"].isin(("train", "validation"))
    if not patients.any():
        raise StudyError(f"{study.folder}: no patient outside training and validation (groups "
                         f"{config.patient_groups}); only subjects that no network has learnt from are explained")
    table["explained"] = patients & (table["lesion_mask"] | ~table.loc[patients, "lesion_mask"].any())
    chosen = table[table["explained"]].assign(turn=table[table["explained"]].groupby("group").cumcount())
    order = chosen.sort_values(["turn", "group", "subject"]).index[: config.attribution.patients]
    table["attributed"] = pd.Series(np.arange(1, len(order) + 1), index=order).reindex(table.index, fill_value=0)
    # Figures show the first SPMS patient of the test part (real patients: the largest lesions); volumes begin with it.
    shown = table.index[table["explained"] & (table["group"] == "SPMS") & (table["part"] == "test")]
    if not config.trains:
        lesions = table.loc[table["explained"], "subject"].map(lambda name: study.stack(name).lesions.sum())
        shown = lesions.sort_values(ascending=False, kind="stable").index
    ranked = [*shown[:1], *table.index[table["explained"]]]
    ranked = list(dict.fromkeys(ranked))[: config.explain.nifti_subjects]
    table["volume"] = pd.Series(np.arange(1, len(ranked) + 1), index=ranked).reindex(table.index, fill_value=0)
    write_table(study.folder / "subjects.csv", table)
    excluded = [f"sub-{name}: excluded: {row['excluded']}" for name, row in quality.items() if "excluded" in row]
    write_json(study.folder / "faults.json", [*read_json(study.folder / "cohort.json")["faults"], *excluded])


def truth(study: Study) -> None:
    """Truth of every subject, quality of preprocessing, errors of registration and bias field.

    Bias fields are compared in at most 24 subjects, spread evenly over the cohort.
    """
    import nibabel as nib
    import SimpleITK as sitk

    from mslib.analysis.truth import bias_correlation, brain_points, lesion_load, registration_error
    from mslib.prep.images import apply_points
    people = [person for person in _checked(study) if person.id in study.subjects.index]
    compared = people[:: max(1, -(-len(people) // 24))]
    persons, quality, errors, fields = [], [], [], []
    for person in progress(people, desc="truth and errors", unit="subject"):
        sub, derived = f"sub-{person.id}", study.anat(person.id)
        raw = study.bids_root / "derivatives" / "truth" / sub / "anat"
        row = {"subject": person.id, "group": person.group, "cohort": person.cohort, "age": person.age,
               "sex": person.sex, "edss": person.edss}
        if (raw / f"{sub}_truth.json").is_file():
            stored = read_json(raw / f"{sub}_truth.json")
            row |= {key: value for key, value in stored.items() if not isinstance(value, dict)}
        elif person.lesion_mask:
            row["lesion_load_ml"] = lesion_load(nib.load(person.lesion_mask))
        persons.append(row)
        numbers = read_json(derived / f"{sub}_desc-qc.json")
        quality.append(numbers | {"flags": "; ".join(numbers["flags"])})
        points = brain_points(nib.load(derived / f"{sub}_space-T1w_desc-brain_mask.nii.gz"))
        for sequence in study.config.sequences:
            moved, name = points, f"{sub}_from-T1w_to-{sequence}_mode-points_xfm.tfm"
            if (raw / name).is_file():
                true, estimated = (sitk.ReadTransform(str(folder / name)) for folder in (raw, derived))
                moved = apply_points(true, points)
                errors.append({"subject": person.id, "group": person.group, "sequence": sequence,
                               **registration_error(points, true, estimated)})
            field = raw / f"{sub}_{sequence}_biasfield.nii.gz"
            if field.is_file() and person in compared:
                log_field = nib.load(derived / f"{sub}_desc-logbias_{sequence}.nii.gz")
                fields.append({"subject": person.id, "sequence": sequence,
                               "correlation": bias_correlation(moved, nib.load(field), log_field)})
    for name, rows, columns in (("truth", persons, None), ("quality", quality, None),
                                ("registration_errors", errors, ["subject", "group", "sequence", "before", "after"]),
                                ("bias_fields", fields, ["subject", "sequence", "correlation"])):
        write_table(study.folder / "cohort" / f"{name}.csv", pd.DataFrame(rows, columns=columns), float_format="%.6g")


# --- networks ----------------------------------------------------------------------------------------------------


def _weights(config) -> str | Path:
    """Origin of the weights as `mslib.nets.start_network` takes it; a path is relative to the project."""
    weights = config.model.weights
    return weights if weights in ("scratch", "simulated", "imagenet") else ROOT / weights


def _schedule(config, kind):
    return config.training.permuted if kind.endswith("_permuted") else getattr(config.training, kind)


def _recipe(config, schedule, **changes):
    """A schedule with the settings that all trainings of a study share; slices on frozen blocks are not augmented."""
    from mslib.nets import Recipe, channels_of
    training, moving = config.training, schedule.augmented and not schedule.frozen_blocks
    shared = {"epochs": schedule.epochs, "slices_per_subject": schedule.slices_per_subject,
              "learning_rate": schedule.learning_rate, "batch_size": schedule.batch_size or training.batch_size,
              "weight_decay": training.weight_decay, "patience": training.patience, "seed": config.seed,
              "area_weight": training.area_weight, "augmentation": training.augmentation if moving else None,
              "channels": None if schedule.frozen_blocks else channels_of(config.model.input, config.sequences)}
    return Recipe(**shared | changes)


def _slices(study, cohort):
    """Slices of one cohort (``study`` or ``independent``) in memory, float16."""
    from mslib.nets import gather
    table = study.subjects[study.subjects["cohort"] == cohort]
    stacks = {name: study.stack(name).images
              for name in progress(table.index, desc=f"load {cohort} cohort", unit="subject")}
    return gather(stacks, table["group"], study.config.groups)


def pretraining_cohort(study: Study) -> None:
    """Simulate the pre-training cohort, people outside every cohort of the study, into ``nets/pretraining``."""
    from joblib import Parallel, delayed

    from mslib.cohort import template, write_template
    from mslib.nets import pretraining as pre
    config, folder = study.config, study.folder / "nets" / "pretraining"
    mm, cache = config.training.pretraining_pixel_mm, folder / "template.npz"
    shape = {"mm": mm, "size": pre.pretraining_size(config.model.image_size, config.model.pixel_mm, mm),
             "n_slices": config.prep.n_slices, "percentiles": config.prep.percentiles, "sequences": config.sequences}
    people = pre.pretraining_people(config.groups, config.training.pretraining_subjects, config.seed)
    write_template(cache)
    made = Parallel(n_jobs=2, return_as="generator")(
        delayed(lambda person: pre.pretraining_subject(person, template=template(cache=cache), **shape))(person)
        for person in people)
    bar = progress(made, total=len(people), desc="simulate pre-training cohort", unit="subject")
    pre.write_pretraining(bar, folder)
    write_table(folder / "subjects.csv", pre.read_pretraining(folder, config.groups)[1])


def pretrain(study: Study, backbone: str, number: int) -> None:
    """One stage of pre-training: the class, and lesion and black-hole areas as auxiliary targets."""
    import keras

    from mslib.nets import assign_parts, build_trainable, choose_precision, load_weights
    from mslib.nets import pretraining as pre
    config, folder = study.config, study.folder / "nets" / backbone / "pretraining"
    schedule = config.training.pretraining[number - 1]
    slices = pre.read_pretraining(study.folder / "nets" / "pretraining", config.groups)[0].shrunk(schedule.shrink)
    keras.utils.set_random_seed(config.seed)
    precision = choose_precision(config.training.precision)
    model = build_trainable(backbone, len(config.groups), slices.images.shape[1:], precision)
    if number > 1:
        load_weights(model, folder / f"stage{number - 1}.weights.h5")
    recipe = _recipe(config, schedule, patience=schedule.epochs, seed=config.seed + pre.STAGE_SEEDS * (number - 1))
    parts = assign_parts("honest", slices.table, config.training.split, config.seed)
    stages = config.training.pretraining[:number]
    training = _training_folder(folder, "pretrain", "nets", recipe, stages, slices.table.to_csv())
    history = pre.pretrain_stage(slices, parts, model, recipe, training, f"{backbone} pre-training, stage {number}")
    write_table(folder / f"stage{number}.csv", history)
    _save_weights(model, folder / f"stage{number}.weights.h5")
    shutil.rmtree(training)


def _training_folder(folder: Path, step: str, wing: str, *decisive) -> Path:
    """Folder of an unfinished training, named by what decides it: none goes on under other settings or code."""
    facts = "\n".join([code_digest(step, wing), *map(repr, decisive)])
    return folder / f"training-{zlib.crc32(facts.encode()):08x}"


def _save_weights(model, path):
    with atomic_path(path) as temporary:
        model.save_weights(str(temporary))


def _started(study, backbone, shrink, seed):
    """A network before fine-tuning, on pixels `shrink` times as large.

    Pre-trained weights are those of the last stage that is not finer.
    """
    import keras

    from mslib.nets import choose_precision, start_network
    config = study.config
    keras.utils.set_random_seed(seed)
    shape = (*(side // shrink for side in config.model.image_size), len(config.sequences))
    coarse = [number for number, stage in enumerate(config.training.pretraining, start=1) if stage.shrink >= shrink]
    pretrained = study.folder / "nets" / backbone / "pretraining" / f"stage{max(coarse, default=1)}.weights.h5"
    return start_network(backbone, len(config.groups), shape, _weights(config),
                         choose_precision(config.training.precision), pretrained)


def activations(study: Study, backbone: str, blocks: int, shrink: int) -> None:
    """What frozen blocks make of all slices of the study, once for every training that starts alike."""
    from mslib.nets import channels_of, predict, split_network
    config = study.config
    lower, _ = split_network(_started(study, backbone, shrink, config.seed), blocks)
    made = predict(lower, _slices(study, "study").shrunk(shrink), channels_of(config.model.input, config.sequences),
                   label=f"{backbone} blocks 1 to {blocks}", dtype="float16")
    path = study.folder / "nets" / backbone / "activations" / f"block{blocks}_shrink{shrink}.npy"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, made)


def train(study: Study, network: Network) -> None:
    """Train one network and predict the slices of its validation and test parts."""
    from mslib.nets import (
        KINDS,
        SliceSet,
        assign_parts,
        channels_of,
        permuted,
        prediction_table,
        split_network,
        train_network,
    )
    config, kind, folder = study.config, network.kind, study.folder / "nets" / str(network)
    schedule, seed = _schedule(config, kind), config.seed + network.seed - 1
    slices = _slices(study, "study")
    if KINDS[kind][1]:
        slices = permuted(slices, config.groups, config.seed)
    parts, slices = assign_parts(kind, slices.table, config.training.split, config.seed), slices.shrunk(schedule.shrink)
    model, inputs, upper = _started(study, network.backbone, schedule.shrink, seed), slices, None
    if schedule.frozen_blocks:
        stored = folder.parents[1] / "activations" / f"block{schedule.frozen_blocks}_shrink{schedule.shrink}.npy"
        inputs = SliceSet(np.load(stored, allow_pickle=False), slices.table)
        upper = split_network(model, schedule.frozen_blocks)[1]
    recipe = _recipe(config, schedule, seed=seed)
    training = _training_folder(folder, "train", "nets", recipe, schedule, slices.table.assign(part=parts).to_csv())
    plain, history = train_network(kind, inputs, parts, model, recipe, training, str(network), upper)
    rows = np.flatnonzero(parts != "train")
    table = prediction_table(plain, slices, rows, config.groups, channels_of(config.model.input, config.sequences))
    write_table(folder / "history.csv", history)
    write_table(folder / "predictions.csv", table.assign(part=parts.to_numpy()[rows]))
    write_json(folder / "net.json", {
        "backbone": network.backbone, "kind": kind, "seed": seed, "weights": config.model.weights,
        "pixel_mm": config.model.pixel_mm * schedule.shrink, **schedule.model_dump(exclude={"shrink"})})
    _save_weights(plain, folder / "weights.weights.h5")
    shutil.rmtree(training)


def predict(study: Study, network: Network) -> None:
    """Logits of one network for every slice of the independent cohort (an empty table where there is none)."""
    from mslib.nets import channels_of, prediction_table
    config, path = study.config, study.folder / "nets" / str(network) / "independent.csv"
    if not (study.subjects["cohort"] == "independent").any():
        write_table(path, pd.DataFrame(columns=["subject", "slice", "group", "target"]))
        return
    model = study.net(*network)
    write_table(path, prediction_table(model, _slices(study, "independent"), None, config.groups,
                                       channels_of(config.model.input, config.sequences)))


# --- maps --------------------------------------------------------------------------------------------------------


def measure_maps(study: Study, network: Network) -> None:
    """Class activation maps of every layer of one network, measured on the slices of all explained patients."""
    import nibabel as nib

    from mslib.analysis.depth import measure_layers
    from mslib.analysis.lobes import brain_top, lobe_labels
    model, tables = study.net(*network), []
    for subject in progress(study.explained(), desc=f"{network}: maps and measures", unit="subject"):
        stack = study.stack(subject)
        index = study.explained_slices(subject, stack)
        mask = nib.load(study.anat(subject) / f"sub-{subject}_space-T1w_desc-brain_mask.nii.gz")
        lobes = lobe_labels(stack.brain, stack.affine, brain_top(mask))
        table = measure_layers(model, study.images(stack, index), study.target(subject), stack.lesions[index],
                               stack.brain[index], study.config.explain.methods, lobes[index])
        if len(table):
            group, cohort = study.subjects.loc[subject, ["group", "cohort"]]
            tables.append(table.assign(slice=index[table["slice"]], subject=subject, group=group, cohort=cohort))
    write_table(study.folder / "maps" / str(network) / "measures.csv", pd.concat(tables), float_format="%.6g")


def _explained_slices(study, each):
    """Images, classes, brain masks and owners of so many slices of every explained patient, spread evenly."""
    from mslib.nets import evenly
    images, targets, brains, names = [], [], [], []
    for subject in study.explained():
        stack = study.stack(subject)
        index = evenly(study.explained_slices(subject, stack), each)
        images.append(study.images(stack, index))
        brains.append(stack.brain[index])
        targets += [study.target(subject)] * len(index)
        names += [subject] * len(index)
    return np.concatenate(images), np.array(targets), np.concatenate(brains), np.array(names)


def randomise(study: Study, network: Network) -> None:
    """Similarity of the maps while a network is randomised from its output down, slices spread over the patients."""
    from mslib.explain import cascading_randomisation
    each = max(1, study.config.explain.randomisation_slices // len(study.explained()))
    images, targets, brains, names = _explained_slices(study, each)
    table = cascading_randomisation(
        study.net(*network), images, targets, seed=study.config.seed, mask=brains,
        progress=lambda layers: progress(layers, desc=f"{network}: randomisation", unit="layer"))
    table["subject"] = names[table["image"]]
    write_table(study.folder / "maps" / str(network) / "randomisation.csv", table, float_format="%.5g")


def volume(study: Study, network: Network, subject: str) -> None:
    """Grad-CAM of every slice of a patient in T1w space, for the patient's own class: one volume per layer."""
    from mslib.explain import layer_cams
    from mslib.prep import write_volume
    stack, anat = study.stack(subject), study.anat(subject)
    model, images = study.net(*network), study.images(stack)
    cams = layer_cams(model, images, np.full(len(images), study.target(subject)))["gradcam"]
    facts = {"Description": "Grad-CAM, raw values, not normalised; one map for all sequences", "Network": str(network),
             "Class": study.subjects.loc[subject, "group"], "Maximum": [float(cam.max()) for cam in cams.values()]}
    write_volume(anat / f"sub-{subject}_space-T1w_desc-{network.backbone}gradcam_cam.nii.gz", cams, stack,
                 anat / f"sub-{subject}_space-T1w_desc-preproc_T1w.nii.gz", "Layers", facts, np.int16)


# --- networks with a known decision rule -------------------------------------------------------------------------


def _known_rule_folder(study, experiment, number):
    return study.folder / "known_rule" / experiment / f"seed{number}"


def _experiment(study, name):
    from mslib.nets.known_rule import experiments
    known = {one.name: one for one in experiments(study.config.sequences)}
    if name not in known:
        raise StudyError(f"--experiment: must be one of {', '.join(known)} (got {name!r})")
    return known[name]


def _controls(study, part):
    """Slices of controls in which marks fit, of ``train``, ``validation`` or ``test``; nobody is in two of them."""
    from mslib.nets import gather
    from mslib.nets.known_rule import wide_slices
    table = study.subjects[study.subjects["group"] == CONTROL]
    independent = table["cohort"] == "independent"
    test = independent if independent.any() else table["part"] == "test"
    seen = table.index[~test]
    names = {"train": seen[:-1], "validation": seen[-1:], "test": table.index[test]}[part]
    stacks = {name: study.stack(name) for name in progress(names, desc=f"controls, {part}", unit="subject")}
    wide = {name: wide_slices(stack.images, stack.brain) for name, stack in stacks.items()}
    return gather(wide, table["group"], study.config.groups)


def known_rule(study: Study, experiment: str, number: int) -> None:
    """Train a network with a known decision rule on marked slices of controls; seeds start from other weights."""
    from mslib.nets import Recipe, SliceSet
    from mslib.nets.known_rule import spread, train_known_rule
    config, folder = study.config, _known_rule_folder(study, experiment, number)
    own = config.attribution.known_rule
    train, validation = _controls(study, "train"), spread(_controls(study, "validation"), own.slices_per_subject)
    joined = SliceSet(np.concatenate([train.images, validation.images]),
                      pd.concat([train.table, validation.table], ignore_index=True))
    parts = np.repeat(["train", "validation"], [len(train.table), len(validation.table)])
    recipe = Recipe(own.epochs, own.slices_per_subject, own.learning_rate, config.training.batch_size,
                    config.training.weight_decay, patience=own.epochs, seed=config.seed)
    marked = _experiment(study, experiment).marked(joined, config.model.pixel_mm, config.seed)
    training = _training_folder(folder, "known_rule", "nets", recipe, own, joined.table.to_csv())
    model = train_known_rule(marked, parts, recipe, own.narrow, training, config.seed + number - 1,
                             f"known rule, {experiment}, seed {number}")
    _save_weights(model, folder / "weights.weights.h5")
    shutil.rmtree(training)


def known_rule_maps(study: Study, experiment: str, number: int) -> None:
    """Maps of marked test slices by every method, with the slices, their marks and the seconds that each took."""
    from mslib.analysis.attribution import attribute_all
    from mslib.analysis.known_rule import explained_marks
    from mslib.nets.known_rule import spread
    config, test = study.config, _controls(study, "test")
    test = spread(test, config.attribution.known_rule.test_slices)
    marked = _experiment(study, experiment).marked(test, config.model.pixel_mm, config.seed + 1)
    explained = explained_marks(marked)
    maps, seconds = attribute_all(study.known_rule_net(experiment, number), explained.images, explained.targets,
                                  explained.brain, label=f"known rule, {experiment}, seed {number}",
                                  **study.attribution_settings)
    write_arrays(_known_rule_folder(study, experiment, number) / "maps.npz", **vars(explained), corner=marked.corner,
                 **maps, **{f"seconds_{name}": value for name, value in seconds.items()})


def known_rule_scores(study: Study) -> None:
    """What networks with a known decision rule use, and what every method, layer and relevance rule says of them."""
    from mslib.analysis import attribution, relevance
    from mslib.analysis import known_rule as known
    from mslib.nets.known_rule import experiments, spread
    config, own, settings = study.config, study.config.attribution, study.attribution_settings
    sequences, mm, draws = config.sequences, config.model.pixel_mm, config.draws
    slices = spread(_controls(study, "test"), 4 * own.known_rule.test_slices)
    tables = {name: [] for name in ("use", "scores", "importance", "layers", "relevance", "repeated")}
    for experiment in experiments(sequences):
        name = experiment.name
        model, (explained, maps, corner) = study.known_rule_net(name), study.marked(name)
        tables["use"].append(known.accuracy_by_cue(model, experiment, slices, sequences, mm, config.seed + 2, **draws))
        if experiment.shortcut:
            shortcut = known.shortcut_table(maps, explained, corner, mm, own.superpixels, **draws)
            continue
        asked = model, explained.images, explained.targets
        importance = attribution.importance_table(*asked, explained.brain, explained.subjects, sequences, name, **draws)
        weights = attribution.importance_of(importance, sequences)
        scores = attribution.score_maps(maps, explained, weights, model, sequences, own.superpixels)
        stored = read_arrays(_known_rule_folder(study, name, 1) / "maps.npz")
        scores["seconds"] = scores["method"].map({method: float(stored[f"seconds_{method}"]) for method in maps})
        shares = relevance.known_rule_shares(*asked, explained.subjects, explained.features, explained.brain,
                                             experiment.decisive, sequences, config.relevance.compared, **draws)
        for key, table in (("importance", importance), ("scores", scores), ("relevance", shares),
                           ("layers", known.layer_scores(model, explained, weights))):
            tables[key].append(table.assign(experiment=name))
    name = sequences[-1]  # trained from several seeds; removed and randomised for this one alone
    model, (explained, maps, _) = study.known_rule_net(name), study.marked(name)
    tables["repeated"] = [
        attribution.repeat_similarity(maps, study.marked(name, number)[1], explained.brain, explained.subjects)
        for number in range(2, own.known_rule.seeds + 1)]
    found = {key: pd.concat(parts, ignore_index=True) for key, parts in tables.items()} | {
        "shortcut": shortcut,
        "randomised": attribution.randomised_similarity(model, maps, explained, label=name, **settings),
        "removal": attribution.removal_table(maps, explained, model, own.baselines, own.levels, config.seed, name)}
    for key, table in found.items():
        write_table(study.folder / "known_rule" / f"{key}.csv", table, float_format="%.7g")


# --- attributions ------------------------------------------------------------------------------------------------


def _attributions(study, network):
    """Maps and seconds per slice of the attributed patients, by method."""
    from mslib.explain import METHODS
    folder = study.folder / "attributions" / str(network)
    each = [read_arrays(folder / f"sub-{name}.npz") for name in study.attributed()]
    together = [read_arrays(folder / "together.npz")]
    of = {name: together if name in together[0] else each for name in METHODS}
    return ({name: np.concatenate([one[name] for one in files]) for name, files in of.items()},
            {name: float(np.mean([one[f"seconds_{name}"] for one in files])) for name, files in of.items()})


def _attribute(study, network, names, methods, path):
    from mslib.analysis.attribution import attribute_all
    slices, model = study.attributed_slices(names), study.net(*network)
    maps, seconds = attribute_all(model, slices.images, slices.targets, slices.brain, methods,
                                  f"{network}: sub-{', '.join(names)}", **study.attribution_settings)
    write_arrays(path, **maps, **{f"seconds_{name}": value for name, value in seconds.items()})


def attribute(study: Study, network: Network, subject: str) -> None:
    """Maps of one patient's fullest slice by every method that needs no other patient, and their seconds."""
    from mslib.analysis.attribution import JOINT
    from mslib.explain import METHODS
    people = study.attributed()
    if subject not in people:
        raise StudyError(f"--subject: must be a patient of notebook 04, one of {', '.join(people)} (got {subject!r})")
    _attribute(study, network, [subject], [name for name in METHODS if name not in JOINT],
               study.folder / "attributions" / str(network) / f"sub-{subject}.npz")


def attribute_together(study: Study, network: Network) -> None:
    """Maps by methods that take values from one patient to another (Feature Permutation)."""
    from mslib.analysis.attribution import JOINT
    people = study.attributed()
    if len(people) < 2:
        raise StudyError(f"{study.folder}: notebook 04 needs two patients at least, because Feature Permutation takes "
                         f"values from one to the other (got {len(people)})")
    _attribute(study, network, people, JOINT, study.folder / "attributions" / str(network) / "together.npz")


def attribution_randomised(study: Study, network: Network) -> None:
    """Similarity of the patients' maps to those of the network with random weights in all layers."""
    from mslib.analysis.attribution import ALL_LAYERS, randomised_similarity
    table = randomised_similarity(study.net(*network), study.maps(network),
                                  study.attributed_slices(), [ALL_LAYERS], str(network), **study.attribution_settings)
    write_table(study.folder / "attributions" / str(network) / "randomised.csv", table, float_format="%.7g")


def importance(study: Study, network: Network) -> None:
    """Exact importance of every sequence to one network, over some slices of all explained patients."""
    from mslib.analysis.attribution import importance_table
    config = study.config
    slices = _explained_slices(study, config.attribution.shapley_slices)
    table = importance_table(study.net(*network), *slices, config.sequences, str(network), **config.draws)
    write_table(study.folder / "importance" / f"{network}.csv", table, float_format="%.7g")


def attribution_scores(study: Study, network: Network) -> None:
    """Measures of every map of the patients' slices, and what removal of what it marks costs the network."""
    from mslib.analysis.attribution import importance_of, removal_table, score_maps
    config, own, folder = study.config, study.config.attribution, study.folder / "attributions" / str(network)
    model, explained = study.net(*network), study.attributed_slices()
    maps, seconds = _attributions(study, network)
    weights = importance_of(read_table(study.folder / "importance" / f"{network}.csv"), config.sequences)
    scores = score_maps(maps, explained, weights, model, config.sequences, own.superpixels)
    removal = removal_table(maps, explained, model, own.baselines, own.levels, config.seed, str(network))
    write_table(folder / "scores.csv", scores.assign(seconds=scores["method"].map(seconds)), float_format="%.7g")
    write_table(folder / "removal.csv", removal, float_format="%.7g")


# --- relevance ---------------------------------------------------------------------------------------------------


def _of_relevance(study: Study) -> list[str]:
    """Ids of whom relevance is asked: everybody unseen, controls too (real patients: the explained ones)."""
    return study.unseen() if study.config.trains else study.explained()


def _relevance_of(study, model, subject, rule, count):
    """Relevance shares of some slices of a subject, spread over its brain."""
    from mslib.analysis.relevance import slice_shares, spread_slices
    person, stack = study.subjects.loc[subject], study.stack(subject)
    index = spread_slices(len(stack.images), count)
    known = {"lesions": stack.lesions[index], "brain": stack.brain[index]} if person["lesion_mask"] else {}
    table = slice_shares(model, study.images(stack, index), np.full(len(index), study.target(subject)),
                         study.config.sequences, rule, **known)
    return table.assign(slice=index, subject=subject, group=person["group"], cohort=person["cohort"])


def relevance_shares(study: Study, network: Network) -> None:
    """Shares of the sequences in the relevance of one network, slice by slice."""
    own, model = study.config.relevance, study.net(*network)
    tables = [_relevance_of(study, model, subject, own.rule, own.slices_per_subject)
              for subject in progress(_of_relevance(study), desc=f"{network}: relevance", unit="subject")]
    write_table(study.folder / "relevance" / str(network) / "shares.csv", pd.concat(tables), float_format="%.7g")


def relevance_rules(study: Study, network: Network) -> None:
    """Shares of a few slices by every compared rule, and how much relevance reaches every layer by the study's own."""
    from mslib.analysis.relevance import flow_table, spread_slices
    own, model = study.config.relevance, study.net(*network)
    folder, names = study.folder / "relevance" / str(network), _of_relevance(study)
    tables = [_relevance_of(study, model, subject, rule, own.compared_slices).assign(rule=rule)
              for rule in progress(own.compared, desc=f"{network}: rules", unit="rule") for subject in names]
    stacks = (study.stack(subject) for subject in names)
    images = np.concatenate([study.images(stack, spread_slices(len(stack.images), 1)) for stack in stacks])
    write_table(folder / "rules.csv", pd.concat(tables), float_format="%.7g")
    write_table(folder / "flow.csv", flow_table(model, images, own.rule), float_format="%.7g")


def relevance_volume(study: Study, network: Network, subject: str) -> None:
    """Relevance of every slice of a subject in T1w space, for the subject's own class: one volume per sequence."""
    from mslib.explain import lrp
    from mslib.prep import write_volume
    rule, stack, name = study.config.relevance.rule, study.stack(subject), f"sub-{subject}_space-T1w_desc"
    model = study.net(*network)
    relevance = lrp(model, study.images(stack), study.target(subject), rule)
    write_volume(study.anat(subject) / f"{name}-{network.backbone}lrp_relevance.nii.gz",
                 {sequence: relevance[..., m] for m, sequence in enumerate(study.config.sequences)}, stack,
                 study.anat(subject) / f"{name}-preproc_T1w.nii.gz", "Sequences",
                 {"Description": "Layer-wise relevance for the patient's own class, raw, signed",
                  "Units": "logit per pixel of the slice", "Rule": rule, "Network": str(network),
                  "Class": study.subjects.loc[subject, "group"]})


# --- sleep -------------------------------------------------------------------------------------------------------


def nights(study: Study) -> None:
    """Simulate, fetch or find the nights, and cut them into epochs; recordings that cannot be used are reported.

    StudyError where the study has no nights, no recording can be used (all faults, one line each), or there are fewer
    subjects than folds.
    """
    from mslib.sleep import fetch_telemetry, read_cohort, simulate_cohort
    config, sleep, folder = study.config, study.config.sleep, study.folder / "sleep"
    if sleep is None:
        raise StudyError(f"study {config.study}: has no section 'sleep', so no nights; allowed: one in its file "
                         "(config/README.md)")
    source = Path(sleep.root).expanduser() if sleep.source == "folder" else folder / "nights"
    try:
        if sleep.source == "simulated":
            simulate_cohort(source, sleep.subjects, round(sleep.hours * 120), config.seed, n_jobs=2)
        elif sleep.source == "telemetry":
            fetch_telemetry(source, range(sleep.subjects))
        epochs = read_cohort(source, folder / "epochs", sleep.channels.model_dump(), sleep.rate,
                             mismatch=sleep.mismatch)
    except ValueError as error:
        raise StudyError(str(error)) from error
    for fault in epochs.faults:
        print(f"left out: {fault}", flush=True)
    people = epochs.table["subject"].nunique()
    if people < sleep.folds:
        raise StudyError(f"{source}: has nights of {people} subject{'s' * (people != 1)} that can be used, fewer than "
                         f"sleep.folds, {sleep.folds}; nobody may be in two folds")
    write_table(folder / "epochs" / "epochs.csv", epochs.table)
    write_json(folder / "nights.json", {"faults": list(epochs.faults), "quality": epochs.quality})


def fold(study: Study, number: int) -> None:
    """Train the staging network of one fold and stage the nights of subjects whom it has never seen."""
    from mslib.sleep import make_folds
    from mslib.sleep.staging import fit_fold, prediction_table
    config, sleep, place = study.config, study.config.sleep, study.folder / "sleep" / f"fold-{number}"
    epochs = study.epochs()
    if number >= sleep.folds:
        raise StudyError(f"--number: must lie in 0..{sleep.folds - 1} (got {number})")
    training = _training_folder(place, "fold", "sleep", config.seed, sleep, epochs.quality)
    try:
        parts = make_folds(epochs.table["subject"], sleep.folds, config.seed)[number]
        model, history = fit_fold(epochs, parts, training, number, sleep.epochs_per_recording, sleep.passes, sleep.pool,
                                  config.seed, batch_size=sleep.batch_size, learning_rate=sleep.learning_rate,
                                  patience=sleep.patience)
    except ValueError as error:
        raise StudyError(f"sleep: {error}") from error
    write_table(place / "history.csv", history)
    write_table(place / "predictions.csv", prediction_table(model, epochs, parts.test))
    _save_weights(model, place / "weights.weights.h5")
    shutil.rmtree(training)


def fold_relevance(study: Study, number: int) -> None:
    """Relevance, ablation and other attribution methods on the test nights of one fold."""
    from mslib.analysis import sleep as analysis
    sleep, seed, place = study.config.sleep, study.config.seed, study.folder / "sleep" / f"fold-{number}"
    given = study.stager(number), study.epochs(), read_table(place / "predictions.csv")
    few = sleep.compared_per_stage
    for name, table in (
            ("relevance", analysis.fold_relevance(*given, sleep.rule, sleep.explained_per_stage, few, seed)),
            ("ablation", analysis.fold_ablation(*given, few, seed)),
            ("methods", analysis.fold_methods(*given, few, sleep.steps, seed))):
        write_table(place / f"{name}.csv", table, float_format="%.5g")


# --- notebooks and results ---------------------------------------------------------------------------------------

def notebook(study: Study, name: str) -> None:
    """Execute one notebook into the run folder, as papermill alone would; bad input ends in one line, no traceback."""
    import os

    import papermill
    from papermill.exceptions import PapermillExecutionError
    folder, target = ROOT / "notebooks", study.folder / "notebooks" / f"{name}.ipynb"
    parameters = {name: os.path.relpath(path, folder)
                  for name, path in (("config", study.config_path), ("run_dir", study.folder))}
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(str(folder / f"{name}.ipynb"), str(target), parameters, cwd=str(folder),
                                   start_timeout=300)
    except PapermillExecutionError as error:
        if error.ename in ("StudyError", "WriteError"):
            raise StudyError(f"notebook {name}: {error.evalue}") from error
        raise


def publish(study: Study, results: Path) -> None:
    """Copy the light part of a run to the results folder."""
    from mslib.publish import publish as write_results
    write_results(study, results)
