"""Settings of notebook 06: whose nights, how nets are trained on them, what is explained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(ge=1)]
STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
Rule = Literal["epsilon_plus", "epsilon", "z_plus", "alpha1_beta0", "alpha2_beta1", "gamma", "epsilon_gamma",
               "epsilon_alpha2_beta1"]
#: Training, validation and test need a subject each.
MIN_FOLDS = 3


class Channels(BaseModel):
    """Label in the EDF files of every modality (default: those of Sleep-EDF telemetry)."""

    model_config = STRICT

    EEG: str = "EEG Fpz-Cz"
    EOG: str = "EOG horizontal"
    EMG: str = "EMG submental"


class Sleep(BaseModel):
    """Notebook 06: which modality decides in sleep staging."""

    model_config = STRICT

    source: Literal["simulated", "folder", "telemetry"] = "simulated"
    root: str | None = None
    channels: Channels = Channels()
    rate: Positive = 100.0
    mismatch: Literal["refuse", "cut"] = "refuse"
    subjects: Annotated[int, Field(ge=MIN_FOLDS)] = 22
    hours: Annotated[float, Field(ge=0.5, le=12)] = 8.0
    folds: Annotated[int, Field(ge=MIN_FOLDS)] = 4
    epochs_per_recording: PositiveInt | None = 100
    passes: PositiveInt = 12
    batch_size: PositiveInt = 32
    learning_rate: Positive = 1e-3
    patience: PositiveInt = 5
    pool: Annotated[int, Field(ge=1, le=4)] = 4
    rule: Rule = "epsilon_plus"
    explained_per_stage: PositiveInt = 12
    compared_per_stage: PositiveInt = 8
    steps: PositiveInt = 20
    mains_hz: Literal[50, 60] = 50
    simulations: Annotated[int, Field(ge=0)] = 100

    @model_validator(mode="after")
    def _root_for_folder(self):
        if self.source == "folder" and not self.root:
            raise ValueError("sleep.root: must name a folder with nights.tsv when sleep.source is 'folder' (got "
                             "nothing)")
        return self

    @model_validator(mode="after")
    def _enough_subjects(self):
        if self.source != "folder" and self.folds > self.subjects:
            raise ValueError(f"sleep.folds: must be at most sleep.subjects, {self.subjects}, because nobody is in two "
                             f"folds (got {self.folds})")
        if self.source == "telemetry" and self.subjects > 22:
            raise ValueError(f"sleep.subjects: must be at most 22, as many as Sleep-EDF telemetry has (got "
                             f"{self.subjects})")
        return self
