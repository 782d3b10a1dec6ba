# The study, from raw images to results/. `snakemake` runs the default (simulated) study, `snakemake --config
# study=smoke` that of config/smoke.yaml. Outputs: runs/<study>/, the light part in results/<study>/.
# Every rule names what decides it: input files, the settings it reads, and a digest of the code it runs.
import fcntl
import json
import os
import shlex
import sys
from base64 import urlsafe_b64decode
from math import prod
from pathlib import Path

from mslib.steps import simulated_people
from mslib.study import StudyError, explained_networks, load_config
from mslib.study.provenance import ROOT, code_digest
from mslib.study.run import DRIVEN


def refuse(message):
    print(message, file=sys.stderr)
    raise SystemExit(1)


KEYS = {"study", "file", "run_dir", "results"}
if unknown := sorted(set(config) - KEYS):
    refuse(f"--config: must be of {', '.join(sorted(KEYS))} (got {', '.join(unknown)})")
FILE = str(config.get("file", f"config/{config.get('study', 'simulated')}.yaml"))
try:
    STUDY = load_config(FILE)
except StudyError as error:
    refuse(error)
if STUDY.study != config.get("study", STUDY.study if "file" in config else "simulated"):
    refuse(f"{FILE}: study: must be '{config.get('study', 'simulated')}' as the file is named (got '{STUDY.study}')")

os.environ.update({DRIVEN: "1", "MSLIB_PROGRESS": "terminal", "TF_CPP_MIN_LOG_LEVEL": "3",
                   "PYDEVD_DISABLE_FILE_VALIDATION": "1"})
RUN = str(config.get("run_dir", f"runs/{STUDY.study}"))
RESULTS = str(config.get("results", f"results/{STUDY.study}"))
SOURCE, BACKBONES = STUDY.cohort.source, STUDY.model.backbones
# Real patients are explained with shipped networks.
FITTED = f"{RUN}/nets/{{network}}/weights.weights.h5" if STUDY.trains else "weights/{network}.h5"
SHIPPED = [f"weights/{backbone}_simulated.h5" for backbone in BACKBONES] if STUDY.model.weights == "simulated" else []
EXPLAINED = explained_networks(STUDY)
FIRST = [network for network in EXPLAINED if network.seed == 1]
SEEDS = sorted({network.seed for network in EXPLAINED})
# One machine: jobs side by side must fit into its memory. A cluster (no number of cores) looks after that itself.
CORES = workflow.global_resources["_cores"]
MEMORY_MB = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10
if CORES is not None and "mem_mb" not in workflow.global_resources:
    workflow.register_resource("mem_mb", MEMORY_MB)
# Large networks keep the whole machine busy; small ones spend their time on tracing, on one core, side by side.
WHOLE = (CORES or 8) if prod(STUDY.model.image_size) > 64 * 64 else 1


def memory(mb):
    """What a job needs, at most all there is where one machine does the work."""
    return mb if CORES is None else min(mb, MEMORY_MB)


def settings(*keys):
    """The settings that a rule reads, as text: sections or keys such as ``model.image_size``."""
    values = json.loads(STUDY.model_dump_json())
    def value(key):
        found = values
        for part in key.split("."):
            found = found[part]
        return found
    return json.dumps({key: value(key) for key in keys}, sort_keys=True)


def made(name, wings, *keys):
    """What decides an output besides its input files: code of the step and of its wings, settings that it reads."""
    return f"{code_digest(name, *wings.split())} {settings(*keys)}"


def step(name, more=""):
    """Command of a step."""
    return (f"{shlex.quote(sys.executable)} -m mslib {name} --config {shlex.quote(FILE)} "
            f"--run-dir {shlex.quote(RUN)} {more}")


def set_altered_aside():
    """Outputs of this run that were cut or edited after Snakemake had noted their time give way, and are made again."""
    notes = Path(".snakemake/metadata")
    for note in (path for path in notes.rglob("*") if path.is_file()):
        name = urlsafe_b64decode("".join(part.removeprefix("@") for part in note.relative_to(notes).parts)).decode()
        if name.startswith(f"{RUN}/") and Path(name).is_file():
            known = json.loads(note.read_text() or "{}").get("endtime")
            if known is not None and abs(Path(name).stat().st_mtime - known) > 1e-3:
                Path(name).rename(f"{name}.altered")
                print(f"{name}: was changed after it was made; made again (kept as {name}.altered)", file=sys.stderr)


if workflow.is_main_process:
    try:
        Path(RUN).mkdir(parents=True, exist_ok=True)
        LOCK = open(f"{RUN}/.lock", "w")
    except OSError as error:
        refuse(f"{RUN}: cannot be written ({error.strerror})")
    try:
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        refuse(f"{RUN}: another snakemake is running this study; wait for it or stop it")
    set_altered_aside()
    for path in [*SHIPPED, *(FITTED.format(network=network) for network in EXPLAINED if not STUDY.trains)]:
        if not Path(path).is_file():
            refuse(f"{path}: is absent; shipped weights lie in the folder weights (weights/README.md)")

wildcard_constraints:
    id="[A-Za-z0-9]+", network="vgg[0-9]+/[a-z]+/seed[0-9]+", backbone="vgg[0-9]+", number="[0-9]+", kind="[a-z]+",
    of="study|cause", blocks="[0-4]"
localrules: all, cohort, nets, maps, attributions, relevance, sleep, report

# --- what can be asked for ----------------------------------------------------------------------------------------

COHORT = [f"{RUN}/subjects.csv", f"{RUN}/faults.json"] + [
    f"{RUN}/cohort/{name}.csv" for name in ("truth", "quality", "registration_errors", "bias_fields", "appearance")]
KNOWN = [f"{RUN}/known_rule/{name}.csv" for name in (
    "use", "scores", "removal", "randomised", "repeated", "importance", "layers", "shortcut", "relevance")
    if STUDY.has_known_rule]
FOLDS = list(range(STUDY.sleep.folds)) if STUDY.sleep else []


def of(networks, *patterns):
    return [pattern.format(network) for network in networks for pattern in patterns]


def chosen(column):
    """Ids of the subjects that ``subjects.csv`` marks in a column, in its order."""
    import pandas as pd
    table = pd.read_csv(checkpoints.subjects.get().output[0], dtype={"subject": str})
    return list(table[table[column] > 0].sort_values(column, kind="stable")["subject"])


def volumes(wildcards):
    return [f"{RUN}/derivatives/mslib/sub-{name}/anat/sub-{name}_space-T1w_desc-{network.backbone}gradcam_cam.nii.gz"
            for name in chosen("volume") for network in FIRST if network.kind == "honest"]


NET_FILES = (of(EXPLAINED, f"{RUN}/nets/{{}}/weights.weights.h5", f"{RUN}/nets/{{}}/predictions.csv") +
             of(BACKBONES, f"{RUN}/nets/{{}}/folds.csv",
                *(f"{RUN}/nets/{{}}/{kind}/permuted.csv" for kind in STUDY.model.kinds))) if STUDY.trains else []
MAP_FILES = of(EXPLAINED, *(f"{RUN}/maps/{{}}/{name}" for name in ("measures.csv", "cams.npz"))) + of(
    FIRST, *(f"{RUN}/maps/{{}}/{name}.csv" for name in ("randomisation", "dead")))
CAUSE = ["cause"] if STUDY.trains and "cause" in STUDY.model.kinds else []
ATTRIBUTED = ["importance.csv", "honest.npz", *(["scores.csv", "cause.npz"] if CAUSE else [])]
ATTRIBUTION_FILES = of(BACKBONES, *(f"{RUN}/attributions/{{}}/{name}" for name in ATTRIBUTED)) + KNOWN
RELEVANCE_FILES = of(BACKBONES, f"{RUN}/relevance/{{}}/shares.csv", f"{RUN}/attributions/{{}}/importance.csv") + KNOWN + [
    f"{RUN}/cohort/truth.csv"]
SLEEP_FILES = [f"{RUN}/sleep/fold-{number}/relevance.csv" for number in FOLDS]
# Notebook: files that it reads, wings whose code runs in its cells, settings that it uses.
COMMON = ["study", "seed", "groups", "sequences", "cohort", "statistics", "model"]
NOTEBOOKS = {
    "00_cohort": (COHORT, "analysis/truth show", *COMMON),
    "01_coregistration": (COHORT, "analysis/truth prep show", *COMMON, "prep"),
    "02_finetuning": (NET_FILES, "analysis/networks nets measure show", *COMMON, "training"),
    "03_gradcam_layers": ([*MAP_FILES, volumes], "analysis/depth analysis/lobes explain measure nets show", *COMMON,
                          "explain"),
    "04_multimodal_attribution": (ATTRIBUTION_FILES, "analysis/attribution analysis/known_rule explain measure show",
                                  *COMMON, "attribution"),
    "05_modality_relevance": (RELEVANCE_FILES, "analysis/relevance explain measure show", *COMMON,
                              "relevance"),
    "06_sleep_staging": (SLEEP_FILES, "analysis/sleep sleep explain measure show", *COMMON, "sleep")}
if not STUDY.trains:
    del NOTEBOOKS["02_finetuning"]
if not STUDY.sleep:
    del NOTEBOOKS["06_sleep_staging"]
METRICS = expand(f"{RUN}/metrics/{{name}}.json", name=list(NOTEBOOKS))
NOTEBOOKS["07_summary"] = (METRICS, "claims show", *COMMON)

# The run's own last file is asked for too: results/ is checked in, and must not pass for a run that never was.
rule all:
    input: f"{RESULTS}/provenance.json", f"{RUN}/metrics/07_summary.json"

rule cohort:
    input: COHORT

rule nets:
    input: NET_FILES, f"{RUN}/subjects.csv"

rule maps:
    input: MAP_FILES, volumes

rule attributions:
    input: ATTRIBUTION_FILES

rule relevance:
    input: RELEVANCE_FILES

rule sleep:
    input: SLEEP_FILES

rule report:
    input: METRICS

# --- cohort -------------------------------------------------------------------------------------------------------

PEOPLE = {one.id: one for one in simulated_people(STUDY)} if SOURCE == "simulated" else {}


def own_files():
    root = ROOT / STUDY.cohort.root
    return sorted(str(path) for place in ("", "derivatives/truth/", "derivatives/brainmask/")
                  for path in root.glob(f"{place}sub-*/**/anat/*.nii*"))


def raw_cohort(wildcards):
    if SOURCE == "bids":
        return [str(ROOT / STUDY.cohort.root / "participants.tsv"), *own_files()]
    simulated = expand(f"{RUN}/bids/derivatives/truth/sub-{{id}}/anat/sub-{{id}}_truth.json", id=list(PEOPLE))
    return [f"{RUN}/bids/participants.tsv", *simulated]


def people(wildcards):
    return [row["id"] for row in json.loads(Path(checkpoints.check.get().output[0]).read_text())["subjects"]]


def raw_files(wildcards):
    """Images and masks of one subject: what makes its preprocessing stale."""
    listing = json.loads(Path(checkpoints.check.get().output[0]).read_text())["subjects"]
    person = next(row for row in listing if row["id"] == wildcards.id)
    root = ROOT / STUDY.cohort.root if SOURCE == "bids" else Path(f"{RUN}/bids")
    files = [*person["images"].values(), person["brain_mask"], person["lesion_mask"]]
    return [str(root / file) for file in files if file]


def stacks(wildcards):
    return expand(f"{RUN}/derivatives/mslib/sub-{{id}}/anat/sub-{{id}}_desc-qc.json", id=people(wildcards))


if SOURCE != "bids":
    rule start:
        output: f"{RUN}/bids/participants.tsv"
        params: made("start", "cohort", "cohort", "seed", "model.weights")
        message: "Cohort: describe the dataset"
        shell: step("start")

rule template:
    output: f"{RUN}/template.npz"
    params: made("make_template", "cohort/anatomy", "cohort.simulated.voxel_mm")
    message: "Cohort: template of the simulated heads"
    shell: step("make_template")

rule simulate:
    input: f"{RUN}/template.npz"
    output: f"{RUN}/bids/derivatives/truth/sub-{{id}}/anat/sub-{{id}}_truth.json"
    params: lambda wildcards: made("simulate", "cohort", "cohort.simulated.voxel_mm") + repr(PEOPLE.get(wildcards.id))
    message: "Cohort: simulate sub-{wildcards.id}"
    shell: step("simulate", "--subject {wildcards.id}")

checkpoint check:
    input: raw_cohort
    output: f"{RUN}/cohort.json"
    params: made("check", "cohort", "groups", "sequences", "cohort")
    message: "Cohort: check every subject"
    shell: step("check")

rule preprocess:
    input: ancient(f"{RUN}/cohort.json"), raw_files  # another subject in the list changes nothing for this one
    output:  # a subject that is left out with `on_fault: skip` has its quality file alone
        f"{RUN}/derivatives/mslib/sub-{{id}}/anat/sub-{{id}}_desc-qc.json",
        f"{RUN}/derivatives/mslib/sub-{{id}}/anat/sub-{{id}}_space-T1w_desc-slices.npz"
        if STUDY.cohort.on_fault == "stop" else []
    params: made("preprocess", "prep", "prep", "sequences", "model.image_size", "model.pixel_mm", "cohort.on_fault")
    message: "Preprocess sub-{wildcards.id}: bias field, co-registration, slices"
    shell: step("preprocess", "--subject {wildcards.id}")

checkpoint subjects:
    input: f"{RUN}/cohort.json", stacks
    output: COHORT[:2]
    params:
        made("subjects", "nets/splits", "seed", "groups", "training.split", "explain.nifti_subjects")
    message: "Cohort: who is in which part, who is explained"
    shell: step("subjects")

rule truth:
    input: f"{RUN}/subjects.csv", stacks
    output: COHORT[2:]
    params: made("truth", "analysis/truth", "sequences")
    message: "Cohort: known truth and errors"
    shell: step("truth")

# --- networks -----------------------------------------------------------------------------------------------------

GRID = ["groups", "sequences", "model.image_size", "model.pixel_mm", "model.input", "model.weights"]
SHARED = [f"training.{key}" for key in ("split", "augmentation", "precision", "batch_size", "weight_decay", "patience")]
TAKEN = ["training.slices", "training.independent_slices"]
CAUSE_FILES = [f"{RUN}/nets/cause/{name}" for name in ("images.npy", "masks.npz", "slices.csv")]


def slices_of(wildcards):
    """What the slices of the study or of `cause` are read from."""
    cause = "cause" in (getattr(wildcards, "of", None), getattr(wildcards, "kind", None))
    return CAUSE_FILES if cause else [f"{RUN}/subjects.csv", *stacks(wildcards)]


def cached(backbone, of, kind):
    """Activations below the layers that a kind of network trains; none where weights start at random."""
    if STUDY.model.weights == "scratch" and kind != "folds":
        return []
    blocks = getattr(STUDY.training, kind if kind != "folds" else "honest").frozen_blocks
    return [f"{RUN}/nets/{backbone}/activations/{of}_block{blocks}.{end}" for end in ("npz", "csv")]


if STUDY.trains:
    rule cause_cohort:
        output: CAUSE_FILES
        params:
            made("cause_cohort", "nets/simulated nets/splits cohort prep/slices", "seed", "prep", "sequences",
            "model.image_size", "model.pixel_mm", "training.cause_people", "training.cause_slices")
        threads: CORES or 8
        resources: mem_mb=memory(4000)
        message: "Networks: simulated patients with and without their lesions"
        shell: step("cause_cohort")

    rule activations:
        input: slices_of, SHIPPED
        output: expand(f"{RUN}/nets/{{{{backbone}}}}/activations/{{{{of}}}}_block{{{{blocks}}}}.{{end}}", end=["npz", "csv"])
        params: made("activations", "nets", "seed", *GRID, *TAKEN, "training.precision")
        threads: WHOLE
        resources: mem_mb=memory(6000)
        message: "Networks: activations of {wildcards.backbone} above block {wildcards.blocks}, {wildcards.of}"
        shell:
            step("activations", "--backbone {wildcards.backbone} --of {wildcards.of} --blocks {wildcards.blocks}")

    rule folds:
        input: [cached(backbone, "study", "folds") for backbone in BACKBONES]
        output: expand(f"{RUN}/nets/{{backbone}}/folds.csv", backbone=BACKBONES)
        params: made("folds", "nets/heads", "seed", "groups", "training.folds")
        message: "Networks: every subject tested once"
        shell: step("folds")

    rule train:
        input:
            slices_of, SHIPPED,
            lambda wildcards: cached(wildcards.backbone, "cause" if wildcards.kind == "cause" else "study",
                                     wildcards.kind)
        output:
            expand(f"{RUN}/nets/{{{{backbone}}}}/{{{{kind}}}}/seed{{number}}/{{file}}",
                   number=range(1, STUDY.model.seeds + 1), file=["weights.weights.h5", "history.csv", "predictions.csv"]),
            f"{RUN}/nets/{{backbone}}/{{kind}}/permuted.csv"
        params: lambda wildcards: made("train", "nets", "seed", *GRID, *SHARED, *TAKEN, f"training.{wildcards.kind}")
        threads: WHOLE
        resources: mem_mb=memory(9000)
        message: "Networks: train {wildcards.backbone}, {wildcards.kind}"
        shell: step("train", "--backbone {wildcards.backbone} --kind {wildcards.kind}")

# --- maps ---------------------------------------------------------------------------------------------------------

def explains(*more):
    """What every rule that explains a fitted network depends on."""
    return [f"{RUN}/subjects.csv", FITTED, *more]


rule measure_maps:
    input:
        SHIPPED,
        lambda wildcards: CAUSE_FILES if wildcards.kind == "cause" else [f"{RUN}/subjects.csv", *stacks(wildcards)],
        [FITTED.replace("{network}", f"{{backbone}}/{{kind}}/seed{number}") for number in SEEDS]
    output:
        expand(f"{RUN}/maps/{{{{backbone}}}}/{{{{kind}}}}/seed{{number}}/{{file}}", number=SEEDS,
               file=["measures.csv", "cams.npz"]),
        expand(f"{RUN}/maps/{{{{backbone}}}}/{{{{kind}}}}/seed1/{{file}}.csv", file=["randomisation", "dead"])
    params:
        made("measure_maps", "analysis/depth analysis/lobes explain measure", "seed", *GRID,
        *(f"explain.{key}" for key in ("methods", "slices_per_subject", "randomisation_draws", "randomisation_slices")))
    resources: mem_mb=memory(3000)
    message: "Maps: every layer of {wildcards.backbone}, {wildcards.kind}, beside its comparators"
    shell: step("measure_maps", "--backbone {wildcards.backbone} --kind {wildcards.kind}")

rule volume:
    input: f"{RUN}/subjects.csv", FITTED.replace("{network}", "{backbone}/honest/seed1"), stacks
    output: f"{RUN}/derivatives/mslib/sub-{{id}}/anat/sub-{{id}}_space-T1w_desc-{{backbone}}gradcam_cam.nii.gz"
    params: made("volume", "explain prep/slices", *GRID)
    resources: mem_mb=memory(4000)
    message: "Maps: Grad-CAM of {wildcards.backbone} over sub-{wildcards.id} as a volume"
    shell: step("volume", "--network {wildcards.backbone}/honest/seed1 --subject {wildcards.id}")

# --- networks with a known decision rule (notebooks 04 and 05) ----------------------------------------------------

METHODS = [f"attribution.{key}" for key in ("superpixels", "samples", "permutations", "steps")] + [
    "training.precision", "relevance.compared", "statistics"]

if STUDY.has_known_rule:
    rule known_rule:
        input: f"{RUN}/subjects.csv", stacks
        output:
            KNOWN, expand(f"{RUN}/known_rule/{{name}}/{{file}}", name=[*STUDY.sequences, "shortcut"],
                          file=["weights.weights.h5", "maps.npz"])
        params:
            made("known_rule", "nets analysis/known_rule analysis/attribution analysis/relevance explain measure", "seed",
            *GRID, *METHODS, "attribution.known_rule", "attribution.baselines", "attribution.levels",
            "training.batch_size", "training.weight_decay")
        threads: WHOLE
        resources: mem_mb=memory(5000)
        message: "Known rule: train networks, explain and evaluate them by every method"
        shell: step("known_rule")

# --- attributions -------------------------------------------------------------------------------------------------

rule attribute:
    input:
        f"{RUN}/subjects.csv", stacks, CAUSE_FILES if CAUSE else [],
        [FITTED.replace("{network}", f"{{backbone}}/{kind}/seed1") for kind in ("honest", *CAUSE)]
    output: expand(f"{RUN}/attributions/{{{{backbone}}}}/{{file}}", file=ATTRIBUTED)
    params:
        made("attribute", "analysis/attribution analysis/relevance analysis/depth explain measure", "seed", *GRID,
        *METHODS, "attribution.slices", "attribution.perturbed_slices", "attribution.shapley_slices")
    threads: WHOLE
    resources: mem_mb=memory(6000)
    message: "Attribution: {wildcards.backbone} by every method"
    shell: step("attribute", "--backbone {wildcards.backbone}")

# --- relevance ----------------------------------------------------------------------------------------------------

rule relevance_shares:
    input:
        f"{RUN}/subjects.csv", stacks,
        lambda wildcards: [FITTED.format(network=one) for one in EXPLAINED if one[:2] == (wildcards.backbone, "honest")]
    output:
        expand(f"{RUN}/relevance/{{{{backbone}}}}/{{file}}.csv", file=["shares", "rules", "flow"]),
        directory(f"{RUN}/relevance/{{backbone}}/volumes")
    params: made("relevance", "analysis/relevance explain measure", *GRID, "model.seeds", "relevance")
    threads: WHOLE
    resources: mem_mb=memory(6000)
    message: "Relevance: shares of the sequences, {wildcards.backbone}"
    shell: step("relevance", "--backbone {wildcards.backbone}")

# --- sleep --------------------------------------------------------------------------------------------------------

if STUDY.sleep:
    NIGHTS = f"{RUN}/sleep/nights.json"
    RECORDINGS = sorted(str(path) for kind in ("nights.tsv", "**/*.edf") for path in Path(STUDY.sleep.root).glob(kind)
                        ) if STUDY.sleep.source == "folder" else []

    rule nights:
        input: RECORDINGS
        output: NIGHTS, directory(f"{RUN}/sleep/epochs")
        params:
            made("nights", "sleep", "seed", *(f"sleep.{key}" for key in (
            "source", "root", "channels", "rate", "mismatch", "subjects", "hours")))
        threads: WHOLE
        message: "Sleep: nights"
        shell: step("nights")

    rule fold:
        input: NIGHTS
        output:
            expand(f"{RUN}/sleep/fold-{{{{number}}}}/{{file}}", file=["weights.weights.h5", "history.csv", "predictions.csv"])
        params: made("fold", "sleep", "seed", "sleep")
        message: "Sleep: train and test fold {wildcards.number}"
        shell: step("fold", "--number {wildcards.number}")

    rule fold_relevance:
        input: NIGHTS, f"{RUN}/sleep/fold-{{number}}/weights.weights.h5", f"{RUN}/sleep/fold-{{number}}/predictions.csv"
        output: expand(f"{RUN}/sleep/fold-{{{{number}}}}/{{file}}.csv", file=["relevance", "ablation", "methods"])
        params: made("fold_relevance", "sleep analysis/sleep explain", "seed", "sleep")
        message: "Sleep: relevance and ablation of fold {wildcards.number}"
        shell: step("fold_relevance", "--number {wildcards.number}")

# --- notebooks and results ----------------------------------------------------------------------------------------

rule notebook:
    input:
        lambda wildcards: [file for one in NOTEBOOKS[wildcards.name][0]
                           for file in (one(wildcards) if callable(one) else [one])],
        source="notebooks/{name}.ipynb"
    output: f"{RUN}/metrics/{{name}}.json", f"{RUN}/made/{{name}}.json"
    log: notebook=f"{RUN}/notebooks/{{name}}.ipynb"
    params: lambda wildcards: made(f"notebooks/{wildcards.name}.ipynb", *NOTEBOOKS[wildcards.name][1:])
    threads: WHOLE
    resources: mem_mb=memory(6000)
    message: "Notebook {wildcards.name}"
    shell: step("notebook", "--name {wildcards.name}")

rule publish:
    input: METRICS, f"{RUN}/metrics/07_summary.json"
    output: update(f"{RESULTS}/provenance.json")  # what is published stays until the new is whole
    params: made("publish", "publish", *COMMON)
    message: "Publish the light part to {RESULTS}"
    shell: step("publish", f"--results {shlex.quote(RESULTS)}")
