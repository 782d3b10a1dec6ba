"""Every mistake in a study's file is told in one line that names file, key, what is allowed and what was given."""

import re
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from repository import ROOT

from mslib.cohort.people import LAWS
from mslib.study import StudyError, load_config
from mslib.study.config import SIMULATED_GROUPS, Pretraining, StudyConfig

CONFIGS = sorted((ROOT / "config").glob("*.yaml"))
FAULTS = {  # text of the file, key, words that say what is allowed, what was given
    "missing": ("seed: 1", "study", "required", "nothing"),
    "name": ("study: My Study", "study", "must be small letters, digits and _", "'My Study'"),
    "unknown": ("study: a\nsede: 1", "sede", "is not a known key", "1"),
    "unknown below": ("study: a\nmodel: {wieghts: scratch}", "model.wieghts", "is not a known key", "'scratch'"),
    "word": ("study: a\nmodel: {backbones: [vgg61]}", "model.backbones.0", "'vgg16' or 'vgg19'", "'vgg61'"),
    "weights": ("study: a\nmodel: {weights: imagnet}", "model.weights", "imagenet", "'imagnet'"),
    "empty": ("study: a\nmodel: {backbones: []}", "model.backbones", "at least 1", "[]"),
    "type": ("study: a\nseed: eight", "seed", "valid integer", "'eight'"),
    "text for number": ("study: a\ntraining: {weight_decay: 1e-3}", "training.weight_decay", "write 1.0e-3",
                        "'1e-3'"),
    "endless pixels": ("study: a\nmodel: {pixel_mm: .inf}", "model.pixel_mm", "less than or equal to 10", "inf"),
    "endless rate": ("study: a\ntraining: {honest: {learning_rate: .inf}}", "training.honest.learning_rate",
                     "less than or equal to 1", "inf"),
    "huge images": ("study: a\nmodel: {image_size: [100000, 168]}", "model.image_size.0", "less than or equal to 1024",
                    "100000"),
    "one backbone twice": ("study: a\nmodel: {backbones: [vgg16, vgg16]}", "model.backbones", "different", "['vgg16'"),
    "one draw": ("study: a\nstatistics: {bootstrap: 1}", "statistics.bootstrap", "greater than or equal to 100", "1"),
    "too few samples": ("study: a\nattribution: {superpixels: 50}", "attribution.samples",
                        "must be at least 300 for 150 superpixels", "150"),
    "truth value": ("study: a\nseed: true", "seed", "valid integer", "True"),
    "range": ("study: a\ncohort: {simulated: {voxel_mm: 0.1}}", "cohort.simulated.voxel_mm", "0.5", "0.1"),
    "negative": ("study: a\nseed: -1", "seed", "greater than or equal to 0", "-1"),
    "not a number": ("study: a\nmodel: {pixel_mm: .nan}", "model.pixel_mm", "less than or equal to 10", "nan"),
    "length": ("study: a\nmodel: {image_size: [48]}", "model.image_size.1", "required", "nothing"),
    "shares": ("study: a\ntraining: {split: {train: 0.9}}", "training.split", "must be 1", "1.15"),
    "percentiles": ("study: a\nprep: {percentiles: [99, 1]}", "prep.percentiles", "lower, then upper", "[99"),
    "groups": ("study: a\ngroups: [a, a]", "groups", "different", "['a', 'a']"),
    "group of a mapping": ("study: a\ngroups: {control: no}", "groups.control", "must be a value of the tab", "False"),
    "value of two groups": ("study: a\ngroups: {a: x, b: [y, x]}\ncohort: {source: bids, root: b}", "groups",
                            "must stand for one class", "{'a': ['x'], 'b': ['y', 'x']}"),
    "mapping of simulated people": ("study: a\ngroups: {control: a, RRMS: b, SPMS: c}", "groups",
                                    "where cohort.source is 'bids'", "{'control': ['a']"),
    "group of nobody": ("study: a\ngroups: [control, SPMS]\ncohort: {simulated: {study: {control: 3, SPMS: 3}}}",
                        "cohort.simulated.independent", "['control', 'SPMS']", "['RRMS']"),
    "group that cannot be simulated": ("study: a\ngroups: [control, CIS]", "groups",
                                       "must be of ['control', 'RRMS', 'SPMS']", "['CIS']"),
    "shipped networks": ("study: a\nmodel: {shipped: true}", "model.weights", "model.shipped is true", "'scratch'"),
    "real patients": ("study: a\ncohort: {source: open_ms}", "model.weights", "must be 'simulated' where", "'scratch'"),
    "too few": ("study: a\ncohort: {simulated: {study: {control: 9, RRMS: 2}}}", "cohort.simulated.study",
                "at least 3", "{'RRMS': 2, 'SPMS': 0}"),
    "few pixels": ("study: a\nmodel: {image_size: [64, 31]}", "model.image_size", "must be at least 32 pixels a side",
                   "[64, 31]"),
    "narrow and given": ("study: a\nmodel: {narrow: 2, weights: imagenet}", "model.narrow",
                         "must be 1 where weights do not start at random", "2"),
    "frozen from random": ("study: a\ntraining: {published: {frozen_blocks: 4}}", "training.published",
                           "frozen_blocks must be 0 where weights start at random", "4"),
    "no root": ("study: a\ncohort: {source: bids}", "cohort.root", "must name a BIDS folder", "nothing"),
    "nights of nobody": ("study: a\nsleep: {source: folder}", "sleep.root", "must name a folder with nights.tsv",
                         "nothing"),
    "more folds than people": ("study: a\nsleep: {subjects: 4, folds: 5}", "sleep.folds", "at most sleep.subjects, 4",
                               "5"),
    "more people than telemetry": ("study: a\nsleep: {source: telemetry, subjects: 23}", "sleep.subjects",
                                   "at most 22", "23"),
    "two folds": ("study: a\nsleep: {folds: 2}", "sleep.folds", "greater than or equal to 3", "2"),
    "fold without validation": ("study: a\ntraining: {folds: 2}", "training.folds", "greater than or equal to 3", "2"),
    "not registered to T1w": ("study: a\nsequences: [FLAIR, T1w, T2w]", "sequences", "must begin with T1w",
                              "['FLAIR', 'T1w'"),
    "viewer without maps": ("study: a\nexplain: {viewer_subjects: 5}", "explain.viewer_subjects",
                            "at most explain.nifti_subjects, 1", "5"),
    "rule for pictures": ("study: a\nsleep: {rule: epsilon_plus_flat}", "sleep.rule", "'epsilon_plus'",
                          "'epsilon_plus_flat'"),
    "channel": ("study: a\nsleep: {channels: {ECG: x}}", "sleep.channels.ECG", "is not a known key", "'x'"),
    "section": ("study: a\nmodel: vgg16", "model", "valid dictionary", "'vgg16'"),
}


def lines_of(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError) as caught:
        load_config(path)
    return path, str(caught.value).splitlines()


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_one_line(tmp_path, case):
    text, key, allowed, given = FAULTS[case]
    path, lines = lines_of(tmp_path, text)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{path}: {key}: ")
    assert allowed in lines[0]
    assert f"(got {given}" in lines[0]


def test_the_readers_example_of_a_study_of_sleep_is_one(tmp_path):
    page = (ROOT / "docs" / "your-cohort.md").read_text(encoding="utf-8")
    text = re.search(r"```yaml\n(.*?)```", page, re.DOTALL).group(1)
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    own = load_config(path).sleep
    assert own.source == "folder" and own.epochs_per_recording is None


def test_several_faults_are_told_together(tmp_path):
    path, lines = lines_of(tmp_path, "study: a\nseed: x\nmodel: {weights: 3, pixel_mm: -1}\nprep: {n4: 1}")
    assert [line.removeprefix(f"{path}: ").split(":")[0] for line in lines] == [
        "seed", "prep.n4", "model.weights", "model.pixel_mm"]


@pytest.mark.parametrize("text,words", [
    ("study: [a", "is not valid YAML"), ("- study", "must hold keys and values (got list)"), ("", "got NoneType"),
    ("study: a\nseed: 1\nseed: 2", "key 'seed' is given twice"),
    ("study: !!python/object:os.system {}", "not valid YAML"),
])
def test_a_file_that_is_no_study(tmp_path, text, words):
    path, lines = lines_of(tmp_path, text)
    assert len(lines) == 1 and lines[0].startswith(f"{path}: ") and words in lines[0]


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    for path, words in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "directory"),
                        (tmp_path / "bytes.yaml", "not valid YAML")):
        with pytest.raises(StudyError, match=words) as caught:
            load_config(path)
        assert len(str(caught.value).splitlines()) == 1


def test_settings_cannot_be_changed():
    config = load_config(ROOT / "config" / "simulated.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.training.split.train = 0.5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_study_of_the_project_loads(path):
    config = load_config(path)
    assert config.study == path.stem
    assert f"`{path.name}`" in (ROOT / "config" / "README.md").read_text(encoding="utf-8")


def keys(model):
    """Names of all settings of a model and of the models in it."""
    for key, field in model.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation))
                 if isinstance(kind, type) and issubclass(kind, BaseModel)]
        yield key
        yield from keys(inner[0]) if inner else ()


def test_every_key_is_explained():
    text = (ROOT / "config" / "README.md").read_text(encoding="utf-8")
    assert [key for key in keys(StudyConfig) if not re.search(rf"\b{key}\b", text)] == []


def test_groups_may_be_a_mapping_to_values_of_the_table(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("study: own\ngroups: {control: 0, RRMS: [1, 'RR-MS']}\n"
                    "cohort: {source: bids, root: b, session: 01, entities: {run: 2}}", encoding="utf-8")
    config = load_config(path)
    assert (config.groups, config.group_values) == (["control", "RRMS"], {"control": ["0"], "RRMS": ["1", "RR-MS"]})
    assert (config.cohort.session, config.cohort.entities) == ("1", {"run": "2"})


@pytest.mark.parametrize("text", [(ROOT / "config" / "smoke.yaml").read_text(encoding="utf-8"),
                                  "study: own\ngroups: {control: HC, MS: PwMS}\ncohort: {source: bids, root: b}"])
def test_settings_outlive_writing_and_reading(tmp_path, text):
    path = tmp_path / "smoke.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_config(path)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    assert load_config(path) == config


def test_the_demo_trains_nothing_and_takes_the_networks_of_the_default_study():
    demo = load_config(ROOT / "config" / "demo.yaml")
    assert not demo.trains and not demo.has_known_rule and demo.sleep is None
    assert sum(demo.cohort.simulated.study.values()) == 3 and not demo.cohort.simulated.independent
    default = load_config(ROOT / "config" / "simulated.yaml").model
    assert [getattr(demo.model, key) for key in ("image_size", "pixel_mm", "input")] == [
        getattr(default, key) for key in ("image_size", "pixel_mm", "input")]


def test_real_patients_meet_the_input_of_the_nets_that_explain_them():
    real = load_config(ROOT / "config" / "open_ms.yaml")
    source = load_config(ROOT / "config" / "simulated.yaml")
    assert (real.groups, real.sequences) == (source.groups, source.sequences)
    for key in ("backbones", "weights", "input", "image_size", "pixel_mm"):
        assert getattr(real.model, key) == getattr(source.model, key), key


def test_published_protocol():
    config = load_config(ROOT / "config" / "published.yaml")
    assert (config.training.split.train, config.training.split.validation, config.training.split.test) == (.75, .1, .15)
    counts = config.cohort.simulated.study
    assert counts["control"] == 19 and counts["RRMS"] + counts["SPMS"] == 19
    assert (config.model.weights, config.model.pixel_mm, config.prep.n_slices) == ("imagenet", 1.0, 135)
    assert "published" in config.model.kinds and config.training.published.frozen_blocks == 4
    assert (config.training.augmentation.gain, config.training.augmentation.gamma) == (0, 0)
    own = config.attribution
    assert (own.superpixels, own.permutations, own.steps, own.levels) == (50, 25, 50, 11)


def test_the_recipe_of_pretraining_ends_on_the_pixels_of_the_study(tmp_path):
    recipe, study = load_config(ROOT / "weights" / "pretraining.yaml", Pretraining), load_config(
        ROOT / "config" / "simulated.yaml")
    assert (recipe.image_size, recipe.pixel_mm) == (study.model.image_size, study.model.pixel_mm)
    assert (recipe.groups, recipe.sequences) == (study.groups, study.sequences)
    path = tmp_path / "recipe.yaml"
    settings = recipe.model_dump(mode="json")
    path.write_text(yaml.safe_dump(settings | {"stages": settings["stages"][:1]}), encoding="utf-8")
    with pytest.raises(StudyError, match=r"stages: the last must have shrink 1.*got 4"):
        load_config(path, Pretraining)


def test_only_groups_that_the_phantom_knows_are_simulated():
    assert set(SIMULATED_GROUPS) == set(LAWS)
