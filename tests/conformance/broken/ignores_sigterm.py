"""Does not end after SIGTERM."""

from __future__ import annotations

from raw import Raw, main


class Broken(Raw):
    def terminated(self) -> None:
        pass


if __name__ == "__main__":
    main(Broken)
