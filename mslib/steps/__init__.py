"""The steps of a study, one per rule of the Snakefile: read, call the science, write; and what notebooks open.

`python -m mslib STEP --config FILE --run-dir FOLDER` runs one. Only this wing and `mslib.study` know folders.
"""

import logging

from . import attribution, cohort, known_networks, maps, networks, pretraining, results, sleep
from .cohort import look_at_weights, simulated_people
from .study import Study

# Many networks are explained, each traced once on purpose; TensorFlow takes that for a mistake and prints it.
logging.getLogger("tensorflow").addFilter(lambda record: "triggered tf.function retracing" not in record.getMessage())

#: By name, in the order of the Snakefile; the last four are no rule of it, and two of them belong to no study.
STEPS = {step.__name__: step for step in (
    cohort.start, cohort.make_template, cohort.simulate, cohort.check_cohort, cohort.preprocess, cohort.subjects,
    cohort.truth, networks.cause_cohort, networks.activations, networks.train, networks.folds,
    pretraining.compare_start, maps.measure_maps, attribution.known_rule, attribution.attribute, attribution.relevance,
    sleep.nights, sleep.fold, results.notebook, results.publish, networks.export, known_networks.export_bench,
    pretraining.pretrain, known_networks.bench)}

__all__ = ["STEPS", "Study", "look_at_weights", "simulated_people"]
