"""Steps of sleep staging: nights, and one fold."""

import shutil
from pathlib import Path

from mslib import analysis, sleep
from mslib.study import StudyError, WriteError, write_json, write_table, write_tables, write_weights
from mslib.study.provenance import training_folder

from .study import Study


def nights(study: Study) -> None:
    """Simulate, fetch or find the nights, and cut them into epochs; recordings that cannot be used are reported.

    StudyError where the study has no nights, no recording can be used (all faults, one line each), or there are fewer
    subjects than folds.
    """
    config, own, folder = study.config, study.config.sleep, study.folder / "sleep"
    if own is None:
        raise StudyError(f"study {config.study}: has no section 'sleep', so no nights; allowed: one in its file "
                         "(config/README.md)")
    source = Path(own.root).expanduser() if own.source == "folder" else folder / "nights"
    try:
        if own.source == "simulated":
            try:
                sleep.simulate_cohort(source, own.subjects, round(own.hours * 120), config.seed, n_jobs=2)
            except OSError as error:  # NumPy's says how many bytes were written, not where
                raise WriteError(f"{source}: cannot be written ({error.strerror or error})") from error
        elif own.source == "telemetry":
            sleep.fetch_telemetry(source, range(own.subjects))
        epochs = sleep.read_cohort(source, folder / "epochs", own.channels.model_dump(), own.rate,
                                   mismatch=own.mismatch)
    except ValueError as error:
        raise StudyError(str(error)) from error
    for fault in epochs.faults:
        print(f"left out: {fault}", flush=True)
    people = epochs.table["subject"].nunique()
    if people < own.folds:
        raise StudyError(f"{source}: has nights of {people} subject{'s' * (people != 1)} that can be used, fewer than "
                         f"sleep.folds, {own.folds}; nobody may be in two folds")
    write_table(folder / "epochs" / "epochs.csv", epochs.table)
    write_json(folder / "nights.json", {"faults": list(epochs.faults), "quality": epochs.quality})


def fold(study: Study, number: int) -> None:
    """Train the staging network of one fold, stage nights of subjects whom it has never seen, and explain them.

    Explained are epochs of the test nights by relevance, ablation and other attribution methods.
    """
    own, seed, place = study.config.sleep, study.config.seed, study.folder / "sleep" / f"fold-{number}"
    epochs = study.epochs()
    if number >= own.folds:
        raise StudyError(f"--number: must lie in 0..{own.folds - 1} (got {number})")
    training = training_folder(place, "fold", "sleep", seed, own, epochs.quality)
    try:
        parts = sleep.make_folds(epochs.table["subject"], own.folds, seed)[number]
        model, history = sleep.staging.fit_fold(
            epochs, parts, training, number, own.epochs_per_recording, own.passes, own.pool, seed,
            batch_size=own.batch_size, learning_rate=own.learning_rate, patience=own.patience)
    except ValueError as error:
        raise StudyError(f"sleep: {error}") from error
    predictions, few = sleep.staging.prediction_table(model, epochs, parts.test), own.compared_per_stage
    write_table(place / "history.csv", history)
    write_table(place / "predictions.csv", predictions)
    write_weights(place / "weights.weights.h5", model)
    given, science = (model, epochs, predictions), analysis.sleep
    write_tables(place, 5, relevance=science.fold_relevance(*given, own.rule, own.explained_per_stage, few, seed),
                 ablation=science.fold_ablation(*given, few, seed),
                 methods=science.fold_methods(*given, few, own.steps, seed))
    shutil.rmtree(training)
