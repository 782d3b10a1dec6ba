"""Sleep staging from EEG, EOG and EMG: simulated nights with known truth, EDF reader, staging network, scores."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["staging"], {
    "cohort": ["EpochSet", "Fold", "describe_nights", "fetch_telemetry", "make_folds", "read_cohort", "refuse_leak"],
    "information": ["band_features", "modality_information"],
    "night": ["simulate_night"],
    "recordings": ["read_hypnogram", "read_recording", "read_signals"],
    "scores": ["confusion", "score", "score_folds", "summarise"],
    "signatures": ["BANDS", "CHANNELS", "MODALITIES", "Effects"],
    "simulate": ["simulate_cohort", "simulate_sleepers", "write_hypnogram", "write_recording"],
    "stages": ["STAGES", "simulate_hypnogram"]})
