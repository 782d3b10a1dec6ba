"""The steps of a study, one per rule of the Snakefile: read, call the science, write; and what notebooks open.

`python -m mslib STEP --config FILE --run-dir FOLDER` runs one. Only this module and `mslib.study` know folders.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from mslib.study import CONTROL, Network, Run, StudyConfig, StudyError, WriteError, explained_networks, progress
from mslib.study.files import atomic_path, read_arrays, read_json, read_table, write_arrays, write_json, write_table
from mslib.study.loading import load_config
from mslib.study.provenance import ROOT, code_digest, verified

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


class Case(NamedTuple):
    """Slices of one subject that a network is explained on: ``slices`` are numbers, masks (n, H, W)."""

    subject: str
    group: str
    cohort: str
    slices: np.ndarray
    images: np.ndarray
    target: int
    lesions: np.ndarray
    brain: np.ndarray


class Study(Run):
    """A run with its subjects, slice stacks and networks: what notebooks and steps work with."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of what the networks see."""
        return *self.config.model.image_size, len(self.config.sequences)

    @property
    def data(self) -> str:
        """Whose data it is, for captions."""
        return DATA[self.config.cohort.source]

    @property
    def controls(self) -> str:
        """Whose controls carry marks, for captions."""
        return {"simulated": "simulated controls"}.get(self.config.cohort.source, "controls of the study's own cohort")

    @cached_property
    def subjects(self) -> pd.DataFrame:
        """By id: ``group, cohort, part, age, sex, edss, lesion_mask, explained, volume``."""
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

    def example(self) -> str:
        """Id of the patient of the figures."""
        return self.subjects.index[self.subjects["volume"] == 1][0]

    def shown_as_volumes(self) -> list[str]:
        """Ids of the patients of whom maps are made as volumes, that of the figures first."""
        chosen = self.subjects[self.subjects["volume"] > 0].sort_values("volume")
        return list(chosen.index)

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

    def classes(self, kind: str) -> list[str]:
        """Classes of a kind of network, in the order of its logits."""
        from mslib.nets import CAUSE_CLASSES
        return list(CAUSE_CLASSES if kind == "cause" else self.config.groups)

    def net(self, backbone: str, kind: str = "honest", seed: int = 1) -> keras.Model:
        """A fitted network, plain and in float32 (of real patients' studies a shipped one).

        StudyError where it has not been trained.
        """
        from mslib.nets import build_classifier, load_half
        network = Network(backbone, kind, seed)
        if not self.config.trains:
            model = _started(self, network)
            load_half(model, _shipped(network), self.classes(kind))
            return model
        path = self.folder / "nets" / str(network) / "weights.weights.h5"
        if not path.is_file():
            raise StudyError(f"{path}: no fitted {backbone}; run the study that trains it first "
                             f"(snakemake --config study={self.config.study})")
        return build_classifier(backbone, len(self.classes(kind)), self.shape, path, narrow=self.config.model.narrow)

    def cases(self, network: Network) -> Iterator[Case]:
        """What a network is explained on, subject by subject, for the subject's own class.

        Slices with lesions: of the explained patients; of ``cause`` networks those of its test people.
        """
        from mslib.nets import channels_of
        if network.kind != "cause":
            for subject in self.explained():
                stack, person = self.stack(subject), self.subjects.loc[subject]
                index = self.explained_slices(subject, stack)
                if len(index):
                    yield Case(subject, person["group"], person["cohort"], index, self.images(stack, index),
                               self.target(subject), stack.lesions[index], stack.brain[index])
            return
        folder = self.folder / "nets" / "cause"
        images, masks = np.load(folder / "images.npy", mmap_mode="r")[1], read_arrays(folder / "masks.npz")
        channels = channels_of(self.config.model.input, self.config.sequences) or slice(None)
        table = read_table(folder / "slices.csv").query("target == 1").reset_index(drop=True)
        for subject, rows in table[table["part"] == "test"].groupby("subject"):
            index = rows.index.to_numpy()
            yield Case(subject, rows["group"].iloc[0], "cause", rows["slice"].to_numpy(),
                       images[index].astype("float32")[..., channels], 1, masks["lesions"][index],
                       masks["brain"][index])

    @property
    def attribution_settings(self) -> dict:
        """Parameters of attribution methods: ``superpixels, samples, permutations, steps, seed, precision``."""
        from mslib.nets import choose_precision
        own = self.config.attribution
        return {name: getattr(own, name) for name in ("superpixels", "samples", "permutations", "steps")} | {
            "seed": self.config.seed, "precision": choose_precision(self.config.training.precision)}

    def shown_slices(self, model: keras.Model) -> tuple[np.ndarray, Explained, bool]:
        """The slices with most lesion (without a mask: most brain) of the patient of the figures, eight at most.

        First the fullest one that a network classifies correctly: their numbers, what is explained of them (lesions as
        features), and whether there is such a one (else the fullest).
        """
        from mslib.analysis.attribution import Explained
        from mslib.explain import logits_of
        subject = self.example()
        stack, target = self.stack(subject), self.target(subject)
        content = stack.lesions if stack.lesions.any() else stack.brain
        order = np.argsort(-content.sum(axis=(1, 2)), kind="stable")[:8]
        correct = logits_of(model, [self.images(stack, order)]).argmax(1) == target
        order = np.concatenate([order[[correct.argmax()]], np.delete(order, correct.argmax())])
        features = np.repeat((stack.lesions & stack.brain)[order][..., None], len(self.config.sequences), -1)
        return order, Explained(self.images(stack, order), np.full(len(order), target), stack.brain[order], features,
                                np.full(len(order), subject), self.config.model.pixel_mm), bool(correct.any())

    def maps(self, place: str) -> tuple[Explained, dict[str, np.ndarray]]:
        """A slice that notebooks show and its maps by every method.

        `place`: ``attributions/<backbone>/honest`` or ``cause`` in its place, ``known_rule/<experiment>/maps``.
        """
        from mslib.analysis.attribution import Explained
        stored = read_arrays(self.folder / f"{place}.npz")
        known = {name.removeprefix("slices "): stored.pop(name) for name in list(stored) if name.startswith("slices ")}
        return Explained(**known | {"pixel_mm": float(known["pixel_mm"])}), stored

    def known_rule_net(self, experiment: str) -> keras.Model:
        """A network with a known decision rule, of `mslib.nets.known_rule.experiments`."""
        from mslib.nets import build_classifier
        own = self.config.attribution.known_rule
        shape = *(side // own.shrink for side in self.shape[:2]), self.shape[2]
        return build_classifier("vgg16", 2, shape, self.folder / "known_rule" / experiment / "weights.weights.h5",
                                narrow=own.narrow)

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

    def show(self, name: str, figure, here: str = "") -> None:
        """Save a figure to ``figures/<name>.png`` (``.svg`` too, if no scan is in it) and display it.

        Below it stands what it shows `here`, with its numbers; a screen reader says that of the picture.
        """
        from IPython.display import Image, Markdown, display

        from mslib.show import save_figure
        path = save_figure(figure, self.folder / "figures" / f"{name}.png")
        if not any(ax.images for ax in figure.axes):
            save_figure(figure, path.with_suffix(".svg"))
        self._made[f"figures/{name}.png"] = here
        display(Image(path, alt=here or name.replace("_", " "), metadata={"figure": name}))
        if here:
            display(Markdown(f"**Here:** {here}"))


# --- cohort ------------------------------------------------------------------------------------------------------


def simulated_people(config: StudyConfig) -> list:
    """The simulated participants of both cohorts: the study's, and the independent one (ids T..)."""
    from mslib.cohort import draw_participants
    own = config.cohort.simulated
    laws = {"misplacement_mm": own.misplacement_mm, "misplacement_deg": own.misplacement_deg,
            "thick_slice_share": own.thick_slice_share}
    return [*draw_participants(own.study, config.seed, **laws),
            *draw_participants(own.independent, config.seed + 1, prefix="T", **laws)]


def look_at_weights(run: Study) -> None:
    """StudyError where weights cannot be had: before anything is computed."""
    config = run.config
    if config.model.weights == "simulated":
        for backbone in config.model.backbones:
            verified(_shipped(f"{backbone}_simulated"))
    elif config.model.weights != "scratch":
        for backbone in config.model.backbones:
            _trainable(run, Network(backbone), "float32")
    for network in () if config.trains else explained_networks(config):
        verified(_shipped(network))


def start(study: Study) -> None:
    """Describe the simulated dataset, or fetch and convert the real patients; look at given weights first."""
    from mslib.cohort import openms, openms_bids, write_dataset
    config, root = study.config, study.bids_root
    look_at_weights(study)
    if config.cohort.source == "simulated":
        people = simulated_people(config)
        _drop_others(root, {person.id for person in people})
        write_dataset(people, root)
    elif config.cohort.source == "open_ms":
        _drop_others(root, set())
        missing = openms.fetch(study.folder / "source")
        left_out = openms_bids.to_bids(study.folder / "source", root).incomplete
        write_json(study.folder / "source_faults.json", [
            *(f"{name}: could not be had: {reason}" for name, reason in missing.items()),
            *(f"{line}; left out" for line in left_out)])


def make_template(study: Study, mm: float) -> None:
    """Maps of the template brain at a voxel size, once for all simulated subjects."""
    from mslib.cohort import write_template
    write_template(_template(study, mm), mm)


def _template(study, mm):
    return study.folder / f"template_{mm:g}mm.npz"


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
    mm = study.config.cohort.simulated.voxel_mm
    simulate_subject(chosen[0], study.bids_root, mm, _template(study, mm))


def check_cohort(study: Study) -> None:
    """Check the whole cohort and list its subjects and faults in ``cohort.json``."""
    from mslib.cohort import Cohort, write_listing
    from mslib.prep import describe_derivatives
    config = study.config
    cohort = Cohort.of_study(study.bids_root, config)
    for line in cohort.left_out:
        print(line, flush=True)
    if config.cohort.source == "open_ms":
        faults = [*read_json(study.folder / "source_faults.json"), *cohort.faults]
        cohort = dataclasses.replace(cohort, faults=faults)
    describe_derivatives(study.folder / "derivatives" / "mslib", study.bids_root)
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
    one of them has a lesion mask, those without are left out.
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
    """Truth of every subject, quality of preprocessing, errors of registration and bias field, appearance.

    Bias fields are compared, and appearance measured, in at most 24 subjects, spread evenly over the cohort.
    """
    import nibabel as nib
    import SimpleITK as sitk

    from mslib.analysis.truth import appearance, bias_correlation, brain_points, lesion_load, registration_error
    from mslib.prep import unscaled_images
    people = [person for person in _checked(study) if person.id in study.subjects.index]
    compared = people[:: max(1, -(-len(people) // 24))]
    persons, quality, errors, fields, looks = [], [], [], [], []
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
            true, name = sitk.Transform(), f"{sub}_from-T1w_to-{sequence}_mode-points_xfm.tfm"
            if (raw / name).is_file():
                true, estimated = (sitk.ReadTransform(str(folder / name)) for folder in (raw, derived))
                errors.append({"subject": person.id, "group": person.group, "sequence": sequence,
                               **registration_error(points, true, estimated)})
            field = raw / f"{sub}_{sequence}_biasfield.nii.gz"
            if field.is_file() and person in compared:
                log_field = nib.load(derived / f"{sub}_space-T1w_desc-logbias_{sequence}.nii.gz")
                fields.append({"subject": person.id, "sequence": sequence,
                               "correlation": bias_correlation(points, true, nib.load(field), log_field)})
        if person in compared and person.lesion_mask:
            images = unscaled_images(person, derived.parents[1])
            looks.append({"subject": person.id, "group": person.group, **appearance(*images)})
    _write_tables(study.folder / "cohort", 6, truth=pd.DataFrame(persons), quality=pd.DataFrame(quality),
                  registration_errors=pd.DataFrame(errors, columns=["subject", "group", "sequence", "before", "after"]),
                  bias_fields=pd.DataFrame(fields, columns=["subject", "sequence", "correlation"]),
                  appearance=pd.DataFrame(looks, columns=None if looks else ["subject", "group"]))


# --- networks ----------------------------------------------------------------------------------------------------


def _shipped(name) -> Path:
    return ROOT / "weights" / f"{name}.h5"


def _trainable(study, network, precision, weights=None):
    """A network before fine-tuning (of the study's weights or others), with batch norm where it starts at random."""
    import keras

    from mslib.nets import start_network
    keras.utils.set_random_seed(study.config.seed + network.seed - 1)
    weights = weights or study.config.model.weights
    if weights not in ("scratch", "simulated", "imagenet"):
        weights = ROOT / weights  # a path is relative to the project
    return start_network(network.backbone, study.classes(network.kind), study.shape, weights, precision,
                         _shipped(f"{network.backbone}_simulated"), study.config.model.narrow)


def _started(study, network):
    """A network before fine-tuning, plain and in float32."""
    from mslib.nets import plain_network
    return plain_network(_trainable(study, network, "float32"))


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
            "template": template(mm, _template(study, mm))}
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


def _slices(study, of):
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
    config, slices = study.config, _slices(study, of)
    model = _trainable(study, Network(backbone), choose_precision(config.training.precision))
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

    Then ``permuted.csv``, the test part's predictions after a training on permuted labels of the subjects (empty for
    ``cause``), and ``features.npz``, the pooled features of the start weights (empty where nothing reads them).
    """
    from mslib import nets
    if kind not in nets.KINDS:
        raise StudyError(f"--kind: must be one of {', '.join(nets.KINDS)} (got {kind!r})")
    config, training, schedule = study.config, study.config.training, getattr(study.config.training, kind)
    of, blocks, features = "cause" if kind == "cause" else "study", schedule.frozen_blocks, None
    given, precision = config.model.weights != "scratch", nets.choose_precision(training.precision)
    model = _trainable(study, Network(backbone, kind), precision)  # one for all trainings, traced once
    start = model.get_weights()
    if blocks:
        path = _cached(study, backbone, of, blocks)
        stored = read_arrays(path.with_suffix(".npz"))
        slices = nets.SliceSet(stored["activations"], read_table(path.with_suffix(".csv")))
        features = stored["features"]
    else:
        slices, channels = _slices(study, of), nets.channels_of(config.model.input, config.sequences)
        if given or kind == "honest":
            features = nets.cached(model, [], slices, channels, f"{backbone} features")[1]
    place, done = study.folder / "nets" / backbone / kind, []

    def fitted(network, table, folder):
        seed, parts = config.seed + network.seed - 1, _parts(study, kind, table)
        recipe = nets.Recipe(
            schedule.epochs, schedule.slices_per_subject, schedule.learning_rate, training.batch_size,
            training.weight_decay, training.patience, seed, *((None, None) if blocks else
                                                              (training.augmentation, channels)))
        if nets.KINDS[kind] == "subject":
            nets.refuse_leakage(table["subject"], parts)
        table = table.assign(part=parts)
        done.append(_training_folder(folder, "train", "nets", recipe, schedule, table.to_csv()))
        model.set_weights(start if network.seed == 1 else _trainable(study, network, precision).get_weights())
        plain, logits, history = nets.fine_tune(
            model, blocks, nets.SliceSet(slices.images, table), parts, recipe, done[-1],
            folder.relative_to(study.folder / "nets").as_posix(), features if given else None)
        return plain, nets.prediction_table(table, logits, study.classes(kind)), history

    for network in explained_networks(config, backbone, kind):
        folder = study.folder / "nets" / str(network)
        plain, predictions, history = fitted(network, slices.table, folder)
        write_table(folder / "history.csv", history)
        write_table(folder / "predictions.csv", predictions)
        _save_weights(plain, folder / "weights.weights.h5")
    control = predictions[:0]
    if kind != "cause":
        own, table = slices.table["part"].isna(), slices.table.copy()
        table.loc[own, ["group", "target"]] = nets.permuted(table[own], config.groups, config.seed)[["group", "target"]]
        control = fitted(Network(backbone, kind), table, place / "permuted")[1].query("part == 'test'")
    write_table(place / "permuted.csv", control.assign(kind=f"{kind}_permuted"))
    write_arrays(place / "features.npz", features=np.empty((0, 0)) if features is None else features)
    for training_folder in done:  # not before: a job that is stopped finds what it had finished
        shutil.rmtree(training_folder)
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
    from mslib.study.provenance import commit, file_sha256
    config, start, fitted = study.config, _started(study, network), study.net(*network)
    if config.model.weights != "simulated":
        raise StudyError("model.weights: must be 'simulated' for networks that are shipped (got "
                         f"{config.model.weights!r})")
    changed = [layer.name for layer in fitted.layers if layer.weights and not all(
        map(np.array_equal, layer.get_weights(), start.get_layer(layer.name).get_weights()))]
    path = _shipped(network)
    save_half(path, fitted, changed, study.classes(network.kind))
    table = read_table(study.folder / "nets" / str(network) / "predictions.csv")
    right = table[[f"logit_{name}" for name in study.classes(network.kind)]].to_numpy().argmax(1) == table["target"]
    write_json(path.with_suffix(".json"), {
        "network": str(network), "split": KINDS[network.kind], "classes": study.classes(network.kind),
        "starts from": f"{network.backbone}_simulated.h5", "study": config.study, "commit": commit(),
        "schedule": getattr(config.training, network.kind).model_dump(),
        "accuracy of slices": right.groupby(table["part"]).mean().round(4).to_dict(), "layers": changed,
        "sha256": file_sha256(path)})


def pretrain(backbone: str, folder: Path, recipe: Path) -> None:
    """Pre-train a backbone on simulated people and write what `weights/` ships; goes on where it was stopped.

    The folder gets the people's slices, the weights of every stage and ``<backbone>_simulated.h5`` with its card.
    """
    import fcntl

    import keras
    from joblib import Parallel, delayed

    from mslib.cohort import template, write_template
    from mslib.nets import choose_precision, fold_batch_norm, load_weights, save_half
    from mslib.nets import pretraining as pre
    from mslib.study.config import Pretraining
    from mslib.study.provenance import commit, file_sha256
    settings, made_by, folder = load_config(recipe, Pretraining), commit(), Path(folder)
    cohort, place = folder / pre.cohort_name(settings), folder / backbone
    cohort.mkdir(parents=True, exist_ok=True)
    with (cohort / ".lock").open("w") as lock:  # two backbones may be trained side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        if numbers := pre.missing_people(settings, cohort):
            write_template(cohort / "template.npz", settings.pixel_mm)
            maps = template(settings.pixel_mm, cohort / "template.npz")
            list(progress(Parallel(n_jobs=2, return_as="generator")(
                delayed(pre.make_person)(number, settings, cohort, maps) for number in numbers),
                total=len(numbers), desc="simulate people for pre-training", unit="person"))
    slices, held = pre.read_cohort(settings, cohort)
    precision, model, stages = choose_precision(settings.precision), None, []
    for number, stage in enumerate(settings.stages):
        facts = settings.model_dump_json(exclude={"stages"}) + repr(settings.stages[:number + 1])
        training = place / f"stage{number + 1}-{zlib.crc32(facts.encode()):08x}"
        stored = training / "weights.weights.h5"
        shape = (*(side // stage.shrink for side in settings.image_size), len(settings.sequences))
        keras.utils.set_random_seed(settings.seed + number)
        earlier, model = model, pre.build_pretrained(backbone, settings, shape, precision)
        if stored.is_file():
            load_weights(model, stored)
        else:
            if earlier is not None:
                model.set_weights(earlier.get_weights())
            history = pre.pretrain_stage(number, model, slices.shrunk(stage.shrink), held, settings, training)
            write_table(training / "stage.csv", history)
            _save_weights(model, stored)
            shutil.rmtree(training / "backup")
        seconds = [float(line) for line in (training / "seconds.txt").read_text(encoding="utf-8").split()]
        stages.append({"pixel_mm": settings.pixel_mm * stage.shrink, "hours": round(sum(seconds) / 3600, 3),
                       **read_table(training / "stage.csv").iloc[-1].to_dict()})
    plain = fold_batch_norm(keras.Model(model.input, model.outputs[0], name=backbone))
    path = folder / f"{backbone}_simulated.h5"
    save_half(path, plain, [layer.name for layer in plain.layers if layer.weights], settings.groups)
    shown = np.flatnonzero(held)[::7][:8]
    write_json(path.with_suffix(".json"), {
        "backbone": backbone, "data": "simulated people, in no cohort of any study",
        "recipe": settings.model_dump(mode="json"), "commit": made_by, "precision": precision, "stages": stages,
        "validation": pre.evaluate(model, slices, held), "sha256": file_sha256(path),
        "float16_rank_correlation_of_maps": _likeness_of_half(
            plain, slices.batch(shown), slices.table["target"].to_numpy()[shown])})


def _likeness_of_half(plain, images, targets) -> float:
    """Lowest rank correlation of the Grad-CAMs of a network with those of its weights rounded to float16."""
    from scipy.stats import spearmanr

    from mslib.explain import layer_cams
    full = layer_cams(plain, images, targets)["gradcam"]
    plain.set_weights([weight.astype(np.float16).astype(np.float32) for weight in plain.get_weights()])
    half = layer_cams(plain, images, targets)["gradcam"]
    return float(min(spearmanr(full[name][k].ravel(), half[name][k].ravel()).statistic
                     for name in full for k in range(len(images)) if full[name][k].std() > 0))


def _training_folder(folder: Path, step: str, wing: str, *decisive) -> Path:
    """Folder of an unfinished training, named by what decides it: none goes on under other settings or code."""
    facts = "\n".join([code_digest(step, wing), *map(repr, decisive)])
    return folder / f"training-{zlib.crc32(facts.encode()):08x}"


def _write_tables(folder, digits, **tables):
    """Tables with so many significant digits, each under its name."""
    for name, table in tables.items():
        write_table(folder / f"{name}.csv", table, float_format=f"%.{digits}g")


def _save_weights(model, path):
    with atomic_path(path) as temporary:
        model.save_weights(str(temporary))


# --- start weights compared --------------------------------------------------------------------------------------


def compare_start(study: Study, start: str) -> None:
    """Networks that lesions alone can decide, from one kind of start weights: accuracy and maps of all their trainings.

    ``accuracy.csv``: a row per training and ``state``, ``best`` or ``equal`` (the first epoch that classifies so many
    validation slices correctly; no row where none does); where the start weights cannot be had, one row with the
    ``reason``. ``maps.csv``: rows of `measure_layers`; ``methods.csv``: rows of `localise`, of the first seed.
    """
    from mslib import nets
    from mslib.analysis import depth
    from mslib.explain import randomised_copy
    config, own, schedule = study.config, study.config.comparison, study.config.training.cause
    folder, backbone, training = study.folder / "pretraining" / start, config.model.backbones[0], config.training
    precision, channels = nets.choose_precision(training.precision), nets.channels_of(config.model.input,
                                                                                      config.sequences)
    networks = [Network(backbone, "cause", seed + 1) for seed in range(config.model.seeds)]
    try:
        model, *others = (_trainable(study, network, precision, own.weights[start]) for network in networks)
    except StudyError as error:
        print(f"{start}: {error}; left out", file=sys.stderr)
        write_table(folder / "accuracy.csv", pd.DataFrame([{"reason": str(error)}]))
        for name in ("maps", "methods"):
            write_table(folder / f"{name}.csv", pd.DataFrame(columns=["state"]))
        return
    starts = [network.get_weights() for network in (model, *others)]
    slices = _slices(study, "cause")
    below, features = nets.cached(model, own.frozen_blocks, slices, channels, f"{backbone}, {start}")
    explained = depth.gather_slices(study.cases(networks[0]), config.explain.slices_per_subject, config.model.pixel_mm)
    test = (slices.table["part"] == "test").to_numpy()
    rows, tables, done = [], {"maps": [], "methods": []}, []
    for blocks, network in ((blocks, network) for blocks in own.frozen_blocks for network in networks):
        recipe = nets.Recipe(schedule.epochs, schedule.slices_per_subject, schedule.learning_rate, training.batch_size,
                             training.weight_decay, training.patience, config.seed + network.seed - 1)
        label = f"{start}, {blocks} frozen blocks, seed {network.seed}"
        done.append(_training_folder(folder / f"{blocks}-{network.seed}", "compare_start", "nets", recipe, own))
        reached = nets.FirstReaching(done[-1] / "equal.weights.h5", own.accuracy)
        lower, upper = nets.split_network(model, blocks)
        model.set_weights(starts[0])
        frozen = lower.get_weights()  # what the activations were made with, whatever the seed draws
        model.set_weights(starts[network.seed - 1])
        lower.set_weights(frozen)
        activations = nets.SliceSet(below[blocks], slices.table)
        plain, _, history = nets.fine_tune(model, blocks, activations, slices.table["part"], recipe, done[-1], label,
                                           None if own.weights[start] == "scratch" else features, [reached])
        epochs = {"best": int(history["val_loss"].idxmin()) + 1}
        if reached.path.is_file():
            epochs["equal"] = int((history["val_accuracy"] >= own.accuracy).idxmax()) + 1
        for state, epoch in epochs.items():
            if state == "equal":  # `plain` is one network for all trainings: what was best has been measured
                upper.load_weights(str(reached.path))
                plain = nets.plain_network(model)
            names = {"frozen_blocks": blocks, "seed": network.seed, "state": state}
            logits = nets.predict(nets.split_network(plain, blocks)[1], activations, label=label,
                                  rows=np.flatnonzero(test))
            right = logits.argmax(1) == slices.table["target"][test]
            rows.append(names | {"epoch": epoch, "accuracy": right.mean()})
            for name, table in _compared_maps(study, plain, explained, network.seed == 1, label).items():
                tables[name].append(table.assign(**names))
    plain.set_weights(randomised_copy(plain, "block1_conv1", config.seed).get_weights())
    for name, table in _compared_maps(study, plain, explained, True, f"{backbone}, untrained").items():
        tables[name].append(table.assign(frozen_blocks=0, seed=1, state="untrained"))
    write_table(folder / "accuracy.csv", pd.DataFrame(rows))
    for name, parts in tables.items():
        write_table(folder / f"{name}.csv", pd.concat(parts), float_format="%.5g")
    for training_folder in done:
        shutil.rmtree(training_folder.parent)


def _compared_maps(study, network, slices, all_methods, label):
    """Measures of the maps of a network of `compare_start`: of blocks 4 and 5, and of all methods."""
    from mslib.analysis import attribution, depth
    from mslib.explain import explain_layers
    from mslib.nets import evenly
    config, own = study.config, study.config.comparison
    layers = [name for name in depth.explained_layers(network) if "block3" not in name]
    found = explain_layers(network, slices.images, slices.table["target"], layers, ("gradcam", "layercam"), 8)
    correct = found.logits.argmax(1) == slices.table["target"].to_numpy()
    maps = depth.measure_layers(found, slices._replace(table=slices.table.assign(correct=correct)),
                                config.sequences.index("FLAIR"))
    if not all_methods:
        return {"maps": maps}
    rows = evenly(np.arange(len(correct)), own.slices)
    few = _explained(slices.take(rows), config.model.pixel_mm, evenly(np.arange(len(rows)), own.perturbed_slices))
    made, _ = attribution.attribute_all(network, few, [name for name in _methods(config) if not name.startswith(
        attribution.LRP) or name == f"{attribution.LRP}{config.relevance.rule}"], label, **study.attribution_settings)
    scores = attribution.localise(made, few, source="network")
    return {"maps": maps, "methods": scores.assign(correct=correct[rows][scores["image"]])}


# --- maps --------------------------------------------------------------------------------------------------------


def measure_maps(study: Study, backbone: str, kind: str) -> None:
    """Maps of every layer of all trainings of a kind of network, measured beside their comparators.

    The first training is also randomised, and its silent channels are compared with those of its start weights.
    """
    from mslib.analysis import depth
    from mslib.explain import CAM_VARIANTS, explain_layers
    config, networks = study.config, explained_networks(study.config, backbone, kind)
    if not networks:
        raise StudyError(f"{backbone}/{kind}: is none of the networks that study {config.study} explains")
    settings, model = config.explain, study.net(backbone, kind, networks[0].seed)
    slices = depth.gather_slices(progress(study.cases(networks[0]), desc=f"{backbone} {kind}: slices", unit="subject"),
                                 settings.slices_per_subject, config.model.pixel_mm)
    images, layers = slices.images, depth.explained_layers(model)
    methods = list(dict.fromkeys(["gradcam", "layercam", *settings.methods, *CAM_VARIANTS]))
    lobes = None if kind == "cause" else _lobes(study, slices.table)
    for network in progress(networks, desc=f"{backbone} {kind}: maps and measures", unit="network"):
        folder = study.folder / "maps" / str(network)
        if network.seed != networks[0].seed:
            model.set_weights(study.net(*network).get_weights())  # one network, traced once
        found = explain_layers(model, images, slices.table["target"], layers, methods, 8)
        right = slices.table.assign(correct=found.logits.argmax(1) == slices.table["target"])
        own = slices._replace(table=right)
        tables = [depth.measure_layers(found, own, config.sequences.index("FLAIR"), lobes)]
        if network.seed == 1:
            similarity, untrained = depth.randomise_layers(model, found, own, settings.randomisation_draws,
                                                           settings.randomisation_slices, config.seed)
            tables.append(untrained)
            some = np.linspace(0, len(images) - 1, min(len(images), 24)).astype(int)
            start = depth.channel_peaks(_started(study, network), images[some], layers)
            dead = depth.dead_channels({layer: peaks[some] for layer, peaks in found.peaks.items()}, start)
            _write_tables(folder, 5, dead=dead, randomisation=similarity)
            _cam_volumes(study, network, model, folder / "volumes")
        maps = {f"{method}|{layer}": (raw / max(raw.max(), 1e-30)).astype(np.float16)  # of ranks alone use is made
                for method, of_layer in found.cams.items() if method in ("gradcam", "layercam")
                for layer, raw in of_layer.items()}
        write_arrays(folder / "cams.npz", brain=slices.brain, subject=right["subject"].to_numpy(str),
                     slice=right["slice"].to_numpy(), **maps)
        _write_tables(folder, 5, measures=pd.concat(tables))


def _lobes(study, table):
    """Lobe of every brain pixel of slices, one subject after the other as in their table."""
    import nibabel as nib

    from mslib.analysis.lobes import brain_top, lobe_labels
    labels = []
    for subject, part in table.groupby("subject", sort=False):
        stack = study.stack(subject)
        mask = nib.load(study.anat(subject) / f"sub-{subject}_space-T1w_desc-brain_mask.nii.gz")
        labels.append(lobe_labels(stack.brain, stack.affine, brain_top(mask), part["slice"].to_numpy()))
    return np.concatenate(labels)


def _cam_volumes(study, network, model, folder):
    """Grad-CAM and LayerCAM of every slice of some patients in T1w space, for their own class: one volume per layer."""
    from mslib.analysis import depth
    from mslib.explain import explain_layers, upsample_maps
    from mslib.prep import write_volume
    folder.mkdir(parents=True, exist_ok=True)
    for subject in study.shown_as_volumes() if network.kind == "honest" else ():
        stack, target, anat = study.stack(subject), study.target(subject), study.anat(subject)
        images, groups = study.images(stack), study.config.groups
        found = explain_layers(model, images, np.full(len(images), target), depth.explained_layers(model),
                               ("gradcam", "layercam"), 8)
        facts = {"Network": str(network), "Class": groups[target], "HeightMillimetres": stack.z_mm.round(2).tolist(),
                 "PredictedClass": [groups[k] for k in found.logits.argmax(1)],
                 "Cells": [cam.shape[1:] for cam in found.cams["gradcam"].values()]}
        for method, cams in found.cams.items():
            told = {"Description": f"{method}, raw values, not normalised; one map for all sequences", **facts}
            write_volume(folder / f"sub-{subject}_space-T1w_desc-{network.backbone}{method}_cam.nii.gz",
                         {layer: upsample_maps(cam, images.shape[1:3]) for layer, cam in cams.items()}, stack,
                         anat / f"sub-{subject}_space-T1w_desc-preproc_T1w.nii.gz", "Layers", told, np.int16)


# --- networks with a known decision rule -------------------------------------------------------------------------


def _controls(study, part):
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


def _methods(config, costly=True):
    """Attribution methods, perturbation methods among them if `costly`, and the compared rules of relevance."""
    from mslib.analysis.attribution import LRP
    from mslib.explain import METHODS
    chosen = [name for name, method in METHODS.items() if costly or method.family != "perturbation"]
    return [*chosen, *(f"{LRP}{rule}" for rule in config.relevance.compared)]


def _write_maps(path, slices, maps):
    """Slices that a notebook shows, and their maps."""
    known = {name: values for name, values in vars(slices).items() if values is not None}
    write_arrays(path, **{f"slices {name}": values for name, values in known.items()}, **maps)


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
    train, unmarked, shown = _controls(study, "train"), _controls(study, "test"), sequences[-1]
    recipe = Recipe(rules.epochs, rules.slices_per_subject, rules.learning_rate, config.training.batch_size,
                    config.training.weight_decay, patience=rules.epochs, seed=seed)
    training = _training_folder(folder, "known_rule", "nets/known_rule", recipe, rules, train.table.to_csv())
    # One network is trained from several seeds, and that one is removed and randomised.
    tasks = {f"{experiment.name} {number}": (experiment.marked(train, mm, seed), seed + number - 1)
             for experiment in experiments(sequences)
             for number in range(1, rules.seeds + 1 if experiment.name == shown else 2)}
    weights = train_known_rules(tasks, recipe, rules.narrow, training)
    model = build_classifier("vgg16", 2, train.images.shape[1:], narrow=rules.narrow)  # one for all, traced once
    test, many = spread(unmarked, rules.test_slices), spread(unmarked, 2 * rules.test_slices)
    tables = {name: [] for name in ("use", "scores", "importance", "layers", "relevance")}
    for experiment in experiments(sequences):
        name = experiment.name
        model.set_weights(weights[f"{name} 1"])
        tables["use"].append(known.answers_to_cues(model, experiment, many, sequences, mm, seed + 2))
        marked = experiment.marked(test, mm, seed + 1)
        index = np.arange(len(test.table))
        explained = known.explained_marks(marked, mm, evenly(index, rules.perturbed_slices))
        maps, seconds = attribution.attribute_all(model, explained, _methods(config), f"known rule, {name}", **settings)
        _save_weights(model, folder / name / "weights.weights.h5")
        some, slices = attribution.of_few(maps, explained)
        middle = len(slices.images) // 2
        _write_maps(folder / name / "maps.npz", slices.at([middle]), {key: raw[[middle]] for key, raw in some.items()})
        if experiment.shortcut:
            tables["shortcut"] = [known.shortcut_shares(maps, explained, marked.corner, own.superpixels)]
            continue
        importance = attribution.slice_importance(model, explained, sequences, seed, name)
        worth = attribution.importance_of(importance, sequences)
        scores = attribution.score_maps(maps, explained, worth, model, sequences)
        shares = [relevance.slice_shares(model, explained.images, explained.targets, sequences, rule, explained.brain,
                                         explained.features).assign(rule=rule, subject=explained.subjects)
                  for rule in progress(config.relevance.compared, desc=f"known rule, {name}", unit="rule")]
        for key, table in (("importance", importance), ("relevance", pd.concat(shares)),
                           ("scores", scores.assign(seconds=scores["method"].map(seconds))),
                           ("layers", known.layer_scores(model, explained, worth))):
            tables[key].append(table.assign(experiment=name))
        if name == shown:
            tables["removal"] = [attribution.removal_table(maps, explained, model, own.baselines, own.levels, seed,
                                                           name)]
            tables["randomised"] = [attribution.randomised_similarity(model, maps, explained, name, **settings)]
            tables["repeated"] = []
            for number in range(2, rules.seeds + 1):
                model.set_weights(weights[f"{name} {number}"])
                others, _ = attribution.attribute_all(model, slices, _methods(config), f"{name}, seed {number}",
                                                      **settings)
                tables["repeated"].append(attribution.repeat_similarity(some, others, slices))
    _write_tables(folder, 7, **{key: pd.concat(found, ignore_index=True) for key, found in tables.items()})
    shutil.rmtree(training)


def export_bench(study: Study, folder: Path) -> None:
    """Write the networks of a finished study whose cause is known, and the built-in methods' table, for ``bench``.

    A network with a known decision rule is left out where it does not follow its rule.
    """
    from mslib.analysis import bench
    from mslib.analysis import known_rule as known
    from mslib.nets import evenly
    from mslib.nets.known_rule import experiments, spread
    from mslib.study.provenance import commit
    config, rules, sequences = study.config, study.config.attribution.known_rule, study.config.sequences
    use = known.accuracy_by_cue(read_table(study.folder / "known_rule" / "use.csv"))
    learnt = known.learnt_rules(use) + (["shortcut"] if known.learnt_shortcut(use) else [])
    if not learnt:
        raise StudyError(f"{study.folder / 'known_rule'}: no network follows its rule, so that none has a known cause; "
                         "train longer (attribution.known_rule.epochs)")
    test, folder = spread(_controls(study, "test"), rules.test_slices), Path(folder)
    for experiment in [one for one in experiments(sequences) if one.name in learnt]:
        marked = experiment.marked(test, config.model.pixel_mm * rules.shrink, config.seed + 1)
        explained = known.explained_marks(marked, config.model.pixel_mm * rules.shrink,
                                          evenly(np.arange(len(test.table)), rules.perturbed_slices))
        cause = {"corner": marked.corner} if experiment.shortcut else {"decisive": experiment.decisive}
        _write_known(folder, bench.Known(experiment.name, study.known_rule_net(experiment.name), explained, **cause))
    if "cause" in config.model.kinds:
        network, learnt = Network(config.model.backbones[0], "cause"), [*learnt, "lesions"]
        _write_known(folder, bench.Known("lesions", model := study.net(*network),
                                         _of_cause(study, network, model)[2]))
    settings = study.attribution_settings
    write_json(folder / "bench.json", {"study": config.study, "commit": commit(), "networks": learnt,
                                       "sequences": list(sequences), "settings": settings})
    table = bench.bench(_known_networks(folder), _methods(config), sequences, **settings)
    write_table(folder / "methods.csv", table.reset_index(), float_format="%.4g")


def bench(method: str, networks: Path) -> None:
    """Print what an attribution method (MODULE:FUNCTION) finds of causes that are known, beside the built-in ones."""
    import importlib
    import os

    from mslib.analysis import bench as of
    module, _, name = method.partition(":")
    if not (networks / "bench.json").is_file():
        raise StudyError(f"{networks}: holds no networks whose cause is known; write them from a finished study "
                         "(python -m mslib export_bench) and name their folder (--networks)")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise StudyError(f"bench: {method!r} must be MODULE:FUNCTION, to be imported from here ({error})") from error
    if not callable(function):
        raise StudyError(f"bench: {method!r} must be a function of model, images and targets")
    facts = read_json(networks / "bench.json")
    with of.registered(name, function):
        own = of.bench(_known_networks(networks), [name], facts["sequences"], **facts["settings"])
    others = read_table(networks / "methods.csv").set_index("method")
    both = pd.concat([own.astype(object), others.drop(of.CHANCE).astype(object)])
    print(both.where(both.notna(), "-").to_string(float_format="{:.3f}".format))


def _write_known(folder, known):
    """One file of a network whose cause is known: architecture, weights as float16, slices."""
    cause = {name: value for name in ("decisive", "corner") if (value := getattr(known, name)) is not None}
    weights = {f"weight {i:03}": weight.astype(np.float16) for i, weight in enumerate(known.model.get_weights())}
    _write_maps(folder / f"{known.name}.npz", known.explained,
                {"architecture": np.array(known.model.to_json()), **weights, **cause})


def _known_networks(folder):
    """Networks of `_write_known`, one at a time."""
    import keras

    from mslib.analysis.attribution import Explained
    from mslib.analysis.bench import Known
    for name in read_json(folder / "bench.json")["networks"]:
        stored = read_arrays(folder / f"{name}.npz")
        model = keras.models.model_from_json(str(stored["architecture"]))
        model.set_weights([stored[key].astype(np.float32) for key in sorted(stored) if key.startswith("weight ")])
        slices = {key.removeprefix("slices "): stored[key] for key in stored if key.startswith("slices ")}
        decisive = int(stored["decisive"]) if "decisive" in stored else None
        yield Known(name, model, Explained(**slices | {"pixel_mm": float(slices["pixel_mm"])}), decisive,
                    stored.get("corner"))


# --- attributions ------------------------------------------------------------------------------------------------


def _explained(slices, pixel_mm, few=None):
    """Slices of `mslib.analysis.depth.gather_slices` for attribution: lesions are features, alike in all sequences."""
    from mslib.analysis.attribution import Explained
    features = np.repeat(slices.lesions[..., None], slices.images.shape[-1], -1)
    table = slices.table
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
    importance = attribution.slice_importance(model, _explained(patients, mm), config.sequences, config.seed,
                                              str(network))
    _write_tables(folder, 7, importance=importance)
    shown, methods = study.shown_slices(model)[1], _methods(config, backbone == config.model.backbones[0])
    joint = [name for name in methods if name in attribution.JOINT]
    maps, _ = attribution.attribute_all(model, shown.at([0]), [name for name in methods if name not in joint],
                                        str(network), **settings)
    joint, _ = attribution.attribute_all(model, shown.at([0, 1, 2]), joint, str(network), **settings)
    _write_maps(folder / "honest.npz", shown.at([0]), maps | {name: raw[:1] for name, raw in joint.items()})
    if config.trains and "cause" in config.model.kinds:
        _write_tables(folder, 7, scores=_score_cause(study, Network(backbone, "cause"), methods, settings,
                                                     folder / "cause.npz"))


def _score_cause(study, network, methods, settings, path):
    """Scores of maps of slices that a network which lesions alone can decide classifies correctly (of any, below two).

    Slices are drawn of three of each unseen person. Beside them the same methods on a random network, location prior,
    FLAIR and its edges.
    """
    from skimage.filters import sobel

    from mslib.analysis import attribution
    from mslib.explain import randomised_copy
    config, model = study.config, study.net(*network)
    slices, correct, explained = _of_cause(study, network, model)
    maps, seconds = attribution.attribute_all(model, explained, methods, str(network), **settings)
    some, few = attribution.of_few(maps, explained)
    largest = few.features.sum((1, 2, 3)).argmax()
    _write_maps(path, few.at([largest]), {name: raw[[largest]] for name, raw in some.items()})
    model.set_weights(randomised_copy(model, "block1_conv1", config.seed).get_weights())  # traced once
    random, _ = attribution.attribute_all(model, few, _methods(config, False), f"{network}, untrained", **settings)
    flair = np.maximum(slices.images[..., config.sequences.index("FLAIR")], 0)
    beside = {"prior": slices.prior, "intensity": flair, "edges": np.stack([sobel(image) for image in flair])}
    untrained = attribution.localise(random, few, source="untrained")
    table = pd.concat([
        attribution.localise(maps, explained, source="network"),
        untrained.assign(image=explained.rows()[untrained["image"]]),
        attribution.localise(beside, explained, source="comparator")], ignore_index=True)
    return table.assign(correct=correct[table["image"]], seconds=table["method"].map(seconds))


def _of_cause(study, network, model):
    """Slices that a ``cause`` network classifies correctly (any, below two), whether it does, and as explained."""
    from mslib.analysis import depth
    from mslib.explain import batches_of, logits_of
    from mslib.nets import evenly
    own, mm = study.config.attribution, study.config.model.pixel_mm
    slices = depth.gather_slices(study.cases(network), 3, mm)
    correct = logits_of(model, batches_of(slices.images, 16)).argmax(1) == slices.table["target"].to_numpy()
    rows = evenly(np.flatnonzero(correct | (correct.sum() < 2)), own.slices)
    slices = slices.take(rows)
    return slices, correct[rows], _explained(slices, mm, evenly(np.arange(len(rows)), own.perturbed_slices))


# --- relevance ---------------------------------------------------------------------------------------------------


def _of_relevance(study, each):
    """Slices of everybody unseen, controls too (real patients: of the explained ones): table, images, brain.

    So many of each, spread evenly from the lowest to the highest, the ends left out.
    """
    from mslib.nets import evenly
    tables, arrays = [], []
    people = study.unseen() if study.config.trains else study.explained()
    for subject in progress(people, desc="slices", unit="subject"):
        person, stack = study.subjects.loc[subject], study.stack(subject)
        index = evenly(np.arange(len(stack.images)), min(each, len(stack.images)) + 2)[1:-1]
        tables.append(pd.DataFrame({"slice": index, "target": study.target(subject)}).assign(
            **person[["subject", "group", "cohort"]]))
        arrays.append((study.images(stack, index), stack.brain[index]))
    return pd.concat(tables, ignore_index=True), *(np.concatenate(part) for part in zip(*arrays))


def relevance(study: Study, backbone: str) -> None:
    """Shares of the sequences in the relevance of all trainings of a backbone, slice by slice.

    Of the first training also by other rules and layer by layer, and (of the first backbone) as volumes.
    """
    from mslib.analysis.relevance import flow_table, slice_shares
    from mslib.nets import evenly
    config, own, folder = study.config, study.config.relevance, study.folder / "relevance" / backbone
    networks = explained_networks(config, backbone, "honest")
    model, (table, images, brain) = study.net(*networks[0]), _of_relevance(study, own.slices_per_subject)

    def shares(rule, rows):
        part = table.iloc[rows].reset_index(drop=True)
        return part.join(slice_shares(model, images[rows], part["target"], config.sequences, rule, brain[rows]))

    every, some = np.arange(len(table)), evenly(np.arange(len(table)), own.compared_slices)
    rules = [shares(rule, some).assign(rule=rule) for rule in progress(own.compared, desc=f"{backbone}: rules")]
    flow = flow_table(model, images[some], own.rule, brain[some])
    _relevance_volumes(study, backbone, model, folder / "volumes")
    tables = []
    for network in progress(networks, desc=f"{backbone}: relevance", unit="network"):
        if network != networks[0]:
            model.set_weights(study.net(*network).get_weights())  # one network, traced once
        tables.append(shares(own.rule, every).assign(seed=network.seed))
    _write_tables(folder, 7, rules=pd.concat(rules), flow=flow, shares=pd.concat(tables))


def _relevance_volumes(study, backbone, model, folder):
    """Relevance of every slice of some patients in T1w space, for their own class: one volume per sequence."""
    from mslib.analysis.relevance import relevance_maps
    from mslib.prep import write_volume
    config, own = study.config, study.config.relevance
    folder.mkdir(parents=True, exist_ok=True)
    for subject in study.shown_as_volumes()[:own.volumes] if backbone == config.model.backbones[0] else ():
        stack = study.stack(subject)
        relevance = relevance_maps(model, study.images(stack), study.target(subject), own.rule, stack.brain)
        write_volume(folder / f"sub-{subject}_space-T1w_desc-{backbone}lrp_relevance.nii.gz",
                     {sequence: relevance[..., m] for m, sequence in enumerate(config.sequences)}, stack,
                     study.anat(subject) / f"sub-{subject}_space-T1w_desc-preproc_T1w.nii.gz", "Sequences",
                     {"Description": "Layer-wise relevance for the patient's own class, raw, signed",
                      "Units": "logit per pixel of the slice", "Rule": own.rule, "Network": str(Network(backbone)),
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
            try:
                simulate_cohort(source, sleep.subjects, round(sleep.hours * 120), config.seed, n_jobs=2)
            except OSError as error:  # NumPy's says how many bytes were written, not where
                raise WriteError(f"{source}: cannot be written ({error.strerror or error})") from error
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
    """Train the staging network of one fold, stage nights of subjects whom it has never seen, and explain them.

    Explained are epochs of the test nights by relevance, ablation and other attribution methods.
    """
    from mslib.analysis import sleep as analysis
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
    predictions, few, seed = prediction_table(model, epochs, parts.test), sleep.compared_per_stage, config.seed
    write_table(place / "history.csv", history)
    write_table(place / "predictions.csv", predictions)
    _save_weights(model, place / "weights.weights.h5")
    given = model, epochs, predictions
    _write_tables(place, 5, relevance=analysis.fold_relevance(*given, sleep.rule, sleep.explained_per_stage, few, seed),
                  ablation=analysis.fold_ablation(*given, few, seed),
                  methods=analysis.fold_methods(*given, few, sleep.steps, seed))
    shutil.rmtree(training)


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
