"""Conformance of SDKs: cases as data, one runner that plays the other side of the wire, an executor an SDK.

    python -m tests.conformance --sdk python          all cases, a table
    python -m tests.conformance --parity              what each SDK passes, into sdk/README.md

Cases: `cases/agent` and `cases/client`, proto JSON of `antiphon.conformance.v1.Case`. What an executor must do is said
in sdk/README.md. Not part of this: `broken/` and `test_verify.py`, the tests of `antiphon verify`.
"""
