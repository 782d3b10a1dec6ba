"""Sleep staging from EEG, EOG and EMG; the network, which loads TensorFlow, is imported by name (`.staging`)."""

from .cohort import EpochSet, Fold, describe_nights, fetch_telemetry, make_folds, read_cohort, refuse_leak
from .information import band_features, modality_information
from .night import simulate_night
from .recordings import read_hypnogram, read_recording, read_signals
from .scores import confusion, score_folds, summarise
from .signatures import BANDS, CHANNELS, MODALITIES, Effects
from .simulate import simulate_cohort, simulate_sleepers, write_hypnogram, write_recording
from .stages import STAGES, simulate_hypnogram

__all__ = [
    "BANDS", "CHANNELS", "MODALITIES", "STAGES", "Effects", "EpochSet", "Fold", "band_features", "confusion",
    "describe_nights", "fetch_telemetry", "make_folds", "modality_information", "read_cohort", "read_hypnogram",
    "read_recording", "read_signals", "refuse_leak", "score_folds", "simulate_cohort", "simulate_hypnogram",
    "simulate_night", "simulate_sleepers", "summarise", "write_hypnogram", "write_recording"]
