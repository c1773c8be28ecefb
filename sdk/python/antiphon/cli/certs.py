"""`antiphon certs`: making the authority, handing out join tokens, and this user's own certificate.

Needs the server package. What it imports from there it imports when a command runs, so that help works without.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from .. import Client, Credentials, Unavailable
from .._calls import RETRIES
from ..v1.identity_service_pb2 import CreateTokenResponse
from . import output
from .connection import first, with_client
from .identity import join as join_mesh
from .identity import renew as renew_certificate
from .identity import require_certs
from .options import AsJson, PageLimit, ProfileName, profile_option
from .problems import Problem
from .text import parse_duration, spell_duration, spell_moment

if TYPE_CHECKING:
    from antiphon_certs import Credential, Profile

app = typer.Typer(
    help="Identity: the authority, join tokens, certificates.", no_args_is_help=True, callback=require_certs
)

_EPHEMERAL = timedelta(minutes=5)
_KINDS = ("sidecar", "client", "operator")


@app.command()
def init(
    folder: Annotated[Path, typer.Option("--dir", help="An empty or new folder.")] = Path("antiphon-ca"),
    trust_domain: Annotated[str, typer.Option(help="Name of the trust domain, a DNS name.")] = "antiphon.local",
    as_json: AsJson = False,
) -> None:
    """Make a certificate authority: an offline root and the online intermediate that signs."""
    from antiphon_certs import Authority

    authority = Authority.init(folder, trust_domain)
    if as_json:
        output.show_json(
            {"folder": str(folder), "trust_domain": trust_domain, "root_fingerprint": authority.root_fingerprint}
        )
        return
    output.show(str(folder))
    output.note(
        f"The authority of {trust_domain}; its root has the fingerprint {authority.root_fingerprint}.\n"
        f"Next:\n"
        f"  take {folder / 'root.key'} to a safe place; nothing needs it until the intermediate expires in a year\n"
        f"  antiphon orchestrator serve --authority {folder} --policy-profile dev\n"
        f"    or, with policies of your own instead: --policy-folder DIR\n"
        f"  antiphon certs token --authority {folder} --kind operator --name you"
        f" | antiphon certs join - --profile operator\n"
        f"    and where the orchestrator is on another machine: --address HOST:PORT, before the |"
    )


@app.command()
def token(
    kind: Annotated[str, typer.Option(help="sidecar, client or operator.")],
    name: Annotated[str, typer.Option(help="Name of the identity.")],
    agent: Annotated[
        list[str] | None, typer.Option("--agent", help="An agent a sidecar may speak for; may be repeated.")
    ] = None,
    capability: Annotated[
        list[str] | None, typer.Option("--capability", help="What it may offer, such as 'text.*'; may be repeated.")
    ] = None,
    ttl: Annotated[str, typer.Option(help="How long the token may be used, at most 24h.")] = "10m",
    namespace: Annotated[str, typer.Option(help="Tenant of the identity.", show_default="the caller's")] = "",
    authority: Annotated[
        Path | None,
        typer.Option(
            help="Ask as an operator certified by this authority's folder, instead of by a profile.", metavar="DIR"
        ),
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            help="With --authority: the orchestrators to ask, at their `listen` (mutual TLS), not `join_listen`;"
            " several with commas between.",
            metavar="HOST:PORT",
        ),
    ] = "127.0.0.1:7443",
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Make a join token: it works once, and binds namespace, name, agents and capabilities."""
    lifetime = parse_duration(ttl)
    if kind not in _KINDS:
        raise Problem(f"there are no identities of kind {kind!r}", f"use --kind {' or '.join(_KINDS)}")
    if kind == "sidecar" and not (agent and capability):
        raise Problem("a sidecar's token must say what it allows", "add --agent NAME and --capability PATTERN")

    async def make(client: Client) -> CreateTokenResponse:
        return await client.create_token(
            kind, name, namespace=namespace, agents=agent or (), capabilities=capability or (), lifetime=lifetime
        )

    async def ask(client: Client) -> CreateTokenResponse:
        # The client does not repeat this call by itself, since a second one is a second token. Here that is harmless: a
        # token that reached nobody expires unused.
        for _ in range(RETRIES):  # each goes to the next address
            with suppress(Unavailable):
                return await make(client)
        return await make(client)

    if authority is None:
        answer = with_client(profile, ask)
    else:
        namespace = namespace or "default"
        answer = asyncio.run(_ask_as_authority(authority, address, ask))
    if as_json:
        output.show_json(answer)
        return
    print(answer.token)  # as it is: a console would wrap it
    use = (
        "antiphon sidecar run --token … -- COMMAND, or set ANTIPHON_TOKEN"
        if kind == "sidecar"
        else "antiphon certs join"
    )
    output.note(f"Works once, until {spell_moment(answer.expire_time)}. Give it to one process: {use}")


@app.command()
def join(
    token_text: Annotated[
        str,
        typer.Argument(
            envvar="ANTIPHON_TOKEN", help="The token; - reads it from stdin, where nobody sees it.", metavar="TOKEN"
        ),
    ],
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Spend a join token: this user gets a certificate, kept in the profile."""
    from antiphon_certs import JoinToken, Kind

    parsed = JoinToken.parse(sys.stdin.read() if token_text == "-" else token_text)
    joined, credential = asyncio.run(join_mesh(parsed, profile))
    _show(joined, credential, as_json)
    if parsed.identity.kind is Kind.SIDECAR:
        output.note(
            f"Next: name key.pem, cert.pem and bundle.pem in {joined.credential.folder / 'current'} as [identity]"
            f" of the sidecar, and renew them: antiphon certs renew{profile_option(joined.folder.name)}\n"
            "A sidecar that is given a token itself does all that: antiphon sidecar run --token TOKEN"
        )
    else:
        output.note(f"Next: antiphon agent list{profile_option(joined.folder.name)}")


@app.command()
def show(as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Show who the profile is, whom it calls, and how long its certificate holds."""
    from antiphon_certs import Profile

    found = Profile.load(profile)
    _show(found, found.credential.load(), as_json)


@app.command()
def renew(as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Renew the profile's certificate now. Other commands do so by themselves past half of its life."""
    from antiphon_certs import Profile

    found = Profile.load(profile)
    _show(found, asyncio.run(renew_certificate(found, found.credential.load())), as_json)


@app.command()
def revoke(
    cause: Annotated[str, typer.Option(help="Why; whoever is refused reads it, too.")],
    kind: Annotated[str, typer.Option(help="With --name: sidecar, client or operator.")] = "",
    name: Annotated[str, typer.Option(help="All certificates of this identity that were issued so far.")] = "",
    serial: Annotated[str, typer.Option(help="One certificate, as antiphon certs show and audit records say.")] = "",
    namespace: Annotated[str, typer.Option(help="Tenant of the identity.", show_default="the caller's")] = "",
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Revoke certificates: within 5 s no replica lets them do anything, on live connections neither."""
    if bool(name) == bool(serial) or (name and kind not in _KINDS):
        raise Problem(
            "say what is to be revoked", f"use --kind {'|'.join(_KINDS)} with --name NAME, or --serial HEX alone"
        )

    async def ask(client: Client) -> None:
        await client.revoke_certificates(kind, name, serial=serial.lower(), cause=cause, namespace=namespace)

    with_client(profile, ask)
    if as_json:
        output.show_json({"kind": kind, "name": name, "serial": serial.lower(), "cause": cause})
        return
    what = f"certificate {serial}" if serial else f"all certificates of {kind} {name}"
    output.show(f"revoked: {what}")
    unseen = "serial number" if serial else "name"
    output.note(f"Whether there is one is not known: see that the {unseen} is spelt right.")
    if name:
        given = profile_option(profile or "default")
        given += f" --namespace {namespace}" if namespace else ""
        given += f" --kind {kind} --name {name}"
        given += " --agent NAME --capability PATTERN" if kind == "sidecar" else ""
        output.note(f"Whoever may come back needs a new token: antiphon certs token{given}")


@app.command()
def revocations(limit: PageLimit = 1000, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """List what is revoked in the namespace, until nothing is left of it that could be refused."""
    found = with_client(profile, lambda client: first(limit, client.list_revocations()))
    if as_json:
        output.show_json(found)
        return
    rows = [
        (
            one.serial or f"{one.identity.kind} {one.identity.name}",
            spell_moment(one.revoke_time),
            spell_moment(one.expire_time),
            one.principal,
            one.cause,
        )
        for one in found
    ]
    output.show(output.table(("REVOKED", "AT", "KEPT UNTIL", "BY", "CAUSE"), rows))


@app.command()
def rotate(
    step: Annotated[str, typer.Argument(help="status, prepare, switch or finish.", metavar="STEP")] = "status",
    folder: Annotated[Path, typer.Option("--dir", help="The authority's folder.")] = Path("antiphon-ca"),
    force: Annotated[
        bool, typer.Option("--force", help="Do not wait for those who have not renewed since the last step.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Replace the authority's root while the mesh works: prepare, then switch, then finish.

    Between the steps everyone has to renew, which takes an hour; orchestrators take up the folder by themselves.
    """
    from antiphon_certs import Step, finish_root, prepare_root, succession_of, switch_root

    if step == "status":
        state = succession_of(folder)
    elif step == "prepare":
        state = prepare_root(folder)
    elif step == "switch":
        state = switch_root(folder, force=force)
    elif step == "finish":
        state = finish_root(folder, force=force)
    else:
        raise Problem(f"{step!r} is no step of a rotation", "use status, prepare, switch or finish")
    due = state.next_time.isoformat(timespec="seconds") if state.next_time else ""
    if as_json:
        output.show_json({"step": state.step.value, "roots": list(state.roots), "next_time": due})
        return
    output.show(output.facts([("step", state.step.value), ("roots", "\n".join(state.roots))]))
    following = {Step.PREPARED: "switch", Step.SWITCHED: "finish"}.get(state.step)
    copied = "bundle.pem" if state.step is not Step.SWITCHED else "intermediate.key, intermediate.pem and bundle.pem"
    if step != "status":
        output.note(f"Copy {copied} to every orchestrator now; they take it up by themselves.")
    if following and state.next_time:
        when = f"{state.next_time.astimezone():%Y-%m-%d %H:%M}"
        output.note(f"Next, not before {when}: antiphon certs rotate {following} --dir {folder}")


def _show(profile: Profile, credential: Credential, as_json: bool) -> None:
    facts: dict[str, object] = {
        "profile": profile.folder.name,
        "folder": str(profile.folder),
        "identity": credential.identity.uri,
        "namespace": profile.namespace,
        "addresses": list(profile.addresses),
        "join_addresses": list(profile.join_addresses),
        "agents": list(credential.grants.agents),
        "capabilities": list(credential.grants.capabilities),
        "not_before": credential.not_before.isoformat(),
        "not_after": credential.not_after.isoformat(),
        "fingerprint": credential.fingerprint,
        "serial": credential.serial,
    }
    if as_json:
        output.show_json(facts)
        return
    left = credential.not_after - datetime.now(UTC)
    facts["not_after"] = f"{credential.not_after.astimezone():%Y-%m-%d %H:%M:%S} ({_spell_left(left)})"
    facts["not_before"] = f"{credential.not_before.astimezone():%Y-%m-%d %H:%M:%S}"
    rows = [
        (key.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value))
        for key, value in facts.items()
    ]
    output.show(output.facts((key, value) for key, value in rows if value))


def _spell_left(left: timedelta) -> str:
    return f"{spell_duration(left)} left" if left > timedelta(0) else "expired"


async def _ask_as_authority(
    folder: Path, address: str, ask: Callable[[Client], Awaitable[CreateTokenResponse]]
) -> CreateTokenResponse:
    """Call as an operator whose certificate the authority's folder signs here and now; its key is gone afterwards.

    This is how the first operator gets a token, when nobody has a profile yet.
    """
    from antiphon_certs import Authority, CertificateFiles, Grants, Identity, Kind, new_key_and_csr

    authority = Authority.load(folder)
    identity = Identity(authority.trust_domain, "system", Kind.OPERATOR, "authority")
    key_pem, csr_pem = new_key_and_csr(identity)
    chain_pem = authority.issue(csr_pem, identity, ttl=_EPHEMERAL, grants=Grants())
    with TemporaryDirectory(prefix="antiphon-") as scratch:
        files = Path(scratch) / "credential"
        CertificateFiles(files).store(key_pem, chain_pem, authority.bundle_pem)
        async with Client.connect(address=address, credentials=Credentials.from_folder(files)) as client:
            return await ask(client)
