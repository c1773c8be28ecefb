"""How the members of a cluster are, and whether they can be used.

Refused are releases that lack what the port needs (before 3.4) and those that lose committed data after a crash (3.5.0
to 3.5.2). What cannot be reached is looked at once more, by hand, for a reason that gRPC does not tell.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from antiphon.etcd.v3 import rpc_pb2

from ..port import StoreError, StoreRefused, StoreUnavailable
from .address import EtcdAddress, TlsFiles
from .wire import Endpoint

DEFAULT_QUOTA = 2 << 30
"""Bytes of a database when --quota-backend-bytes is not given; members before 3.6 do not tell theirs."""

_SECONDS = 3.0
_OLDEST = (3, 4)
_LOSES_DATA = ((3, 5, 0), (3, 5, 1), (3, 5, 2))
_ORDERS_PROGRESS_3_4 = (3, 4, 25)
_ORDERS_PROGRESS = (3, 5, 8)
_KEEPS_DELETES_3_4 = (3, 4, 34)
_KEEPS_DELETES = (3, 5, 15)


@dataclass(frozen=True, slots=True)
class Member:
    """What one endpoint says. Without `version` it could not be asked, for the reason in `trouble`.

    `size`: bytes of the database file, which the quota bounds; `in_use`: without its free pages. `quota`: 0 if it does
    not tell. `trouble`: what is wrong, if anything.
    """

    endpoint: str
    version: str = ""
    size: int = 0
    in_use: int = 0
    quota: int = 0
    leads: bool = False
    trouble: str = ""


async def look(endpoints: Sequence[Endpoint], address: EtcdAddress) -> list[Member]:
    """All members, asked at once, in order."""
    return await asyncio.gather(*(_ask(endpoint, address) for endpoint in endpoints))


def require_usable(members: Sequence[Member]) -> int:
    """The smallest quota. Raises StoreRefused for releases that must not be used, StoreUnavailable without any."""
    for member in members:
        if reason := unusable(member.version):
            raise StoreRefused(f"etcd at {member.endpoint} is {member.version}, {reason}")
    answering = [member for member in members if member.version]
    if not answering:
        raise StoreUnavailable("etcd cannot be reached: " + "; ".join(f"{m.endpoint} {m.trouble}" for m in members))
    return min(member.quota or DEFAULT_QUOTA for member in answering)


def unusable(version: str) -> str:
    """Why a release must not be used; empty when it may, or is unknown."""
    numbers = _numbers(version)
    if numbers is None:
        return ""
    if numbers < _OLDEST:
        return "which is too old: it needs 3.4 or newer"
    if numbers in _LOSES_DATA:
        return "which can lose committed data when it crashes: upgrade it to 3.5.3 or newer"
    return ""


def orders_progress(version: str) -> bool:
    """Whether a release never tells the progress of a watch ahead of its events."""
    return _since(version, _ORDERS_PROGRESS_3_4, _ORDERS_PROGRESS)


def keeps_deletes(version: str) -> bool:
    """Whether a release never loses a delete that happened at exactly the revision that is compacted."""
    return _since(version, _KEEPS_DELETES_3_4, _KEEPS_DELETES)


def _since(version: str, release_3_4: tuple[int, int, int], release: tuple[int, int, int]) -> bool:
    """Whether a release is known, and of 3.4 since the one or of later ones since the other."""
    numbers = _numbers(version)
    return numbers is not None and numbers >= (release_3_4 if numbers < (3, 5) else release)


def _numbers(version: str) -> tuple[int, int, int] | None:
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2]), int(match[3])) if match is not None else None


async def _ask(endpoint: Endpoint, address: EtcdAddress) -> Member:
    try:
        status = await endpoint.call("Maintenance/Status", rpc_pb2.StatusRequest(), rpc_pb2.StatusResponse, _SECONDS)
    except StoreUnavailable as error:
        return Member(endpoint.target, trouble=await _why(endpoint.target, address.tls) or str(error))
    except StoreError as error:
        return Member(endpoint.target, trouble=str(error))
    return Member(
        endpoint.target,
        status.version,
        status.dbSize,
        status.dbSizeInUse,
        status.dbSizeQuota,
        status.leader == status.header.member_id,
        "; ".join(status.errors),
    )


async def _why(target: str, tls: TlsFiles | None) -> str:
    """Why an endpoint cannot be used, with a remedy; empty when a connection by hand shows nothing."""
    host, _, port = target.rpartition(":")
    try:
        async with asyncio.timeout(_SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            try:
                # With TLS 1.3 a server refuses a client's certificate after the handshake, if it does.
                await writer.start_tls(_context(tls), server_hostname=host.strip("[]"))
                await reader.read(1)
            finally:
                writer.transport.abort()
    except TimeoutError:
        return "does not answer: its process hangs, or something on the way swallows what is sent"
    except ssl.SSLError as error:
        return _tls_trouble(error, tls)
    except ConnectionError as error:
        if isinstance(error, ConnectionRefusedError):
            return "cannot be reached (connection refused): start etcd there, or mend the address"
        return "" if tls is None else "does not speak TLS: leave store_ca out, or start etcd with --cert-file"
    except OSError as error:
        return f"cannot be reached ({error.strerror or error}): mend the address or the network"
    return "" if tls is not None else _SPEAKS_TLS


_SPEAKS_TLS = "speaks TLS: give store_ca, and store_cert with store_key if it asks for a certificate"


def _context(tls: TlsFiles | None) -> ssl.SSLContext:
    """As gRPC connects; without files only to see whether the other side speaks TLS at all."""
    context = ssl.create_default_context(cafile=str(tls.ca) if tls is not None else None)
    context.set_alpn_protocols(["h2"])
    if tls is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.certificate is not None and tls.private_key is not None:
        context.load_cert_chain(tls.certificate, tls.private_key)
    return context


def _tls_trouble(error: ssl.SSLError, tls: TlsFiles | None) -> str:
    reason = str(error.reason or error)
    if tls is None:
        return "" if reason == "WRONG_VERSION_NUMBER" else _SPEAKS_TLS
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"shows a certificate that store_ca does not vouch for, or of another name ({error.verify_message})"
    if reason == "WRONG_VERSION_NUMBER":
        return "does not speak TLS: leave store_ca out, or start etcd with --cert-file"
    if "ALERT" in reason and tls.certificate is None:
        return "demands a client certificate: give store_cert and store_key"
    if "ALERT" in reason:
        return f"does not accept the certificate in store_cert ({reason}): its --trusted-ca-file must vouch for it"
    return f"cannot be reached by TLS ({reason}): look at store_ca, store_cert and store_key"
