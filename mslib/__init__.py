"""Where does a network look when it tells types of multiple sclerosis apart? Helpers of the notebooks."""

__version__ = "0.1.0"
