"""An HTTP service that lets agents do its work: GET /greet?name=Ada answers what a run of the graph `greet` answers.

It calls as itself: its profile (ANTIPHON_PROFILE) holds a certificate of its own, for an hour, renewed at half of that.
`python service.py [PORT]`, 8080 by default.
"""

import asyncio
import json
import sys
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from antiphon import AntiphonError, Client, RunFailed, output_of
from antiphon.cli.identity import renew_when_due


async def greet(client: Client, name: str) -> str:
    """The greeting. Whatever crashes meanwhile, the run is one run, and its answer comes."""
    run = await client.submit("greet", {"name": name}, wait=True, timeout=timedelta(seconds=30))
    return str(output_of(run)["greet"])


class Handler(BaseHTTPRequestHandler):
    """A request: the client lives in the event loop of another thread."""

    disable_nagle_algorithm = True

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop, *arguments: object) -> None:
        self.client, self.loop = client, loop
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer with the greeting, or with what went wrong."""
        name = parse_qs(urlsplit(self.path).query).get("name", ["you"])[0]
        try:
            text = asyncio.run_coroutine_threadsafe(greet(self.client, name), self.loop).result()
            status, answer = 200, {"text": text}
        except (AntiphonError, RunFailed) as error:
            status, answer = 502, {"error": str(error)}
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode() + b"\n")


async def main(port: int) -> None:
    """Serve until interrupted, over one connection to the orchestrators."""
    async with Client.connect(renew=partial(renew_when_due, None)) as client:
        handler = partial(Handler, client, asyncio.get_running_loop())
        with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8080))
