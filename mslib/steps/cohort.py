"""Steps of the cohort: simulate or fetch, check, preprocess, who is in which part, known truth."""

import dataclasses
import shutil

import numpy as np
import pandas as pd

from mslib import cohort, nets, prep
from mslib.study import Network, StudyConfig, StudyError, WriteError, explained_networks, progress
from mslib.study.files import read_json, write_json, write_table, write_tables
from mslib.study.provenance import verified

from .study import Study, shipped


def simulated_people(config: StudyConfig) -> list:
    """The simulated participants of both cohorts: the study's, and the independent one (ids T..)."""
    own = config.cohort.simulated
    laws = own.model_dump(include={"misplacement_mm", "misplacement_deg", "thick_slice_share"})
    return [*cohort.draw_participants(own.study, config.seed, **laws),
            *cohort.draw_participants(own.independent, config.seed + 1, prefix="T", **laws)]


def look_at_weights(run: Study) -> None:
    """StudyError where weights cannot be had: before anything is computed."""
    config = run.config
    for backbone in config.model.backbones:
        if config.model.weights == "simulated":
            verified(shipped(f"{backbone}_simulated"))
        elif config.model.weights != "scratch":
            run.trainable(Network(backbone), "float32")
    for network in () if config.trains else explained_networks(config):
        verified(shipped(network))


def _described(person) -> dict:
    return {"subject": person.id} | {key: getattr(person, key) for key in ("group", "cohort", "age", "sex", "edss")}


def start(study: Study) -> None:
    """Describe the simulated dataset, or fetch and convert the real patients; look at given weights first."""
    config, root = study.config, study.bids_root
    look_at_weights(study)
    if config.cohort.source == "simulated":
        people = simulated_people(config)
        _drop_others(root, {person.id for person in people})
        cohort.write_dataset(people, root)
    elif config.cohort.source == "open_ms":
        _drop_others(root, set())
        missing = cohort.openms.fetch(study.folder / "source")
        left_out = cohort.openms_bids.to_bids(study.folder / "source", root).incomplete
        write_json(study.folder / "source_faults.json", [
            *(f"{name}: could not be had: {reason}" for name, reason in missing.items()),
            *(f"{line}; left out" for line in left_out)])


def make_template(study: Study, mm: float) -> None:
    """Maps of the template brain at a voxel size, once for all simulated subjects."""
    cohort.write_template(study.template(mm), mm)


def _drop_others(root, ids):
    """Remove subjects that an earlier run with other settings has left in the run's dataset."""
    for folder in [*root.glob("sub-*"), *root.glob("derivatives/*/sub-*")]:
        if folder.name.removeprefix("sub-") not in ids:
            shutil.rmtree(folder)


def simulate(study: Study, subject: str) -> None:
    """Simulate one subject into the run's BIDS dataset."""
    chosen = [person for person in simulated_people(study.config) if person.id == subject]
    if not chosen:
        raise StudyError(f"sub-{subject}: is not a subject of the simulated cohorts of study {study.config.study}")
    mm = study.config.cohort.simulated.voxel_mm
    cohort.simulate_subject(chosen[0], study.bids_root, mm, study.template(mm))


def check_cohort(study: Study) -> None:
    """Check the whole cohort; ``cohort.json``: its subjects, faults, and sites that tell the groups apart."""
    people = cohort.Cohort.of_study(study.bids_root, study.config)
    for line in people.left_out:
        print(line, flush=True)
    if study.config.cohort.source == "open_ms":
        faults = [*read_json(study.folder / "source_faults.json"), *people.faults]
        people = dataclasses.replace(people, faults=faults)
    prep.describe_derivatives(study.folder / "derivatives" / "mslib", study.bids_root)
    sites = pd.DataFrame([{"group": one.group, "age": None, "site": one.site} for one in people])
    cohort.write_listing(study.folder / "cohort.json", people, study.bids_root, cohort.survey.confounded(sites))


def _checked(study) -> list:
    return cohort.read_listing(study.folder / "cohort.json", study.bids_root)


def preprocess(study: Study, subject: str) -> None:
    """Preprocess one subject. With ``on_fault: skip`` a faulty one is marked excluded; a failing disk fails."""
    config = study.config
    chosen = [person for person in _checked(study) if person.id == subject]
    if not chosen:
        raise StudyError(f"sub-{subject}: is not in the checked cohort of study {config.study}")
    try:
        prep.preprocess_subject(chosen[0], study.anat(subject).parents[1], config.prep, config.sequences,
                                config.model.image_size, config.model.pixel_mm)
    except StudyError as error:
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        # An error of the file system has a number, that of a damaged gzip file has none.
        if config.cohort.on_fault == "stop" or any(
                isinstance(one, WriteError) or getattr(one, "errno", None) for one in causes):
            raise
        write_json(study.derivative(subject, "desc-qc.json"), {"subject": subject, "excluded": str(error)})


def subjects(study: Study) -> None:
    """``subjects.csv``: everybody usable, with the part of the subject-level split and whether maps are made of them.

    Explained are patients outside training and validation (real patients: whose type of MS the networks know). Where
    one of them has lesions in its slices, those without are left out (``lesion_mask``: of explained patients, one that
    is not empty there). ``out_of_scope``: where shipped networks explain, what of the images lies outside those that
    they were trained on.
    """
    config = study.config
    people = _checked(study)
    quality = {person.id: read_json(study.derivative(person.id, "desc-qc.json")) for person in people}
    table = pd.DataFrame([_described(person) | {"lesion_mask": person.lesion_mask is not None}
                          for person in people if "excluded" not in quality[person.id]])
    excluded = [f"sub-{name}: excluded: {row['excluded']}" for name, row in quality.items() if "excluded" in row]
    if table.empty:
        raise StudyError("\n".join([f"{study.folder}: nobody usable is left", *excluded]))
    if config.trains:
        own = table["cohort"] == "study"
        parts = nets.split_subjects(table[own].set_index("subject")["group"], config.training.split, config.seed)
        table["part"] = table["subject"].map(parts).fillna("independent")
    else:
        table["part"] = "test"
        for network in explained_networks(config):
            study.check_classes(network)
    patients = table["group"].isin(config.patient_groups) & ~table["part"].isin(("train", "validation"))
    if not patients.any():
        raise StudyError(f"{study.folder}: no patient outside training and validation (groups "
                         f"{config.patient_groups}); only subjects that no network has learnt from are explained")
    stacks = ((name, study.stack(name)) for name in table.loc[patients & table["lesion_mask"], "subject"])
    empty = [name for name, stack in stacks if not (stack.lesions & stack.brain).any()]
    table["lesion_mask"] &= ~table["subject"].isin(empty)
    table["explained"] = patients & (table["lesion_mask"] | ~table.loc[patients, "lesion_mask"].any())
    # Figures show the first SPMS patient of the test part (real patients: the largest lesions); volumes begin with it.
    shown = table.index[table["explained"] & (table["group"] == "SPMS") & (table["part"] == "test")]
    if not config.trains:
        lesions = table.loc[table["explained"], "subject"].map(lambda name: study.stack(name).lesions.sum())
        shown = lesions.sort_values(ascending=False, kind="stable").index
    ranked = list(dict.fromkeys([*shown[:1], *table.index[table["explained"]]]))[:config.explain.nifti_subjects]
    table["volume"] = pd.Series(np.arange(1, len(ranked) + 1), index=ranked).reindex(table.index, fill_value=0)
    table["out_of_scope"] = ""
    if not config.trains:
        known = read_json(shipped(f"{config.model.backbones[0]}_simulated").with_suffix(".json"))["scope"]
        looks = (nets.scope.image_features(study.stack(name).images[::5], config.sequences, config.model.pixel_mm)
                 for name in table["subject"])
        table["out_of_scope"] = ["; ".join(nets.scope.out_of_scope(look, known)) for look in looks]
    write_table(study.folder / "subjects.csv", table)
    strange = [f"sub-{one.subject}: lies outside what the networks were trained on: {one.out_of_scope}"
               for one in table.itertuples() if one.out_of_scope]
    faults = read_json(study.folder / "cohort.json")["faults"]
    write_json(study.folder / "faults.json", [*strange, *faults, *excluded])  # notebook 00 shows the first


def truth(study: Study) -> None:
    """Truth of every subject, quality of preprocessing, errors of registration and bias field, appearance.

    Bias fields are compared, and appearance measured, in at most 24 subjects, spread evenly over the cohort.
    """
    import nibabel as nib
    import SimpleITK as sitk

    from mslib.analysis.truth import appearance, bias_correlation, brain_points, lesion_load, registration_error
    people = [person for person in _checked(study) if person.id in study.subjects.index]
    compared = people[:: max(1, -(-len(people) // 24))]
    persons, quality, errors, fields, looks = [], [], [], [], []
    for person in progress(people, desc="truth and errors", unit="subject"):
        sub, derived, raw = f"sub-{person.id}", study.anat(person.id), study.truth_folder(person.id)
        row = _described(person)
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
            images = prep.unscaled_images(person, derived.parents[1])
            looks.append({"subject": person.id, "group": person.group, **appearance(*images)})
    write_tables(study.folder / "cohort", 6, truth=pd.DataFrame(persons), quality=pd.DataFrame(quality),
                  registration_errors=pd.DataFrame(errors, columns=["subject", "group", "sequence", "before", "after"]),
                  bias_fields=pd.DataFrame(fields, columns=["subject", "sequence", "correlation"]),
                  appearance=pd.DataFrame(looks, columns=None if looks else ["subject", "group"]))
