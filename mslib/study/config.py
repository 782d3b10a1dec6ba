"""The study's configuration: frozen, strict models with defaults and allowed ranges."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Sequence = Literal["T1w", "T2w", "FLAIR"]
Group = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Rule = Literal["epsilon_plus", "epsilon", "alpha1_beta0", "alpha2_beta1", "gamma", "epsilon_gamma",
               "epsilon_alpha2_beta1"]
Weights = Annotated[str, Field(pattern=r"^(scratch|simulated|imagenet|.+\.h5)$")]
#: A group must have a subject in each of the three parts of the subject-wise split.
MIN_PER_GROUP = 3
#: Shortest side that five poolings leave a pixel of.
MIN_PIXELS = 32
#: Folds of sleep staging: training, validation and test need a subject each.
MIN_FOLDS = 3
#: The class of people without the disease, by its name; a study without such a class has patients only.
CONTROL = "control"
#: The groups that can be simulated.
SIMULATED_GROUPS = (CONTROL, "RRMS", "SPMS")


class Section(BaseModel):
    """A frozen part of the configuration that knows no key but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Simulated(Section):
    """The simulated cohort: subjects per group, voxel size and the strength of what is not disease."""

    study: dict[Group, Count] = {"control": 19, "RRMS": 10, "SPMS": 9}
    independent: dict[Group, Count] = {"control": 10, "RRMS": 10, "SPMS": 10}
    voxel_mm: Annotated[float, Field(ge=0.5, le=8)] = 1.0
    misplacement_mm: Annotated[float, Field(ge=0, le=20)] = 5.0
    misplacement_deg: Annotated[float, Field(ge=0, le=20)] = 5.0
    thick_slice_share: Annotated[float, Field(ge=0, le=1)] = 0.4


class CohortSection(Section):
    """Where the patients come from and what happens when one of them is faulty."""

    source: Literal["simulated", "open_ms", "bids"] = "simulated"
    root: str | None = None
    group_column: str = "group"
    on_fault: Literal["stop", "skip"] = "stop"
    simulated: Simulated = Simulated()

    @model_validator(mode="after")
    def _root_for_bids(self):
        if self.source == "bids" and not self.root:
            raise ValueError("cohort.root: must name a BIDS folder when cohort.source is 'bids' (got nothing)")
        return self


class Prep(Section):
    """Bias correction, co-registration to T1w, intensity scaling and the choice of slices."""

    n4_shrink: PositiveInt = 6
    n4_iterations: list[PositiveInt] = [20, 20, 10]
    resample_mm: Positive | None = None
    percentiles: tuple[Percent, Percent] = (0.5, 99.8)
    n_slices: PositiveInt = 135

    @model_validator(mode="after")
    def _ascending(self):
        if self.percentiles[0] >= self.percentiles[1]:
            raise ValueError(f"prep.percentiles: must be lower, then upper (got {list(self.percentiles)})")
        return self


class Model(Section):
    """Which networks, with which weights, on which input; `seeds`: trainings of every explained one."""

    backbones: Annotated[list[Literal["vgg16", "vgg19"]], Field(min_length=1)] = ["vgg16", "vgg19"]
    weights: Weights = "scratch"
    input: Literal["fused", "T1w", "T2w", "FLAIR"] = "fused"
    image_size: tuple[PositiveInt, PositiveInt] = (128, 112)
    pixel_mm: Positive = 1.5
    seeds: PositiveInt = 2


class Split(Section):
    """Shares of the three parts (Hong and Zhang 2021: 75/10/15)."""

    train: Share = 0.75
    validation: Share = 0.10
    test: Share = 0.15

    @model_validator(mode="after")
    def _sum_to_one(self):
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"training.split: train + validation + test must be 1 (got {total:g})")
        return self


class Augmentation(Section):
    """Ranges of the random changes of a training slice (uniform, symmetric about none)."""

    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 10.0
    translation: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    scale: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    gain: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    gamma: Annotated[float, Field(ge=0, le=0.9)] = 0.15


class Schedule(Section):
    """How long, with how many slices and on how coarse pixels (`shrink` times the stack's) a protocol trains.

    With `frozen_blocks` the first blocks stay as they were, and slices are not augmented; nor are they without
    `augmented`. A `batch_size` of its own replaces that of the training.
    """

    epochs: PositiveInt = 8
    slices_per_subject: PositiveInt = 36
    learning_rate: Positive = 1e-3
    shrink: Annotated[int, Field(ge=1, le=4)] = 1
    frozen_blocks: Annotated[int, Field(ge=0, le=4)] = 0
    augmented: bool = True
    batch_size: PositiveInt | None = None


class Training(Section):
    """Split, augmentation, optimiser and one schedule per kind of network (permuted labels: one for both splits)."""

    split: Split = Split()
    augmentation: Augmentation = Augmentation()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: PositiveInt = 32
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    patience: PositiveInt = 4
    honest: Schedule = Schedule()
    published: Schedule = Schedule()
    permuted: Schedule = Schedule()
    pretraining_subjects: Count = 0
    pretraining_pixel_mm: Positive = 2.0
    area_weight: Positive = 1.0
    pretraining: Annotated[list[Schedule], Field(min_length=1)] = [Schedule()]


class Explain(Section):
    """Which maps are made, and of whom."""

    methods: Annotated[list[Literal["gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"]],
                       Field(min_length=1)] = ["gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"]
    nifti_subjects: PositiveInt = 3
    viewer_subjects: PositiveInt = 3
    randomisation_slices: PositiveInt = 48
    transfer_from: str = "simulated"


class KnownRule(Section):
    """Networks with a known decision rule: striped marks on control slices, one sequence decides (notebook 04)."""

    slices_per_subject: PositiveInt = 24
    epochs: PositiveInt = 6
    learning_rate: Positive = 2e-3
    narrow: Annotated[int, Field(ge=1, le=16)] = 4
    test_slices: Annotated[int, Field(ge=8)] = 10
    seeds: Annotated[int, Field(ge=2)] = 2


class Attribution(Section):
    """Notebook 04: whose slices are explained by all sixteen methods, and how finely."""

    patients: Annotated[int, Field(ge=2)] = 8
    superpixels: PositiveInt = 15
    samples: PositiveInt = 150
    permutations: PositiveInt = 5
    steps: PositiveInt = 20
    baselines: Annotated[list[Literal["zero", "mean", "blurred", "noise", "inpainted"]], Field(min_length=2)] = [
        "zero", "mean", "inpainted"]
    levels: Annotated[int, Field(ge=2)] = 5
    shapley_slices: PositiveInt = 3
    known_rule: KnownRule = KnownRule()


class Relevance(Section):
    """Notebook 05: how much relevance each sequence gets by LRP, of whom, by which rules."""

    rule: Rule = "epsilon_plus"
    compared: Annotated[list[Rule], Field(min_length=2)] = ["epsilon_plus", "epsilon", "alpha1_beta0", "alpha2_beta1",
                                                            "gamma"]
    slices_per_subject: Annotated[int, Field(ge=2)] = 8
    compared_slices: PositiveInt = 2
    volumes: PositiveInt = 1


class Statistics(Section):
    """Intervals by bootstrap over subjects."""

    bootstrap: PositiveInt = 2000
    confidence: Share = 0.95


class Channels(Section):
    """Label in the EDF files of every modality (default: those of Sleep-EDF telemetry)."""

    EEG: str = "EEG Fpz-Cz"
    EOG: str = "EOG horizontal"
    EMG: str = "EMG submental"


class Sleep(Section):
    """Notebook 06: which modality decides in sleep staging."""

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


class StudyConfig(Section):
    """All settings of one study."""

    study: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    seed: Count = 3275
    groups: Annotated[list[Group], Field(min_length=1)] = ["control", "RRMS", "SPMS"]
    sequences: tuple[Sequence, Sequence, Sequence] = ("T1w", "T2w", "FLAIR")
    cohort: CohortSection = CohortSection()
    prep: Prep = Prep()
    model: Model = Model()
    training: Training = Training()
    explain: Explain = Explain()
    attribution: Attribution = Attribution()
    relevance: Relevance = Relevance()
    sleep: Sleep | None = None
    statistics: Statistics = Statistics()

    @property
    def trains(self) -> bool:
        """Whether networks are trained; real patients without controls are explained with those of another study."""
        return self.cohort.source != "open_ms"

    @property
    def patient_groups(self) -> list[str]:
        """Classes of patients: all but `CONTROL`."""
        return [group for group in self.groups if group != CONTROL]

    @property
    def has_known_rule(self) -> bool:
        """Whether networks with a known decision rule can be trained: their marks are drawn on controls."""
        return self.trains and CONTROL in self.groups

    @property
    def draws(self) -> dict:
        """Keyword arguments of every bootstrap: ``n, confidence, seed``."""
        return {"n": self.statistics.bootstrap, "confidence": self.statistics.confidence, "seed": self.seed}

    @model_validator(mode="after")
    def _distinct(self):
        for key in ("groups", "sequences"):
            names = getattr(self, key)
            if len(set(names)) < len(names):
                raise ValueError(f"{key}: must be different from each other (got {list(names)})")
        return self

    @model_validator(mode="after")
    def _groups_that_can_be_simulated(self):
        unknown = [group for group in self.groups if group not in SIMULATED_GROUPS]
        if not unknown:
            return self
        if self.cohort.source == "simulated":
            known = f"of {list(SIMULATED_GROUPS)} where subjects are simulated"
            raise ValueError(f"groups: must be {known} (got {unknown})")
        if self.model.weights == "simulated" and self.cohort.source != "open_ms":
            raise ValueError("model.weights: must be 'imagenet', a path or 'scratch' for groups other than "
                             f"{list(SIMULATED_GROUPS)}, which alone can be simulated (got 'simulated' for {unknown})")
        return self

    @model_validator(mode="after")
    def _enough_subjects(self):
        counts = {"cohort.simulated.study": self.cohort.simulated.study} if self.cohort.source == "simulated" else {}
        if self.model.weights == "simulated" and self.cohort.source != "open_ms":
            share = self.training.pretraining_subjects // len(self.groups)
            counts["training.pretraining_subjects"] = dict.fromkeys(self.groups, share)
        for key, of_group in counts.items():
            few = {group: of_group.get(group, 0) for group in self.groups if of_group.get(group, 0) < MIN_PER_GROUP}
            if few:
                raise ValueError(f"{key}: must give every group at least {MIN_PER_GROUP} subjects (got {few})")
        return self

    @model_validator(mode="after")
    def _pixels_for_five_poolings(self):
        training = self.training
        smallest = {f"training.{name}": min(self.model.image_size) // getattr(training, name).shrink
                    for name in ("honest", "published", "permuted")}
        if self.model.weights == "simulated":
            coarser = self.model.pixel_mm / training.pretraining_pixel_mm
            smallest["training.pretraining"] = int(min(self.model.image_size) * coarser
                                                   / max(stage.shrink for stage in training.pretraining))
        for key, pixels in smallest.items():
            if pixels < MIN_PIXELS:
                raise ValueError(f"{key}: must leave at least {MIN_PIXELS} pixels a side of model.image_size, for five "
                                 f"poolings (got {pixels})")
        return self

    @model_validator(mode="after")
    def _frozen_blocks_know_something(self):
        stages = {"training.pretraining": max(stage.frozen_blocks for stage in self.training.pretraining)}
        if self.model.weights == "scratch":
            stages |= {f"training.{name}": getattr(self.training, name).frozen_blocks
                       for name in ("honest", "published", "permuted")}
        for key, blocks in stages.items():
            if blocks:
                raise ValueError(f"{key}: frozen_blocks must be 0 where weights start at random (got {blocks})")
        return self

    @model_validator(mode="after")
    def _known_groups(self):
        for part in ("study", "independent"):
            unknown = set(getattr(self.cohort.simulated, part)) - set(self.groups)
            if unknown and self.cohort.source == "simulated":
                raise ValueError(f"cohort.simulated.{part}: must name groups in {self.groups} (got {sorted(unknown)})")
        return self
