"""The version of this package. Written here as well as in pyproject.toml, because asking the installed metadata for it
costs an agent process several megabytes of imports; a test compares the two.
"""

VERSION = "0.1.0"
