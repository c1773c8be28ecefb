"""Goes on after drain."""

from __future__ import annotations

from raw import Raw, main


class Broken(Raw):
    def drain(self) -> None:
        pass


if __name__ == "__main__":
    main(Broken)
