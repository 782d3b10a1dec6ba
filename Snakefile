# The study, from raw images to results/. `snakemake` runs the default (simulated) study,
# `snakemake --config study=smoke` the one of config/smoke.yaml. Outputs: runs/<study>/, light part in results/<study>/.
import fcntl
import json
import os
import shlex
import sys
from math import prod
from pathlib import Path

import snakemake
from snakemake.scheduling.job_scheduler import JobScheduler

from mslib.jobs.cohort import bids_root, own_files, participants, raw_facts
from mslib.study import StudyError, load_config
from mslib.study.provenance import code_digest, made_by
from mslib.study.scheduling import mend

NAME = str(config.get("study", "simulated"))
CONFIG = f"config/{NAME}.yaml"
try:
    STUDY = load_config(CONFIG)
except StudyError as error:
    print(error, file=sys.stderr)
    raise SystemExit(1)
if STUDY.study != NAME:
    print(f"{CONFIG}: study: must be '{NAME}' as the file is named (got '{STUDY.study}')", file=sys.stderr)
    raise SystemExit(1)

os.environ.update({"MSLIB_PROGRESS": "terminal", "TF_CPP_MIN_LOG_LEVEL": "3", "PYDEVD_DISABLE_FILE_VALIDATION": "1"})
RUN = str(config.get("run_dir", f"runs/{STUDY.study}"))
RESULTS = str(config.get("results", f"results/{STUDY.study}"))
SOURCE = STUDY.cohort.source
RAW = json.dumps(raw_facts(STUDY))
TRAINS = SOURCE != "open_ms"
BACKBONES = STUDY.model.backbones
# Real patients are explained with the nets of another study, whose run lies beside this one.
NETS_FROM = RUN if TRAINS else str(Path(RUN).parent / STUDY.explain.transfer_from)
JOB = f"--config {CONFIG} --run-dir {shlex.quote(RUN)}"
MSLIB = f"{shlex.quote(sys.executable)} -m mslib"
# One machine: jobs side by side must fit into its memory. A cluster (no number of cores) looks after that itself.
CORES = workflow.global_resources["_cores"]
MEMORY_MB = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10
if CORES is not None and "mem_mb" not in workflow.global_resources:
    workflow.register_resource("mem_mb", MEMORY_MB)
# Large nets keep the whole machine busy. Small ones spend their time on tracing, on one core: they go side by side,
# those first that others wait for.
WHOLE = (CORES or 8) if prod(STUDY.model.image_size) > 64 * 64 else 1
AWAITED = 1

if snakemake.__version__ == "9.15.0":
    mend(JobScheduler)

NETS = expand(f"{NETS_FROM}/metrics/02_finetuning_{{backbone}}.json", backbone=BACKBONES)
NET_FILES = expand(f"{NETS_FROM}/nets/{{backbone}}/subject/{{file}}", backbone=BACKBONES,
                   file=["weights.weights.h5", "net.json"])
if not TRAINS:
    NETS = NET_FILES

if workflow.is_main_process:
    try:
        Path(RUN).mkdir(parents=True, exist_ok=True)
        LOCK = open(f"{RUN}/.lock", "w")
    except OSError as error:
        print(f"{RUN}: cannot be written ({error.strerror})", file=sys.stderr)
        raise SystemExit(1)
    try:
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{RUN}: another snakemake is running this study; wait for it or stop it", file=sys.stderr)
        raise SystemExit(1)


if workflow.is_main_process and not TRAINS:
    absent = [path for path in NET_FILES if not Path(path).is_file()]
    if absent:
        print(f"{absent[0]}: no fitted net yet; study {NAME} explains the nets of study {STUDY.explain.transfer_from}: "
              f"first run snakemake --config study={STUDY.explain.transfer_from}", file=sys.stderr)
        raise SystemExit(1)


def simulated_ids():
    return [person.id for person in participants(STUDY)]


def subject_ids(wildcards):
    listing = checkpoints.check.get().output[0]
    return [person["id"] for person in json.loads(Path(listing).read_text())["subjects"]]


def stacks(wildcards):
    return expand(f"{RUN}/derivatives/mslib/sub-{{id}}/anat/sub-{{id}}_desc-qc.json", id=subject_ids(wildcards))


def raw_cohort(wildcards):
    if SOURCE == "bids":
        return [f"{RUN}/started.txt", *map(str, own_files(STUDY))]
    if SOURCE == "open_ms":
        return [f"{RUN}/started.txt"]
    return expand(f"{RUN}/bids/derivatives/truth/sub-{{id}}/anat/sub-{{id}}_truth.json", id=simulated_ids())


def raw_files(wildcards):
    """Images and masks of one subject: what makes its preprocessing stale."""
    listing = json.loads(Path(checkpoints.check.get().output[0]).read_text())["subjects"]
    person = next(row for row in listing if row["id"] == wildcards.id)
    files = [*person["images"].values(), person["brain_mask"], person["lesion_mask"]]
    return [str(bids_root(STUDY, RUN) / file) for file in files if file]


def attributed(wildcards):
    """One finished job per patient of notebook 04 and net; who they are is known once the nets are."""
    people = json.loads(Path(checkpoints.patients.get().output[0]).read_text())
    return expand(f"{RUN}/attributions/{wildcards.backbone}/sub-{{id}}.json", id=people)


def memory(mb):
    """What a job needs, at most all there is where one machine does the work."""
    return mb if CORES is None else min(mb, MEMORY_MB)


def notebook(name, more=""):
    """Command that executes a notebook into the run folder."""
    return f"{MSLIB} notebook {JOB} --name {name} {more}"


localrules: all

# The run's own last file is asked for too: results/ is checked in, and must not pass for a run that never was.
rule all:
    input: f"{RESULTS}/provenance.json", f"{RUN}/metrics/07_summary.json"

rule start:
    output: touch(f"{RUN}/started.txt")
    params: facts=RAW, weights=STUDY.model.weights
    priority: AWAITED
    message: "Cohort: describe the dataset"
    shell: f"{MSLIB} start {JOB}"

rule simulate:
    input: f"{RUN}/started.txt"
    output: f"{RUN}/bids/derivatives/truth/sub-{{id}}/anat/sub-{{id}}_truth.json"
    params: facts=RAW
    resources: mem_mb=memory(1500)
    priority: AWAITED
    message: "Cohort: simulate sub-{wildcards.id}"
    shell: f"{MSLIB} simulate {JOB} --subject {{wildcards.id}}"

checkpoint check:
    input: raw_cohort
    output: f"{RUN}/cohort.json"
    params: groups=STUDY.groups, sequences=STUDY.sequences, cohort=STUDY.cohort.model_dump_json(),
        code=made_by("mslib.cohort.bids")
    resources: mem_mb=memory(1500)
    priority: AWAITED
    message: "Cohort: check every subject"
    shell: f"{MSLIB} check {JOB}"

rule preprocess:
    input: ancient(f"{RUN}/cohort.json"), raw_files  # another subject in the list changes nothing for this one
    output: f"{RUN}/derivatives/mslib/sub-{{id}}/anat/sub-{{id}}_desc-qc.json"
    params:
        prep=STUDY.prep.model_dump_json(), size=STUDY.model.image_size, mm=STUDY.model.pixel_mm,
        code=made_by("mslib.prep")
    resources: mem_mb=memory(1500)
    priority: AWAITED
    message: "Preprocess sub-{wildcards.id}: bias field, co-registration, slices"
    shell: f"{MSLIB} preprocess {JOB} --subject {{wildcards.id}}"

rule notebook_cohort:
    input: stacks, f"{RUN}/cohort.json", source="notebooks/00_cohort.ipynb"
    output: f"{RUN}/metrics/00_cohort.json", f"{RUN}/made/00_cohort.json"
    log: notebook=f"{RUN}/notebooks/00_cohort.ipynb"
    params: code=code_digest("notebooks/00_cohort.ipynb"), settings=STUDY.model_dump_json()
    resources: mem_mb=memory(2500)
    message: "Notebook 00: the cohort"
    shell: notebook("00_cohort")

rule notebook_coregistration:
    input: stacks, source="notebooks/01_coregistration.ipynb"
    output: f"{RUN}/metrics/01_coregistration.json", f"{RUN}/made/01_coregistration.json"
    log: notebook=f"{RUN}/notebooks/01_coregistration.ipynb"
    params: code=code_digest("notebooks/01_coregistration.ipynb"), settings=STUDY.model_dump_json()
    resources: mem_mb=memory(2500)
    message: "Notebook 01: co-registration"
    shell: notebook("01_coregistration")

if TRAINS:
    rule notebook_finetuning:
        input: stacks, source="notebooks/02_finetuning.ipynb"
        output: f"{RUN}/metrics/02_finetuning_{{backbone}}.json", f"{RUN}/made/02_finetuning_{{backbone}}.json"
        log: notebook=f"{RUN}/notebooks/02_finetuning_{{backbone}}.ipynb"
        params: code=code_digest("notebooks/02_finetuning.ipynb"), settings=STUDY.model_dump_json()
        threads: (CORES or 8) if STUDY.model.weights == "simulated" else WHOLE  # backbones share the further subjects
        resources: mem_mb=memory(9000)
        priority: AWAITED
        message: "Notebook 02: fine-tuning {wildcards.backbone}"
        shell: notebook("02_finetuning", "--backbone {wildcards.backbone}")

    rule repeat:
        input: stacks, f"{RUN}/metrics/02_finetuning_{{backbone}}.json"
        output: touch(f"{RUN}/relevance/{{backbone}}/repeat.done")
        params: code=code_digest("mslib.jobs.relevance"), settings=STUDY.model_dump_json()
        threads: WHOLE
        resources: mem_mb=memory(6000)
        priority: AWAITED
        message: "Relevance: {wildcards.backbone} trained once more from another seed"
        shell: f"{MSLIB} repeat {JOB} --backbone {{wildcards.backbone}}"

rule notebook_gradcam:
    input: stacks, NETS, source="notebooks/03_gradcam_layers.ipynb"
    output: f"{RUN}/metrics/03_gradcam_layers.json", f"{RUN}/made/03_gradcam_layers.json"
    log: notebook=f"{RUN}/notebooks/03_gradcam_layers.ipynb"
    params: code=code_digest("notebooks/03_gradcam_layers.ipynb"), settings=STUDY.model_dump_json()
    threads: WHOLE
    resources: mem_mb=memory(6000)
    priority: AWAITED
    message: "Notebook 03: Grad-CAM at every layer"
    shell: notebook("03_gradcam_layers")

rule planted:
    input: stacks
    output: f"{RUN}/planted/nets.json"
    params: code=code_digest("mslib.jobs.planted_results"), settings=STUDY.model_dump_json()
    threads: WHOLE
    resources: mem_mb=memory(4000)
    priority: AWAITED
    message: "Attribution: planted nets"
    shell: f"{MSLIB} planted {JOB}"

checkpoint patients:
    input: stacks, NETS
    output: f"{RUN}/attributions/patients.json"
    params: patients=STUDY.attribution.patients, code=code_digest("mslib.jobs.explained")
    resources: mem_mb=memory(2500)
    priority: AWAITED
    message: "Attribution: choose the patients"
    shell: f"{MSLIB} patients {JOB}"

rule attribute:
    input: ancient(f"{RUN}/attributions/patients.json"), NETS
    output: f"{RUN}/attributions/{{backbone}}/sub-{{id}}.json"
    params: code=code_digest("mslib.jobs.attributions"), settings=STUDY.attribution.model_dump_json()
    resources: mem_mb=memory(3000)
    priority: AWAITED
    message: "Attribution: {wildcards.backbone}, sub-{wildcards.id} by every method"
    shell: f"{MSLIB} attribute {JOB} --backbone {{wildcards.backbone}} --subject {{wildcards.id}}"

rule attribution_checks:
    input: attributed, stacks, NETS, f"{RUN}/relevance/{{backbone}}/repeat.done" if TRAINS else []
    output: f"{RUN}/attributions/{{backbone}}/checks.json"
    params: code=code_digest("mslib.jobs.attribution_patients"), settings=STUDY.model_dump_json()
    threads: WHOLE
    resources: mem_mb=memory(6000)
    priority: AWAITED
    message: "Attribution: {wildcards.backbone}, maps of random weights and of the second net"
    shell: f"{MSLIB} checks {JOB} --backbone {{wildcards.backbone}}"

rule notebook_attribution:
    input:
        expand(f"{RUN}/attributions/{{backbone}}/checks.json", backbone=BACKBONES), stacks, NETS,
        f"{RUN}/planted/nets.json" if TRAINS else [],
        source="notebooks/04_multimodal_attribution.ipynb"
    output: f"{RUN}/metrics/04_multimodal_attribution.json", f"{RUN}/made/04_multimodal_attribution.json"
    log: notebook=f"{RUN}/notebooks/04_multimodal_attribution.ipynb"
    params: code=code_digest("notebooks/04_multimodal_attribution.ipynb"), settings=STUDY.model_dump_json()
    threads: WHOLE
    resources: mem_mb=memory(6000)
    priority: AWAITED
    message: "Notebook 04: sixteen attribution methods"
    shell: notebook("04_multimodal_attribution")

rule notebook_relevance:
    input:
        stacks, NETS, f"{RUN}/metrics/03_gradcam_layers.json", f"{RUN}/metrics/04_multimodal_attribution.json",
        expand(f"{RUN}/relevance/{{backbone}}/repeat.done", backbone=BACKBONES) if TRAINS else [],
        source="notebooks/05_modality_relevance.ipynb"
    output: f"{RUN}/metrics/05_modality_relevance.json", f"{RUN}/made/05_modality_relevance.json"
    log: notebook=f"{RUN}/notebooks/05_modality_relevance.ipynb"
    params: code=code_digest("notebooks/05_modality_relevance.ipynb"), settings=STUDY.model_dump_json()
    threads: WHOLE
    resources: mem_mb=memory(6000)
    priority: AWAITED
    message: "Notebook 05: relevance of the sequences"
    shell: notebook("05_modality_relevance")

if STUDY.sleep:
    NIGHTS = f"{RUN}/sleep/nights.json"
    OWN_NIGHTS = sorted(str(path) for kind in ("nights.tsv", "**/*.edf") for path in Path(STUDY.sleep.root).glob(kind)
                        ) if STUDY.sleep.source == "folder" else []
    FOLDS = [f"{RUN}/sleep/fold-{number:02d}.json" for number in range(STUDY.sleep.folds)]

    rule nights:
        input: OWN_NIGHTS
        output: NIGHTS
        params: settings=STUDY.sleep.model_dump_json(), seed=STUDY.seed, code=made_by("mslib.sleep")
        threads: WHOLE
        resources: mem_mb=memory(1500)
        message: "Sleep: nights"
        shell: f"{MSLIB} nights {JOB}"

    rule sleep_fold:
        input: NIGHTS
        output: f"{RUN}/sleep/fold-{{number}}.json"
        params:
            settings=STUDY.sleep.model_dump_json(), seed=STUDY.seed,
            code=made_by("mslib.sleep.folds") + made_by("mslib.explain.lrp"),
            fold=lambda wildcards: int(wildcards.number)
        resources: mem_mb=memory(3000)
        message: "Sleep: fold {wildcards.number}"
        shell: f"{MSLIB} fold {JOB} --number {{params.fold}}"

    rule notebook_sleep:
        input: FOLDS, NIGHTS, source="notebooks/06_sleep_staging.ipynb"
        output: f"{RUN}/metrics/06_sleep_staging.json", f"{RUN}/made/06_sleep_staging.json"
        log: notebook=f"{RUN}/notebooks/06_sleep_staging.ipynb"
        params: code=code_digest("notebooks/06_sleep_staging.ipynb"), settings=STUDY.model_dump_json()
        threads: WHOLE
        resources: mem_mb=memory(3000)
        message: "Notebook 06: sleep staging"
        shell: notebook("06_sleep_staging")

METRICS = expand(f"{RUN}/metrics/{{name}}.json", name=["00_cohort", "01_coregistration", "03_gradcam_layers",
                                                       "04_multimodal_attribution", "05_modality_relevance",
                                                       *(["06_sleep_staging"] if STUDY.sleep else [])])

rule notebook_summary:
    input: METRICS, NETS if TRAINS else [], source="notebooks/07_summary.ipynb"
    output: f"{RUN}/metrics/07_summary.json", f"{RUN}/made/07_summary.json"
    log: notebook=f"{RUN}/notebooks/07_summary.ipynb"
    params: code=code_digest("notebooks/07_summary.ipynb"), settings=STUDY.model_dump_json()
    resources: mem_mb=memory(2500)
    message: "Notebook 07: summary and report"
    shell: notebook("07_summary")

rule publish:
    input: METRICS, NETS if TRAINS else [], f"{RUN}/metrics/07_summary.json"
    output: update(f"{RESULTS}/provenance.json")  # what is published stays until the new is whole
    params: code=code_digest("mslib.jobs.publish"), settings=STUDY.model_dump_json()
    message: "Publish the light part to {RESULTS}"
    shell: f"{MSLIB} publish {JOB} --results {shlex.quote(RESULTS)}"
