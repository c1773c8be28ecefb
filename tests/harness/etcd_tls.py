"""The certificates of a test cluster: an authority, one certificate for all members, and any number of users."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from antiphon_orchestrator.store.etcd import TlsFiles
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = timedelta(days=1)


class Pki:
    """An authority in a folder. `host`: the address of every member."""

    def __init__(self, folder: Path, host: str) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._host = host
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named("a test authority")
        now = datetime.now(UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._write("ca.pem", self._certificate.public_bytes(serialization.Encoding.PEM))
        self._issue("member", [x509.IPAddress(ip_address(host))])

    def client(self, user: str) -> TlsFiles:
        """The files of a client whose certificate names this user of etcd."""
        if not (self._folder / f"{user}.pem").exists():
            self._issue(user, [])
        return TlsFiles(self._path("ca.pem"), self._path(f"{user}.pem"), self._path(f"{user}.key"))

    def server_flags(self) -> list[str]:
        """What a member is started with: every client and peer must show a certificate of ours."""
        files = {
            "cert-file": "member.pem",
            "key-file": "member.key",
            "trusted-ca-file": "ca.pem",
            "peer-cert-file": "member.pem",
            "peer-key-file": "member.key",
            "peer-trusted-ca-file": "ca.pem",
        }
        flags = [f"--{flag}={self._path(name)}" for flag, name in files.items()]
        return [*flags, "--client-cert-auth", "--peer-client-cert-auth"]

    def _issue(self, name: str, hosts: list[x509.GeneralName]) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages if hosts else usages[:1]), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        self._write(f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))
        self._write(
            f"{name}.key",
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _write(self, name: str, pem: bytes) -> None:
        path = self._path(name)
        path.touch(mode=0o600)
        path.write_bytes(pem)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
