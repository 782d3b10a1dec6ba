"""Steps of sleep staging: nights, and one fold."""

from __future__ import annotations

from pathlib import Path

from mslib.study import StudyError, WriteError, write_json, write_table, write_tables, write_weights

from .study import Study


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
    try:
        parts = make_folds(epochs.table["subject"], sleep.folds, config.seed)[number]
        model, history = fit_fold(epochs, parts, number, sleep.epochs_per_recording, sleep.passes, sleep.batch_size,
                                  sleep.learning_rate, sleep.patience, sleep.pool, config.seed)
    except ValueError as error:
        raise StudyError(f"sleep: {error}") from error
    predictions, few, seed = prediction_table(model, epochs, parts.test), sleep.compared_per_stage, config.seed
    write_table(place / "history.csv", history)
    write_table(place / "predictions.csv", predictions)
    write_weights(place / "weights.weights.h5", model)
    given = model, epochs, predictions
    write_tables(place, 5, relevance=analysis.fold_relevance(*given, sleep.rule, sleep.explained_per_stage, few, seed),
                  ablation=analysis.fold_ablation(*given, few, seed),
                  methods=analysis.fold_methods(*given, few, sleep.steps, seed))
