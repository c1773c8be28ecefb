"""Ends with its first stream."""

from __future__ import annotations

from raw import Raw, main


class Broken(Raw):
    again = False


if __name__ == "__main__":
    main(Broken)
