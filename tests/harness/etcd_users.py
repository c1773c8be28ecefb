"""Users in a test cluster: `root`, and one that may read and write below a prefix, both by their certificates.

etcd's Auth service is called with requests encoded here, since the product has no use for its messages.
"""

from __future__ import annotations

import grpc

from .etcd import Etcd

_READ_AND_WRITE = 2


def require_users(etcd: Etcd, user: str, prefix: bytes) -> None:
    """From now on the cluster takes nobody but these. `prefix` ends with "/"."""
    without_password = _field(3, _number(1, 1))
    name = user.encode()
    with etcd.channel(0, "root") as channel:
        for method, request in (
            ("UserAdd", _field(1, b"root") + without_password),
            ("RoleAdd", _field(1, b"root")),
            ("UserGrantRole", _field(1, b"root") + _field(2, b"root")),
            ("UserAdd", _field(1, name) + without_password),
            ("RoleAdd", _field(1, name)),
            ("RoleGrantPermission", _permission(user, prefix)),
            ("UserGrantRole", _field(1, name) + _field(2, name)),
            ("AuthEnable", b""),
        ):
            _call(channel, method, request)


def grant_again(etcd: Etcd, user: str, prefix: bytes) -> None:
    """Gives a user what it has, which etcd takes for a change of its rights."""
    with etcd.channel(0, "root") as channel:
        _call(channel, "RoleGrantPermission", _permission(user, prefix))


def _permission(role: str, prefix: bytes) -> bytes:
    permission = _number(1, _READ_AND_WRITE) + _field(2, prefix) + _field(3, prefix[:-1] + b"0")
    return _field(1, role.encode()) + _field(2, permission)


def _call(channel: grpc.Channel, method: str, request: bytes) -> None:
    channel.unary_unary(f"/etcdserverpb.Auth/{method}")(request, timeout=30)


def _field(number: int, value: bytes) -> bytes:
    """A field of text, bytes or a message of less than 128 bytes."""
    return bytes((number << 3 | 2, len(value))) + value


def _number(number: int, value: int) -> bytes:
    return bytes((number << 3, value))
