"""Networks whose cause is known, as files, and your own attribution method on them (docs/bench.md)."""

import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from mslib import analysis, nets
from mslib.study import Network, StudyError, read_arrays, read_json, read_table, write_arrays, write_json, write_table
from mslib.study.provenance import ROOT, commit

from .attribution import correct_cause_slices, few_of, methods_of, unmarked_controls
from .study import Study, read_maps, shipped, write_maps


def export_bench(study: Study, folder: Path) -> None:
    """Write the networks of a finished study whose cause is known, and the built-in methods' table, for ``bench``.

    A network with a known decision rule is left out where it does not follow its rule.
    """
    known, marks, config = analysis.known_rule, nets.known_rule, study.config
    rules, sequences = config.attribution.known_rule, config.sequences
    use = known.accuracy_by_cue(read_table(study.folder / "known_rule" / "use.csv"))
    learnt = known.learnt_rules(use) + (["shortcut"] if known.learnt_shortcut(use) else [])
    if not learnt:
        raise StudyError(f"{study.folder / 'known_rule'}: no network follows its rule, so that none has a known cause; "
                         "train longer (attribution.known_rule.epochs)")
    test, mm = marks.spread(unmarked_controls(study, "test"), rules.test_slices), config.model.pixel_mm * rules.shrink
    for experiment in [one for one in marks.experiments(sequences) if one.name in learnt]:
        marked = experiment.marked(test, mm, config.seed + 1)
        explained = known.explained_marks(marked, mm, few_of(len(test.table), rules.perturbed_slices))
        cause = {"corner": marked.corner} if experiment.shortcut else {"decisive": experiment.decisive}
        model = study.known_rule_net(experiment.name)
        _write_known(folder, analysis.bench.Known(experiment.name, model, explained, **cause), unmarked=test.images)
    write_arrays(folder / "unmarked.npz", images=test.images.astype(np.float16))
    if "cause" in config.model.kinds:
        network, learnt = Network(config.model.backbones[0], "cause"), [*learnt, "lesions"]
        start = study.started(network) if config.model.weights == "simulated" else None
        model = study.net(*network)
        explained = correct_cause_slices(study, network, model)[2]
        _write_known(folder, analysis.bench.Known("lesions", model, explained), start)
    settings = study.attribution_settings
    write_json(folder / "bench.json", {"study": config.study, "commit": commit(), "networks": learnt,
                                       "sequences": list(sequences), "settings": settings})
    table = analysis.bench.bench(_known_networks(folder), methods_of(config.relevance.compared), sequences, **settings)
    write_table(folder / "methods.csv", table.reset_index(), float_format="%.4g")


def bench(method: str, networks: Path = ROOT / "weights" / "bench") -> None:
    """Print what an attribution method (MODULE:FUNCTION) finds of causes that are known, beside the built-in ones."""
    module, _, name = method.partition(":")
    if not (networks / "bench.json").is_file():
        raise StudyError(f"{networks}: holds no networks whose cause is known; name (--networks) weights/bench of the "
                         "clone, or a folder that a finished study wrote (python -m mslib export_bench)")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise StudyError(f"bench: {method!r} must be MODULE:FUNCTION, to be imported from here ({error})") from error
    if not callable(function):
        raise StudyError(f"bench: {method!r} must be a function of model, images and targets")
    facts = read_json(networks / "bench.json")
    with analysis.bench.registered(name, function):
        own = analysis.bench.bench(_known_networks(networks), [name], facts["sequences"], **facts["settings"])
    others = read_table(networks / "methods.csv").set_index("method")
    both = pd.concat([own.astype(object), others.drop(analysis.bench.CHANCE).astype(object)])
    print(both.where(both.notna(), "-").to_string(float_format="{:.3f}".format))


def _write_known(folder, known, start=None, unmarked=None):
    """One file of a network whose cause is known: architecture, slices, weights as float16 that `start` has otherwise.

    `start` is the shipped network. Of slices that are `unmarked` ones (in a file of their own) with marks only the
    marks are kept.
    """
    cause = {name: value for name in ("decisive", "corner") if (value := getattr(known, name)) is not None}
    given = None if start is None else start.get_weights()
    weights = {f"weight {i:03}": weight.astype(np.float16) for i, weight in enumerate(known.model.get_weights())
               if given is None or not np.array_equal(weight, given[i])}
    images = known.explained.images.astype(np.float16)
    if unmarked is not None:
        images = np.where(images == unmarked.astype(np.float16), np.float16(np.nan), images)
    write_maps(folder / f"{known.name}.npz", replace(known.explained, images=images),
               {"architecture": np.array(known.model.to_json()), **weights, **cause})


def _known_networks(folder):
    """Networks of `_write_known`, one at a time."""
    import keras
    for name in read_json(folder / "bench.json")["networks"]:
        explained, stored = read_maps(folder / f"{name}.npz")
        model = keras.models.model_from_json(str(stored["architecture"]))
        fitted = {int(key.removeprefix("weight ")): stored[key] for key in stored if key.startswith("weight ")}
        if len(fitted) < len(model.get_weights()):
            start = shipped(f"{model.name}_simulated")
            start = start if start.is_file() else folder.parent / start.name  # of a clone, by an installed library
            if not start.is_file():
                raise StudyError(f"{start}: is absent, from which the network {name} starts; name (--networks) "
                                 "weights/bench of the clone, beside which it lies")
            nets.load_half(model, start, ())
        model.set_weights([fitted.get(i, weight).astype(np.float32) for i, weight in enumerate(model.get_weights())])
        images = explained.images
        if np.isnan(images).any():
            images = np.where(np.isnan(images), read_arrays(folder / "unmarked.npz")["images"], images)
        explained = replace(explained, images=images.astype(np.float32))
        decisive = int(stored["decisive"]) if "decisive" in stored else None
        yield analysis.bench.Known(name, model, explained, decisive, stored.get("corner"))
