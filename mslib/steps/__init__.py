"""The steps of a study, one per rule of the Snakefile: read, call the science, write; and what notebooks open.

`python -m mslib STEP --config FILE --run-dir FOLDER` runs one. Only this wing and `mslib.study` know folders.
"""

import logging

from .attribution import attribute, known_rule, relevance
from .cohort import (
    check_cohort,
    look_at_weights,
    make_template,
    preprocess,
    simulate,
    simulated_people,
    start,
    subjects,
    truth,
)
from .known_networks import bench, export_bench
from .maps import measure_maps
from .networks import activations, cause_cohort, export, folds, train
from .pretraining import compare_start, pretrain
from .results import notebook, publish
from .sleep import fold, nights
from .study import Study

# Many networks are explained, each traced once on purpose; TensorFlow takes that for a mistake and prints it.
logging.getLogger("tensorflow").addFilter(lambda record: "triggered tf.function retracing" not in record.getMessage())

#: By name, in the order of the Snakefile.
STEPS = {step.__name__: step for step in (
    start, make_template, simulate, check_cohort, preprocess, subjects, truth, cause_cohort, activations, train, folds,
    compare_start, measure_maps, known_rule, attribute, relevance, nights, fold, notebook, publish, export,
    export_bench)}

__all__ = ["STEPS", "Study", "bench", "look_at_weights", "pretrain", "simulated_people"]
