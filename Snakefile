# The study, from raw images to results/. `snakemake` runs the default (simulated) study, `snakemake --config
# study=smoke` that of config/smoke.yaml. Outputs: runs/<study>/, the light part in results/<study>/.
# Every rule names what decides it: input files, the settings it reads, and a digest of the code it runs.
import atexit
import fcntl
import json
import os
import shlex
import sys
from base64 import urlsafe_b64decode
from functools import cache, reduce
from math import prod
from pathlib import Path
from zlib import crc32

from mslib.steps import Study, simulated_people
from mslib.study import StudyError, check_results, explained_networks, load_config, read_json
from mslib.study.provenance import ROOT, code_digest
from mslib.study.run import DRIVEN, TABLES

KEYS = {"study", "file", "run_dir", "results"}
if unknown := sorted(set(config) - KEYS):
    sys.exit(f"--config: must be of {', '.join(sorted(KEYS))} (got {', '.join(unknown)})")
FILE = str(config.get("file", f"config/{config.get('study', 'simulated')}.yaml"))
try:
    STUDY = load_config(FILE)
except StudyError as error:
    sys.exit(str(error))
if STUDY.study != str(config.get("study", STUDY.study if "file" in config else "simulated")):
    sys.exit(f"{FILE}: study: must be '{config.get('study', 'simulated')}' as the file is named (got '{STUDY.study}')")

RUN = str(Path(config.get("run_dir", f"runs/{STUDY.study}")))
FOLDERS = Study(FILE, RUN)
RESULTS = str(config.get("results", f"results/{STUDY.study}"))
FAULTS = f"{RUN}/.faults"  # what steps say of bad input, one line each
os.environ.update({DRIVEN: "1", "MSLIB_PROGRESS": "terminal", "MSLIB_FAULTS": FAULTS,
                   "PYDEVD_DISABLE_FILE_VALIDATION": "1"})
SOURCE, BACKBONES = STUDY.cohort.source, STUDY.model.backbones
# Real patients are explained with shipped networks.
FITTED = f"{RUN}/nets/{{network}}/weights.weights.h5" if STUDY.trains else "weights/{network}.h5"
FITTED_CODE = "" if STUDY.trains else " nets"  # which a training would have read

def start_files(weights, backbones):
    """Files that networks start from: shipped ones, or one's own."""
    own = [str(ROOT / weights)] if weights.endswith(".h5") else []
    return [f"weights/{backbone}_simulated.h5" for backbone in backbones] if weights == "simulated" else own

SHIPPED = start_files(STUDY.model.weights, BACKBONES)
EXPLAINED = explained_networks(STUDY)
SEEDS = sorted({network.seed for network in EXPLAINED})
# One machine: jobs side by side must fit into its memory. A cluster (no number of cores) looks after that itself.
CORES = workflow.global_resources["_cores"].value
if CORES is not None and "mem_mb" not in workflow.global_resources:
    workflow.register_resource("mem_mb", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10)
# Large networks: two jobs side by side, as each leaves cores idle between its batches; small ones are traced, on one.
HALF = max(1, (CORES or 16) // 2) if prod(STUDY.model.image_size) > 64 * 64 else 1

@cache
def made(name, wings, *keys):
    """What decides an output besides its input files: code of the step and of its wings, settings that it reads."""
    values = STUDY.model_dump(mode="json")
    settings = {key: reduce(dict.get, key.split("."), values) for key in keys}  # sections, or such as model.image_size
    return f"{code_digest(name, *wings.split())} {json.dumps(settings, sort_keys=True)}"

def step(name, *options):
    """Command of a step; options are wildcards of its rule."""
    words = [sys.executable, "-m", "mslib", name, "--config", FILE, "--run-dir", RUN]
    return " ".join([shlex.join(words), *(f"--{option} {{wildcards.{option}}}" for option in options)])

def at(*names):
    """Files of the run, with wildcards: tables by the names under which they are read, others by their paths."""
    return [f"{RUN}/{TABLES.get(name, name)}" for name in names]

def read(*names):
    """Files of the tables that are read by these names."""
    return [path for name in names for path, _ in FOLDERS.paths(name)]

def set_altered_aside():
    """Outputs of this run that were cut or edited after Snakemake had noted their time give way, and are made again."""
    notes = Path(".snakemake/metadata")
    for note in (path for path in notes.rglob("*") if path.is_file()):
        try:
            name = urlsafe_b64decode("".join(part.removeprefix("@") for part in note.relative_to(notes).parts)).decode()
            if not name.startswith(f"{RUN}/") or not Path(name).is_file():
                continue
            noted, found = json.loads(note.read_text() or "{}").get("endtime"), Path(name).stat().st_mtime
            if noted is None or abs(found - noted) <= 1e-3 or found == int(noted):  # tar keeps whole seconds
                continue
        except (ValueError, OSError, AttributeError, TypeError):  # a cut note, or none of Snakemake's
            continue
        Path(name).rename(f"{name}.altered")
        print(f"{name}: was changed after it was made; made again (kept as {name}.altered)", file=sys.stderr)

def tell_faults_again():
    """Last of all, below what Snakemake says of jobs that failed."""
    if Path(FAULTS).is_file():
        print(Path(FAULTS).read_text(encoding="utf-8"), end="", file=sys.stderr)

if workflow.is_main_process:
    compared = STUDY.comparison.weights.values() if STUDY.comparison else ()
    needed = [*SHIPPED, *(file for weights in compared for file in start_files(weights, BACKBONES[:1])),
              *(expand(FITTED, network=EXPLAINED) if not STUDY.trains else ())]
    for path in (path for path in needed if not Path(path).is_file()):
        sys.exit(f"{path}: is absent; shipped weights lie in the folder weights (weights/README.md)"
                 if path.startswith("weights/") else "model.weights, comparison.weights: must be 'imagenet', "
                 f"'simulated', 'scratch' or the path of a file (got '{path}')")
    try:  # now, not when all is done
        check_results(RESULTS)
        Path(RUN).mkdir(parents=True, exist_ok=True)
        LOCK = open(f"{RUN}/.lock", "w")
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{RUN}: another snakemake is running this study; wait for it or stop it")
    except StudyError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{RUN}: cannot be written ({error.strerror})")
    if not workflow.output_settings.dryrun:
        Path(FAULTS).unlink(missing_ok=True)
        atexit.register(tell_faults_again)
        set_altered_aside()

onstart:
    if CORES is not None:  # one machine needs no limit of jobs a second, whose alarms would take a tenth of a core
        workflow.scheduler.job_rate_limiter = None

wildcard_constraints:
    subject="[A-Za-z0-9]+", backbone="vgg[0-9]+", number="[0-9]+", kind="[a-z]+",
    of="study|cause", start="[a-z]+", blocks="[1-4]", mm="[0-9.]+"

# --- what can be asked for ----------------------------------------------------------------------------------------

MEASURED = ["truth", "quality", "registration_errors", "bias_fields", "appearance"]
COHORT = [*at("faults.json"), *read("subjects", *MEASURED)]
NETS = [*expand(FITTED, network=EXPLAINED), *read("predictions", "permuted", "folds", "subjects", "truth")
        ] if STUDY.trains else []
MAPS = [*expand(at("maps/{network}/cams.npz"), network=EXPLAINED), *read("maps", "randomisation"),
        *expand(at("maps/{network}/volumes"), network=[network for network in EXPLAINED if network.seed == 1])]
CAUSE = ["cause"] if STUDY.trains and "cause" in STUDY.model.kinds else []
ATTRIBUTED = ["importance.csv", "honest.npz", *(["scores.csv", "cause.npz"] if CAUSE else [])]
KNOWN = read(*(name for name in TABLES if name.startswith("known_rule_"))) if STUDY.has_known_rule else []
ATTRIBUTIONS = [*expand(at("attributions/{backbone}/{file}"), backbone=BACKBONES, file=ATTRIBUTED), *KNOWN]
RELEVANCE, SLEEP = [*read("relevance", "importance", "truth"), *KNOWN], read("sleep_relevance")
COMPARED = [name for name in TABLES if name.startswith("pretraining_")]
# Notebook: files that it reads, wings whose code runs in its cells, settings that it uses beside those of all.
COMMON = ["study", "seed", "groups", "sequences", "cohort", "statistics", "model"]
ATTRIBUTION_WINGS = "analysis/attribution analysis/known_rule analysis/relevance explain"
NOTEBOOKS = {
    "00_cohort": (COHORT, "analysis/truth show"),
    "01_coregistration": (COHORT, "analysis/truth prep show", "prep"),
    "02_finetuning": (NETS, "analysis/networks claims nets measure show", "training"),
    "03_gradcam_layers": (
        MAPS, "analysis/cross_fitting analysis/depth analysis/lobes explain measure nets show", "explain"),
    "04_multimodal_attribution": (ATTRIBUTIONS, f"{ATTRIBUTION_WINGS} measure show", "attribution"),
    "05_modality_relevance": (RELEVANCE, f"{ATTRIBUTION_WINGS} measure show", "relevance"),
    "06_sleep_staging": (SLEEP, "analysis/sleep sleep explain measure show", "sleep"),
    "08_pretraining": (read(*COMPARED), "analysis/depth measure show", "comparison")}
METRICS = at(*(f"metrics/{name}.json" for name in STUDY.run_notebooks))
RECORDED = [file for file in METRICS if "07_summary" not in file]
NOTEBOOKS["07_summary"] = (RECORDED, "claims analysis/depth explain measure nets show")
# The run's own last files are asked for too: results/ is checked in, and must not pass for a run that never was.
TARGETS = {"all": [f"{RESULTS}/provenance.json", *METRICS], "cohort": COHORT, "nets": NETS or read("subjects"),
           "maps": MAPS, "attributions": ATTRIBUTIONS, "relevance": RELEVANCE, "sleep": SLEEP,
           "pretraining": read(*COMPARED), "report": RECORDED}
for target, files in TARGETS.items():
    rule:
        name: target
        input: files
        localrule: True

# --- cohort -------------------------------------------------------------------------------------------------------

PEOPLE = {one.id: one for one in simulated_people(STUDY)} if SOURCE == "simulated" else {}
BIDS = FOLDERS.bids_root
QUALITY, STACK = (FOLDERS.derivative("{subject}", name) for name in ("desc-qc.json", "space-T1w_desc-slices.npz"))
TRUTH = FOLDERS.truth_folder("{subject}") / "sub-{subject}_truth.json"

def raw_cohort(wildcards):
    own = [path for place in ("", "derivatives/truth/", "derivatives/brainmask/") if SOURCE == "bids"
           for path in sorted(BIDS.glob(f"{place}sub-*/**/anat/*.nii*")) if path.exists()]
    return [BIDS / "participants.tsv", *own, *expand(TRUTH, subject=list(PEOPLE))]

def listed():
    """Subjects of the cohort as it was last checked: ids to images and masks."""
    rows = read_json(at("cohort.json")[0])["subjects"] if Path(*at("cohort.json")).is_file() else []
    return {row["id"]: [BIDS / file for file in (*row["images"].values(), row["brain_mask"], row["lesion_mask"])
                        if file] for row in rows}

def people():
    """`listed`, once the cohort has been checked."""
    checkpoints.check.get()
    return listed()

def state(files):
    """Sizes and times of files: an older one that was put in the place of another is not newer."""
    found = [(str(file), Path(file).stat()) for file in files if Path(file).is_file()]
    return crc32(repr([(name, one.st_size, int(one.st_mtime)) for name, one in found]).encode())

def stacks(wildcards):
    return expand(QUALITY, subject=list(people()))

if SOURCE != "bids":
    rule start:
        output: BIDS / "participants.tsv"
        params: made("start", "cohort", "cohort", "seed", "model.weights")
        message: "Cohort: describe the dataset"
        shell: step("start")

rule template:
    output: at("template_{mm}mm.npz")
    params: made("make_template", "cohort/anatomy")
    message: "Cohort: template of the simulated heads, {wildcards.mm} mm"
    shell: step("make_template", "mm")

rule simulate:
    input: FOLDERS.template(STUDY.cohort.simulated.voxel_mm)
    output: TRUTH
    params: made("simulate", "cohort", "cohort.simulated.voxel_mm"), lambda wildcards: repr(PEOPLE[wildcards.subject])
    message: "Cohort: simulate sub-{wildcards.subject}"
    shell: step("simulate", "subject")

checkpoint check:
    input: raw_cohort
    output: at("cohort.json")
    params:
        made("check_cohort", "cohort", "groups", "group_values", "sequences", "cohort", "model.shipped"),
        *([lambda wildcards: state(raw_cohort(wildcards))] if SOURCE == "bids" else [])
    message: "Cohort: check every subject"
    shell: step("check_cohort")

rule preprocess:
    # Another subject in the list changes nothing for this one.
    input: ancient(at("cohort.json")), lambda wildcards: people().get(wildcards.subject, [])
    output: QUALITY, STACK if STUDY.cohort.on_fault == "stop" else []  # one that is left out has its quality file alone
    params:
        made("preprocess", "prep cohort/acquisition cohort/anatomy cohort/phantom", "prep", "sequences",
        "model.image_size", "model.pixel_mm", "cohort.on_fault"),
        *([lambda wildcards: state(listed().get(wildcards.subject, []))] if SOURCE == "bids" else [])
    message: "Preprocess sub-{wildcards.subject}: bias field, co-registration, slices"
    shell: step("preprocess", "subject")

rule subjects:
    input: at("cohort.json"), stacks, [] if STUDY.trains else f"weights/{BACKBONES[0]}_simulated.json"
    output: at("faults.json", "subjects")
    params:
        made("subjects", "nets/splits nets/scope", "seed", "groups", "training.split", "explain.nifti_subjects",
        *([] if STUDY.trains else ["sequences", "model.pixel_mm"]))
    message: "Cohort: who is in which part, who is explained"
    shell: step("subjects")

rule truth:
    input: at("subjects"), stacks
    output: at(*MEASURED)
    params: made("truth", "analysis/truth", "sequences")
    message: "Cohort: known truth and errors"
    shell: step("truth")

# --- networks -----------------------------------------------------------------------------------------------------

GRID = ["groups", "sequences", *(f"model.{key}" for key in ("image_size", "pixel_mm", "input", "weights", "narrow"))]
TAKEN = ["training.slices", "training.independent_slices", "training.precision"]
TRAINED = [f"training.{key}" for key in ("split", "augmentation", "batch_size", "weight_decay", "patience")]
CAUSE_FILES = at("nets/cause/images.npy", "nets/cause/masks.npz", "nets/cause/slices.csv")

def slices_of(wildcards):
    """What the slices of the study or of `cause` are read from."""
    cause = "cause" in (wildcards.get("of"), wildcards.get("kind"))
    return CAUSE_FILES if cause else [*at("subjects"), *stacks(wildcards)]

def cached(wildcards):
    """Activations below the layers that a kind of network trains; none where it trains all of them."""
    of = "cause" if wildcards.kind == "cause" else "study"
    blocks = getattr(STUDY.training, wildcards.kind).frozen_blocks
    return expand(ACTIVATIONS, backbone=wildcards.backbone, of=of, blocks=blocks) if blocks else []

def fitted(kinds, seeds=(1,)):
    return expand(FITTED, network=expand("{backbone}/{kind}/seed{seed}", kind=kinds, seed=seeds, allow_missing=True))

if STUDY.trains:
    ACTIVATIONS = at(*(f"nets/{{backbone}}/activations/{{of}}_block{{blocks}}.{end}" for end in ("npz", "csv")))

    rule cause_cohort:
        input: FOLDERS.template(STUDY.model.pixel_mm)
        output: CAUSE_FILES
        params:
            made("cause_cohort", "nets/data nets/simulated nets/splits cohort prep/slices", "seed", "prep", "sequences",
            "model.image_size", "model.pixel_mm", "training.cause_people", "training.cause_slices")
        threads: HALF
        resources: mem_mb=4000
        message: "Networks: simulated patients with and without their lesions"
        shell: step("cause_cohort")

    rule activations:
        input: slices_of, SHIPPED
        output: ACTIVATIONS
        params: made("activations", "nets", "seed", *GRID, *TAKEN)
        threads: HALF
        resources: mem_mb=6000
        message: "Networks: activations of {wildcards.backbone} above block {wildcards.blocks}, {wildcards.of}"
        shell: step("activations", "backbone", "of", "blocks")

    rule train:
        input: slices_of, SHIPPED, cached
        output:
            fitted("{kind}", SEEDS), expand(at("history", "predictions"), allow_missing=True, seed=SEEDS),
            at("permuted", "nets/{backbone}/{kind}/features.npz")
        params: lambda wildcards: made("train", "nets", "seed", *GRID, *TAKEN, *TRAINED, f"training.{wildcards.kind}")
        threads: HALF
        resources: mem_mb=5000
        message: "Networks: train {wildcards.backbone}, {wildcards.kind}"
        shell: step("train", "backbone", "kind")

    rule folds:
        input: at("nets/{backbone}/honest/features.npz", "nets/{backbone}/honest/seed1/predictions.csv")
        output: at("folds")
        params: made("folds", "nets/heads nets/splits", "seed", "groups", "training.folds")
        message: "Networks: every subject tested once on features of {wildcards.backbone}"
        shell: step("folds", "backbone")

METHODS = [f"attribution.{key}" for key in ("superpixels", "samples", "permutations", "steps")] + [
    "training.precision", "relevance.compared"]

rule compare_start:
    input: CAUSE_FILES, lambda wildcards: start_files(STUDY.comparison.weights[wildcards.start], BACKBONES[:1])
    output: at(*COMPARED)
    params:
        made("compare_start", "nets analysis/depth analysis/attribution explain measure", "seed", "comparison",
        "model", "training", *METHODS, "explain.slices_per_subject", "relevance.rule")
    threads: HALF
    resources: mem_mb=7000
    message: "Start weights: {wildcards.start}"
    shell: step("compare_start", "start")

# --- what networks look at ----------------------------------------------------------------------------------------

rule measure_maps:
    input: slices_of, SHIPPED, fitted("{kind}", SEEDS)
    output:
        expand(at("maps", "maps/{backbone}/{kind}/seed{seed}/cams.npz"), allow_missing=True, seed=SEEDS),
        at("randomisation", "dead"), directory(at("maps/{backbone}/{kind}/seed1/volumes"))
    params:
        made("measure_maps", f"analysis/depth analysis/lobes explain measure prep/slices{FITTED_CODE}", "seed", *GRID,
        *(f"explain.{key}" for key in ("methods", "slices_per_subject", "randomisation_draws")))
    resources: mem_mb=4000
    message: "Maps: every layer of {wildcards.backbone}, {wildcards.kind}, beside its comparators"
    shell: step("measure_maps", "backbone", "kind")

rule known_rule:
    input: at("subjects"), stacks
    output:
        KNOWN, expand(at("known_rule/{name}/weights.weights.h5", "known_rule/{name}/maps.npz"),
                      name=[*STUDY.sequences, "shortcut"])
    params:
        made("known_rule", f"{ATTRIBUTION_WINGS} measure nets", "seed", *GRID, *METHODS, "attribution.known_rule",
        "attribution.baselines", "attribution.levels", "training.batch_size", "training.weight_decay")
    threads: HALF
    resources: mem_mb=5000
    message: "Known rule: train networks, explain and evaluate them by every method"
    shell: step("known_rule")

rule attribute:
    input: at("subjects"), stacks, CAUSE_FILES if CAUSE else [], fitted(["honest", *CAUSE])
    output: at(*(f"attributions/{{backbone}}/{file}" for file in ATTRIBUTED))
    params:
        made("attribute", f"analysis/attribution analysis/relevance analysis/depth explain measure{FITTED_CODE}",
        "seed", *GRID, *METHODS, "attribution.slices", "attribution.perturbed_slices", "attribution.shapley_slices")
    threads: HALF
    resources: mem_mb=6000
    message: "Attribution: {wildcards.backbone} by every method"
    shell: step("attribute", "backbone")

rule relevance_shares:
    input: at("subjects"), stacks, fitted("honest", SEEDS)
    output: at("relevance", "relevance_rules", "relevance_flow"), directory(at("relevance/{backbone}/volumes"))
    params: made("relevance", f"analysis/relevance explain measure{FITTED_CODE}", *GRID, "model.seeds", "relevance")
    threads: HALF
    resources: mem_mb=6000
    message: "Relevance: shares of the sequences, {wildcards.backbone}"
    shell: step("relevance", "backbone")

# --- sleep --------------------------------------------------------------------------------------------------------

if STUDY.sleep:
    rule nights:
        input:
            sorted(path for kind in ("nights.tsv", "**/*.edf")
                   for path in Path(STUDY.sleep.root).expanduser().glob(kind)) if STUDY.sleep.source == "folder" else []
        output: at("sleep/nights.json"), directory(at("sleep/epochs"))
        params:
            made("nights", "sleep", "seed", *(f"sleep.{key}" for key in (
            "source", "root", "channels", "rate", "mismatch", "subjects", "hours")))
        threads: HALF
        message: "Sleep: nights"
        shell: step("nights")

    rule fold:
        input: at("sleep/nights.json")
        output:
            at("sleep/fold-{number}/weights.weights.h5"),
            expand(at(*(name for name in TABLES if name.startswith("sleep_"))), fold="{number}")
        params: made("fold", "sleep analysis/sleep explain", "seed", "sleep")
        message: "Sleep: train, test and explain fold {wildcards.number}"
        shell: step("fold", "number")

# --- notebooks and results ----------------------------------------------------------------------------------------

rule notebook:
    input: lambda wildcards: NOTEBOOKS[wildcards.name][0], source="notebooks/{name}.ipynb"
    output: at("metrics/{name}.json", "made/{name}.json")
    log: notebook=f"{RUN}/notebooks/{{name}}.ipynb"
    params: lambda wildcards: made(f"notebooks/{wildcards.name}.ipynb", *NOTEBOOKS[wildcards.name][1:], *COMMON)
    threads: HALF
    resources: mem_mb=6000
    message: "Notebook {wildcards.name}"
    shell: step("notebook", "name")

rule publish:
    input: METRICS
    output: update(f"{RESULTS}/provenance.json")  # what is published stays until the new is whole
    params: made("publish", "publish show", "notebooks", *COMMON)
    message: "Publish the light part to {RESULTS}"
    shell: f"{step('publish')} --results {shlex.quote(RESULTS)}"

# First what most waits for. What every job took is written beside it; `publish` sums it up by rule.
FIRST = ["start template simulate check preprocess subjects", "cause_cohort activations train", "attribute known_rule",
         "measure_maps relevance_shares fold compare_start", "notebook"]
for one in workflow.rules:
    if one.name not in TARGETS:
        one.priority = next((rank for rank, names in enumerate(FIRST[::-1], 1) if one.name in names.split()), 0)
        one.benchmark_modifier = one.output_modifier
        one.benchmark, = at(f"minutes/{one.name}{''.join(f'-{{{name}}}' for name in sorted(one.wildcard_names))}.tsv")
