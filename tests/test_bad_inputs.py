"""Bad inputs through public commands: one clear line each, exit status 1, no traceback; their table in tests/README.md.

``python tests/test_bad_inputs.py`` writes the table anew.
"""

import contextlib
import gzip
import io
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import test_bids as bids
import yaml

from mslib.__main__ import main

PAGE = Path(__file__).parent / "README.md"
MARKS = "<!-- bad inputs -->", "<!-- end of bad inputs -->"
TABLES = {
    "participants.tsv separated by commas": b"participant_id,group\nsub-001,RRMS\n",
    "participants.tsv separated by semicolons": b"participant_id;group\nsub-001;RRMS\n",
    "participants.tsv without ids": b"id\tgroup\nsub-001\tRRMS\n",
    "participants.tsv not in UTF-8": b"participant_id\tgroup\nsub-001\t\xff\n",
    "participants.tsv empty": b"", "participants.tsv with a short row": b"participant_id\tgroup\nsub-001\n",
    "participants.tsv with a column twice": b"participant_id\tgroup\tgroup\nsub-001\tA\tB\n",
    "path as participant_id": b"participant_id\tgroup\n../../etc\tRRMS\n",
    "a person twice": b"participant_id\tgroup\nsub-001\tRRMS\nsub-001\tRRMS\n",
    "age in words": b"participant_id\tage\nsub-001\told\n"}
#: Text of a study's file below its name.
SETTINGS = {
    "unknown": "sede: 1",
    "unknown below": "model: {wieghts: scratch}",
    "word": "model: {backbones: [vgg61]}",
    "weights": "model: {weights: imagnet}",
    "empty": "model: {backbones: []}",
    "type": "seed: eight",
    "text for number": "training: {weight_decay: 1E-5}",
    "endless pixels": "model: {pixel_mm: .inf}",
    "endless rate": "training: {honest: {learning_rate: .inf}}",
    "huge images": "model: {image_size: [100000, 168]}",
    "one backbone twice": "model: {backbones: [vgg16, vgg16]}",
    "one draw": "statistics: {bootstrap: 1}",
    "too few samples": "attribution: {superpixels: 50}",
    "truth value": "seed: true",
    "range": "cohort: {simulated: {voxel_mm: 0.1}}",
    "negative": "seed: -1",
    "not a number": "model: {pixel_mm: .nan}",
    "length": "model: {image_size: [48]}",
    "shares": "training: {split: {train: 0.9}}",
    "percentiles": "prep: {percentiles: [99, 1]}",
    "two slices": "prep: {n_slices: 2}",
    "groups": "groups: [a, a]",
    "one group": "groups: [RRMS]",
    "controls by another name": "groups: [Control, RRMS]",
    "number that begins with 0": "seed: 012",
    "group of a mapping": "groups: {control: no}",
    "value of two groups": "groups: {a: x, b: [y, x]}\ncohort: {source: bids, root: b}",
    "mapping of simulated people": "groups: {control: a, RRMS: b, SPMS: c}",
    "group of nobody": "groups: [control, SPMS]\ncohort: {simulated: {study: {control: 3, SPMS: 3}}}",
    "group that cannot be simulated": "groups: [control, CIS]",
    "shipped networks": "model: {shipped: true}",
    "real patients": "cohort: {source: open_ms}",
    "too few": "cohort: {simulated: {study: {control: 9, RRMS: 2}}}",
    "few pixels": "model: {image_size: [64, 31]}",
    "narrow and given": "model: {narrow: 2, weights: imagenet}",
    "frozen from random": "training: {published: {frozen_blocks: 4}}",
    "no root": "cohort: {source: bids}",
    "nights of nobody": "sleep: {source: folder}",
    "more folds than people": "sleep: {subjects: 4, folds: 5}",
    "more people than telemetry": "sleep: {source: telemetry, subjects: 23}",
    "two folds": "sleep: {folds: 2}",
    "fold without validation": "training: {folds: 2}",
    "not registered to T1w": "sequences: [FLAIR, T1w, T2w]",
    "viewer without maps": "explain: {viewer_subjects: 5}",
    "rule for pictures": "sleep: {rule: epsilon_plus_flat}",
    "channel": "sleep: {channels: {ECG: x}}",
    "section": "model: vgg16",
}


def told(*words):
    """Exit status and lines on the terminal of a command."""
    with contextlib.redirect_stderr(io.StringIO()) as text, contextlib.redirect_stdout(io.StringIO()):
        status = main(list(map(str, words)))
    return status, [line.removeprefix("fault: ") for line in re.split("[\r\n]", text.getvalue())
                    if line.strip() and "check images" not in line]


def rows(folder):
    """Input, command, message and exit status of every case; paths of this machine are replaced."""
    root, file = folder / "bids", folder / "FILE"
    bids.write_faulty_images(root)
    status, lines = told("check", root)
    for name, line in zip(bids.IMAGE_FAULTS, lines, strict=True):
        yield name, "mslib check", line, status
    shutil.rmtree(root)
    bids.write_cohort(root, {"sub-001": "RRMS"})
    for name, content in TABLES.items():
        (root / "participants.tsv").write_bytes(content)
        status, lines = told("check", root)
        yield name, "mslib check", lines[0], status
    shutil.rmtree(root)
    bids.write_cohort(root, {"sub-001": "RRMS"})
    anat = root / "sub-001" / "anat"
    (anat / "sub-001_T1w.nii").write_bytes(gzip.decompress((anat / "sub-001_T1w.nii.gz").read_bytes()))
    (anat / "sub-001_T2w.nii.gz").rename(anat / "sub-002_T2w.nii.gz")
    (anat / "sub-001_FLAIR.nii.gz").unlink()
    status, lines = told("check", root)
    for name, line in zip(("image named for another person", "a sequence twice", "a sequence is missing"), lines,
                          strict=True):
        yield name, "mslib check", line, status
    shutil.rmtree(root)
    bids.write_cohort(root, {"sub-001": "RRMS"})
    mask = root / "derivatives" / "truth" / "sub-001" / "anat" / "sub-001_space-T1w_label-lesion_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    bids.voxel(0.5)(mask)
    status, lines = told("check", root)
    yield "probabilities as mask", "mslib check", lines[0], status
    texts = {"missing": "seed: 1", "name": "study: My Study"} | {
        name: f"study: a\n{text}" for name, text in SETTINGS.items()}
    for name, text in texts.items():
        file.write_text(text)
        status, (line,) = told("check_cohort", "--config", file, "--run-dir", folder / "run")
        shown = text.removeprefix("study: a\n").replace("\n", ", ")
        yield f"settings, {name}: `{shown}`", "mslib check_cohort", line, status
    new = folder / "out"
    for words in (["init", folder / "none"], ["init", root, "--name", "A b"], ["init", root, "--name", "2024"],
                  ["init", folder / "{bids}"], ["check", folder / "none"],
                  ["init", root, "--group-column", "colour", "--name", "new"], [folder / "none", new, "group"],
                  [root, folder / "{out}", "group"], [root, new, "participant", "--participant-label", "7"],
                  [root, new, "group", "--participant-label", "001"], [root, new, "group", "--cores", "0"],
                  [root, new, "group", "--skip-bids-validation", "--config", folder / "none.yaml"]):
        status, lines = told(*words)
        yield "arguments", f"mslib {' '.join(map(str, words))}", lines[0], status
    file.write_text(yaml.safe_dump({"study": "mine", "cohort": {"source": "bids", "root": str(folder / "other")}}))
    status, lines = told(root, folder / "out", "group", "--skip-bids-validation", "--config", file)
    yield "settings of another dataset", "mslib BIDS_DIR OUTPUT_DIR group --config FILE", lines[0], status


def table(found, folder):
    lines = ["| input | command | message | exit |", "|---|---|---|---|"]
    for row in found:
        cells = [str(cell).replace(str(folder), "").replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_every_bad_input_is_told_in_a_line_and_the_page_lists_them(tmp_path):
    found = list(rows(tmp_path))
    assert len(found) >= 60 and all(status == 1 for *_, status in found)
    assert all(message and "Traceback" not in message for _, _, message, _ in found)
    page = PAGE.read_text(encoding="utf-8")
    assert table(found, tmp_path) == page.partition(MARKS[0])[2].partition(MARKS[1])[0].strip()


def test_faults_stop_a_run_or_are_left_out_if_asked_to_and_too_few_stop_it_in_any_case(tmp_path):
    """Three per group are needed, and one may fail."""
    people = {f"sub-{number:03d}": ["control", "RRMS"][number % 2] for number in range(8)}
    root, file, run = bids.write_cohort(tmp_path / "bids", people), tmp_path / "own.yaml", tmp_path / "run"

    def check(on_fault):
        """Exit status, lines told, people and faults of the run's listing."""
        file.write_text(yaml.safe_dump({"study": "own", "groups": ["control", "RRMS"], "cohort": {
            "source": "bids", "root": str(root), "on_fault": on_fault}}))
        status, lines = told("check_cohort", "--config", file, "--run-dir", run)
        listing = json.loads((run / "cohort.json").read_text()) if run.exists() else {"subjects": [], "faults": None}
        shutil.rmtree(run, ignore_errors=True)
        return status, lines, [f"sub-{person['id']}" for person in listing["subjects"]], listing["faults"]

    assert check("stop") == (0, [], list(people), [])
    flair, t2w = "sub-000/anat/sub-000_FLAIR.nii.gz", "sub-001/anat/sub-001_T2w.nii.gz"
    bids.voxel(np.nan)(root / flair)
    (root / t2w).unlink()
    bids.write_table(root, [*people.items(), ("../../etc", "RRMS")])
    status, faults, *listed = check("stop")
    assert status == 1 and listed == [[], None] and all("; allowed: " in line for line in faults)
    expected = ["../../etc: participants.tsv: is no valid participant_id", f"sub-000: {flair}: has 1 NaN or infinite",
                "sub-001: sub-001/anat: has no T2w image"]
    assert len(faults) == 3 and all(sum(line.startswith(one) for line in faults) == 1 for one in expected)
    assert check("skip") == (0, [], list(people)[2:], faults)
    for label in ("sub-000", "sub-002"):
        shutil.rmtree(root / label)
    bids.write_table(root, [row for row in people.items() if row[0] not in ("sub-000", "sub-002")])
    shutil.copy(root / t2w.replace("T2w", "T1w"), root / t2w)
    few = "group: participants.tsv: group 'control' has 2 usable subjects; allowed: at least 3, for the split"
    assert check("stop") == check("skip") == (1, [few], [], None)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        text = table(rows(Path(made)), Path(made))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}", encoding="utf-8")
    sys.exit(0)
