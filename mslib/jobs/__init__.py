"""The jobs of a study, called alike by the notebooks and by the command line; here the wings meet."""

import logging


def _worth_telling(record: logging.LogRecord) -> bool:
    return "triggered tf.function retracing" not in record.getMessage()


# A notebook explains many nets, each traced once on purpose; TensorFlow takes that for a mistake and prints it.
logging.getLogger("tensorflow").addFilter(_worth_telling)
