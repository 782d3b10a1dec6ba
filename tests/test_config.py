"""Settings: several faults together, files that are none, and what the studies of the project hold."""

import re
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel
from repository import ROOT

from mslib.cohort.people import LAWS
from mslib.study import StudyError, load_config
from mslib.study.config import SIMULATED_GROUPS, Pretraining, StudyConfig

CONFIGS = sorted((ROOT / "config").glob("*.yaml"))


def lines_of(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(StudyError) as caught:
        load_config(path)
    return path, str(caught.value).splitlines()


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
    ("study: !!python/object:os.system {}", "not valid YAML"), ("\udcff\udcfe", "not valid YAML")])
def test_a_file_that_is_no_study(tmp_path, text, words):
    path, lines = lines_of(tmp_path, text)
    assert len(lines) == 1 and lines[0].startswith(f"{path}: ") and words in lines[0]


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
                    "cohort: {source: bids, root: b, session: 012, entities: {run: 2}}", encoding="utf-8")
    config = load_config(path)
    assert (config.groups, config.group_values) == (["control", "RRMS"], {"control": ["0"], "RRMS": ["1", "RR-MS"]})
    assert (config.cohort.session, config.cohort.entities) == ("012", {"run": "2"}), "no octal number"


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
