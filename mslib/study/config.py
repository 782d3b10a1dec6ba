"""The study's configuration: frozen, strict models with defaults and allowed ranges."""

from typing import Annotated, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Sequence = Literal["T1w", "T2w", "FLAIR"]
#: Patterns of texts, in words.
PATTERNS = {r"^[A-Za-z0-9]+$": "letters and digits", r"^[a-z0-9_]+$": "small letters, digits and _",
            r"^(scratch|simulated|imagenet|.+\.h5)$": "scratch, simulated, imagenet or the path of a .h5 file"}
_WORD, _NAME, _WEIGHTS = PATTERNS
Group = Annotated[str, Field(pattern=_WORD)]
#: May look like a number in YAML, such as a run or a coded diagnosis.
Text = Annotated[str, BeforeValidator(lambda given: str(given) if type(given) is int else given)]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Millimetres = Annotated[float, Field(gt=0, le=10)]
Rate = Annotated[float, Field(gt=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Item = TypeVar("Item")
Some = Annotated[list[Item], Field(min_length=1)]
Several = Annotated[list[Item], Field(min_length=2)]
Listed = Field(strict=False)  # YAML has no tuples
Side = Annotated[int, Field(ge=1, le=1024)]
Size = Annotated[tuple[Side, Side], Listed]
Sequences = Annotated[tuple[Sequence, Sequence, Sequence], Listed]
Rule = Literal["epsilon_plus", "epsilon", "alpha1_beta0", "alpha2_beta1", "gamma", "epsilon_gamma",
               "epsilon_alpha2_beta1"]
#: Of images: also from each sequence's mean over the brain on.
ImageRule = Literal[(*get_args(Rule), *(f"{name}_centred" for name in get_args(Rule)))]
Weights = Annotated[str, Field(pattern=_WEIGHTS)]
MIN_PER_GROUP = 3  # a subject in each of the three parts of the subject-level split
MIN_PIXELS = 32  # the shortest side that five poolings leave a pixel of
MIN_FOLDS = 3  # of sleep staging: training, validation and test need a subject each
CONTROL = "control"  # the class of people without the disease; a study without it has patients only
SIMULATED_GROUPS = (CONTROL, "RRMS", "SPMS")
#: Notebooks in the order in which they run; the last reads what the others have recorded.
NOTEBOOKS = ("00_cohort", "01_coregistration", "02_finetuning", "03_gradcam_layers", "04_multimodal_attribution",
             "05_modality_relevance", "06_sleep_staging", "07_summary", "08_pretraining")


class Section(BaseModel):
    """A frozen part of the configuration that knows no key but its own; config/README.md says what each is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def _faults(self):
        """What does not fit together, a line each."""
        return ()

    @model_validator(mode="after")
    def _consistent(self):
        for fault in self._faults():
            raise ValueError(fault)
        return self


class Simulated(Section):
    """The simulated cohort: subjects per group, voxel size and the strength of what is not disease."""

    study: dict[Group, Count] = {"control": 19, "RRMS": 10, "SPMS": 9}
    independent: dict[Group, Count] = {"control": 10, "RRMS": 10, "SPMS": 10}
    voxel_mm: Annotated[float, Field(ge=0.5, le=8)] = 1.0
    misplacement_mm: Annotated[float, Field(ge=0, le=20)] = 5.0
    misplacement_deg: Annotated[float, Field(ge=0, le=20)] = 5.0
    thick_slice_share: Annotated[float, Field(ge=0, le=1)] = 0.4


class CohortSection(Section):
    """Where the patients come from, which of their images are taken, and what happens when one of them is faulty."""

    source: Literal["simulated", "open_ms", "bids"] = "simulated"
    root: str | None = None
    group_column: str = "group"
    session: Text | None = None
    entities: dict[str, Text] = {}
    on_fault: Literal["stop", "skip"] = "stop"
    simulated: Simulated = Simulated()

    def _faults(self):
        if self.source == "bids" and not self.root:
            yield "cohort.root: must name a BIDS folder when cohort.source is 'bids' (got nothing)"


class Prep(Section):
    """Bias correction, co-registration to T1w, intensity scaling and the choice of slices."""

    resample_mm: Millimetres | None = None
    percentiles: Annotated[tuple[Percent, Percent], Listed] = (0.5, 99.8)
    n_slices: Annotated[int, Field(ge=3)] = 135  # figures show neighbours

    def _faults(self):
        if self.percentiles[0] >= self.percentiles[1]:
            yield f"prep.percentiles: must be lower, then upper (got {list(self.percentiles)})"


class Model(Section):
    """Which networks, with which weights, on which input."""

    backbones: Some[Literal["vgg16", "vgg19"]] = ["vgg16", "vgg19"]
    kinds: Some[Literal["published", "honest", "cause"]] = ["published", "honest", "cause"]
    weights: Weights = "scratch"
    shipped: bool = False
    input: Literal["fused", "T1w", "T2w", "FLAIR"] = "fused"
    image_size: Size = (192, 168)
    pixel_mm: Millimetres = 1.0
    seeds: PositiveInt = 3
    narrow: Annotated[int, Field(ge=1, le=16)] = 1

    def _faults(self):
        if self.narrow > 1 and self.weights != "scratch":
            yield f"model.narrow: must be 1 where weights do not start at random (got {self.narrow})"


class Split(Section):
    """Shares of the three parts (Hong and Zhang 2021: 75/10/15)."""

    train: Share = 0.75
    validation: Share = 0.10
    test: Share = 0.15

    def _faults(self):
        if abs((total := self.train + self.validation + self.test) - 1) > 1e-6:
            yield f"training.split: train + validation + test must be 1 (got {total:g})"


class Augmentation(Section):
    """Ranges of the random changes of a training slice (uniform, symmetric about none)."""

    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 10.0
    translation: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    scale: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    gain: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    gamma: Annotated[float, Field(ge=0, le=0.9)] = 0.15


class Schedule(Section):
    """How long a kind of network is fine-tuned, on how many slices of a subject in an epoch, and above which blocks."""

    epochs: PositiveInt = 2
    slices_per_subject: PositiveInt = 16
    learning_rate: Rate = 1e-4
    frozen_blocks: Annotated[int, Field(ge=0, le=4)] = 0


class Training(Section):
    """Slices, split, augmentation, optimiser and one schedule per kind of network."""

    slices: PositiveInt = 36
    independent_slices: PositiveInt = 12
    cause_people: Annotated[int, Field(ge=2 * MIN_PER_GROUP)] = 60
    cause_slices: PositiveInt = 10
    split: Split = Split()
    folds: Annotated[int, Field(ge=3)] = 5  # one is tested, one validates
    augmentation: Augmentation = Augmentation()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: PositiveInt = 32
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    patience: PositiveInt = 4
    published: Schedule = Schedule()
    honest: Schedule = Schedule()
    cause: Schedule = Schedule()


class Stage(Section):
    """A stage of pre-training, on pixels `shrink` times as large as the slices'."""

    epochs: PositiveInt
    slices_per_subject: PositiveInt
    learning_rate: Rate
    shrink: Annotated[int, Field(ge=1, le=8)] = 1
    batch_size: PositiveInt = 32


class Pretraining(Section):
    """Recipe of ``python -m mslib pretrain`` (weights/README.md); not part of any study.

    `people`: simulated, in equal shares of the groups, `slices_per_person` of each kept; `variation`: spread of
    contrast between them as a multiple of the study's.
    """

    #: Keys that decide the cohort.
    COHORT: ClassVar[tuple[str, ...]] = ("seed", "groups", "sequences", "image_size", "pixel_mm", "prep", "people",
                                         "slices_per_person", "variation")

    seed: Count = 3275
    groups: Some[Literal[SIMULATED_GROUPS]] = list(SIMULATED_GROUPS)
    sequences: Sequences = ("T1w", "T2w", "FLAIR")
    image_size: Size = (192, 168)
    pixel_mm: Millimetres = 1.0
    prep: Prep = Prep()
    people: PositiveInt
    slices_per_person: PositiveInt
    variation: Positive
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    area_weight: Positive
    augmentation: Augmentation = Augmentation()
    stages: Some[Stage]

    def _faults(self):
        if (shrink := self.stages[-1].shrink) != 1:
            yield f"stages: the last must have shrink 1, the pixels that are shipped for (got {shrink})"


class Explain(Section):
    """Which maps are made, and of whom."""

    methods: Some[Literal["gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"]] = [
        "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"]
    slices_per_subject: PositiveInt = 2
    randomisation_draws: PositiveInt = 10
    nifti_subjects: PositiveInt = 1
    viewer_subjects: Count = 1


class KnownRule(Section):
    """Networks with a known decision rule: striped marks on control slices, one sequence decides (notebook 04)."""

    slices_per_subject: PositiveInt = 24
    epochs: PositiveInt = 4
    learning_rate: Rate = 2e-3
    narrow: Annotated[int, Field(ge=1, le=16)] = 8
    shrink: Annotated[int, Field(ge=1, le=4)] = 1
    test_slices: Annotated[int, Field(ge=8)] = 100
    perturbed_slices: Annotated[int, Field(ge=2)] = 10
    seeds: Annotated[int, Field(ge=2)] = 2


class Attribution(Section):
    """Notebook 04: how many slices are explained by all sixteen methods, and how finely."""

    slices: Annotated[int, Field(ge=2)] = 24
    perturbed_slices: Annotated[int, Field(ge=2)] = 6
    superpixels: PositiveInt = 15
    samples: PositiveInt = 150
    permutations: PositiveInt = 5
    steps: PositiveInt = 20
    baselines: Several[Literal["zero", "mean", "blurred", "noise", "inpainted"]] = ["zero", "mean", "inpainted"]
    levels: Annotated[int, Field(ge=2)] = 5
    shapley_slices: PositiveInt = 1
    known_rule: KnownRule = KnownRule()


class Relevance(Section):
    """Notebook 05: how much relevance each sequence gets by LRP, of whom, by which rules."""

    rule: ImageRule = "gamma_centred"  # of those compared, it follows known decision rules furthest
    compared: Several[ImageRule] = [
        "epsilon_plus", "epsilon_plus_centred", "epsilon", "epsilon_centred", "alpha2_beta1", "alpha2_beta1_centred",
        "gamma", "gamma_centred"]
    slices_per_subject: Annotated[int, Field(ge=2)] = 4
    compared_slices: Annotated[int, Field(ge=2)] = 24
    volumes: Count = 1


class Comparison(Section):
    """Notebook 08: start weights of networks that lesions alone can decide, first backbone, by `training.cause`."""

    weights: Annotated[dict[Annotated[str, Field(pattern="^[a-z]+$")], Weights], Field(min_length=2)] = {
        "scratch": "scratch", "simulated": "simulated", "imagenet": "imagenet"}
    frozen_blocks: Some[Annotated[int, Field(ge=1, le=5)]] = [5, 4, 3]
    accuracy: Share = 0.8
    slices: Annotated[int, Field(ge=2)] = 4
    perturbed_slices: Annotated[int, Field(ge=2)] = 2


class Statistics(Section):
    """Intervals by bootstrap over subjects."""

    bootstrap: Annotated[int, Field(ge=100)] = 2000
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
    learning_rate: Rate = 1e-3
    patience: PositiveInt = 5
    pool: Annotated[int, Field(ge=1, le=4)] = 4
    rule: Rule = "epsilon_plus"
    explained_per_stage: PositiveInt = 12
    compared_per_stage: PositiveInt = 8
    steps: PositiveInt = 20

    def _faults(self):
        if self.source == "folder" and not self.root:
            yield "sleep.root: must name a folder with nights.tsv when sleep.source is 'folder' (got nothing)"
        if self.source != "folder" and self.folds > self.subjects:
            yield (f"sleep.folds: must be at most sleep.subjects, {self.subjects}, because nobody is in two folds (got "
                   f"{self.folds})")
        if self.source == "telemetry" and self.subjects > 22:
            yield f"sleep.subjects: must be at most 22, as many as Sleep-EDF telemetry has (got {self.subjects})"


class StudyConfig(Section):
    """All settings of one study."""

    study: Annotated[str, Field(pattern=_NAME)]
    notebooks: Some[Literal[NOTEBOOKS]] = list(NOTEBOOKS)
    seed: Count = 3275
    groups: Some[Group] = list(SIMULATED_GROUPS)
    group_values: dict[Group, list[Text]] = {}
    sequences: Sequences = ("T1w", "T2w", "FLAIR")
    cohort: CohortSection = CohortSection()
    prep: Prep = Prep()
    model: Model = Model()
    training: Training = Training()
    explain: Explain = Explain()
    attribution: Attribution = Attribution()
    relevance: Relevance = Relevance()
    sleep: Sleep | None = None
    comparison: Comparison | None = None
    statistics: Statistics = Statistics()

    @property
    def run_notebooks(self) -> list[str]:
        """Those of `notebooks` that the study has something for: a training, nights."""
        lacking = {"02_finetuning": not self.trains, "06_sleep_staging": self.sleep is None,
                   "08_pretraining": self.comparison is None}
        return [name for name in NOTEBOOKS if name in self.notebooks and not lacking.get(name, False)]

    @property
    def trains(self) -> bool:
        """Whether networks are trained; else shipped ones explain (real patients without controls, a demo)."""
        return self.cohort.source != "open_ms" and not self.model.shipped

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

    @model_validator(mode="before")
    @classmethod
    def _mapped(cls, given):
        """`groups` as a mapping from classes to values of the table: the classes, and `group_values`."""
        groups = given.get("groups") if isinstance(given, dict) else None
        if not isinstance(groups, dict):
            return given
        values = {name: value if isinstance(value, list) else [value] for name, value in groups.items()}
        for name, value in ((name, value) for name, every in values.items() for value in every):
            if type(value) not in (str, int):
                raise ValueError(f"groups.{name}: must be a value of the table or a list of them, in quotes where YAML "
                                 f"takes it for something else (got {value!r})")
        return given | {"groups": list(groups), "group_values": values}

    def _faults(self):
        yield from self._cohort_faults()
        yield from self._network_faults()

    def _cohort_faults(self):
        simulated = self.cohort.source == "simulated"
        if self.trains and len(self.groups) < 2:
            yield f"groups: must be at least two, for networks to tell apart (got {self.groups})"
        if strange := [group for group in self.groups if group.lower() == CONTROL != group]:
            yield f"groups: must call healthy people {CONTROL!r}, in small letters (got {strange})"
        values = [value for every in self.group_values.values() for value in every]
        lists = {"groups": self.groups, "sequences": self.sequences, "model.backbones": self.model.backbones,
                 "model.kinds": self.model.kinds, "explain.methods": self.explain.methods,
                 "attribution.baselines": self.attribution.baselines, "relevance.compared": self.relevance.compared}
        for key, names in lists.items():
            if len(set(names)) < len(names):
                yield f"{key}: must be different from each other (got {list(names)})"
        if len(set(values)) < len(values):
            yield f"groups: every value of the table must stand for one class (got {self.group_values})"
        if self.group_values and (set(self.group_values) != set(self.groups) or self.cohort.source != "bids"):
            yield ("groups: may be a mapping from every class to values of the table where cohort.source is 'bids' "
                   f"(got {self.group_values})")
        if simulated and (unknown := [group for group in self.groups if group not in SIMULATED_GROUPS]):
            yield f"groups: must be of {list(SIMULATED_GROUPS)} where subjects are simulated (got {unknown})"
        for part in ("study", "independent") if simulated else ():
            counts = getattr(self.cohort.simulated, part)
            if unknown := sorted(set(counts) - set(self.groups)):
                yield f"cohort.simulated.{part}: must name groups in {self.groups} (got {unknown})"
            few = {group: counts.get(group, 0) for group in self.groups if counts.get(group, 0) < MIN_PER_GROUP}
            if few and part == "study" and self.trains:
                yield f"cohort.simulated.study: must give every group at least {MIN_PER_GROUP} subjects (got {few})"

    def _network_faults(self):
        model, training = self.model, self.training
        if min(model.image_size) < MIN_PIXELS:
            yield (f"model.image_size: must be at least {MIN_PIXELS} pixels a side, for five poolings (got "
                   f"{list(model.image_size)})")
        if (pixels := min(model.image_size) // self.attribution.known_rule.shrink) < MIN_PIXELS:
            yield f"attribution.known_rule.shrink: must leave at least {MIN_PIXELS} pixels a side (got {pixels})"
        superpixels = len(self.sequences) * self.attribution.superpixels
        if self.attribution.samples < 2 * superpixels:
            yield (f"attribution.samples: must be at least {2 * superpixels} for {superpixels} superpixels, "
                   f"{self.attribution.superpixels} a sequence (got {self.attribution.samples})")
        for kind in model.kinds if model.weights == "scratch" else ():
            if blocks := getattr(training, kind).frozen_blocks:
                yield f"training.{kind}: frozen_blocks must be 0 where weights start at random (got {blocks})"
        if self.sequences[0] != "T1w":
            yield f"sequences: must begin with T1w, to which the others are registered (got {list(self.sequences)})"
        for key, count in (("explain.viewer_subjects", self.explain.viewer_subjects),
                           ("relevance.volumes", self.relevance.volumes)):
            if count > self.explain.nifti_subjects:
                yield f"{key}: must be at most explain.nifti_subjects, {self.explain.nifti_subjects} (got {count})"
        if not self.trains and model.weights != "simulated":
            yield ("model.weights: must be 'simulated' where cohort.source is 'open_ms' or model.shipped is true: the "
                   f"shipped networks start from them (got {model.weights!r})")
