"""Networks, maps and tables in, tables out: one module a topic, imported when it is used first."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, [
    "attribution", "bench", "cross_fitting", "depth", "known_rule", "lobes", "networks", "relevance", "site", "sleep",
    "truth"])
