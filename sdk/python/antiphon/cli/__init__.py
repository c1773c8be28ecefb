"""The command line `antiphon`, for people and for programs: a client of the public API, nothing more.

Rules of every command: data goes to stdout, everything said about it to stderr; `--json` gives JSON with stable keys;
exit codes are 0 (done), 1 (refused, or the work failed) and 2 (wrong usage, or this machine lacks something); an
expected failure is one line with a remedy, never a traceback.
"""
