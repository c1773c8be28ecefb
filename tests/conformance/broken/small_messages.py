"""Takes messages of 16 KiB at most."""

from __future__ import annotations

from raw import Raw, main


class Broken(Raw):
    def options(self) -> list[tuple[str, int]]:
        return [("grpc.max_receive_message_length", 16 << 10)]


if __name__ == "__main__":
    main(Broken)
