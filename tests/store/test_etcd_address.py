"""Where a cluster is, as one setting spells it, and what is wrong with what does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from antiphon_orchestrator.config import ConfigError, load
from antiphon_orchestrator.store.etcd import EtcdAddress, TlsFiles, parse

CA = TlsFiles(Path("ca.pem"))


@pytest.mark.parametrize(
    ("text", "tls", "address"),
    [
        ("etcd://127.0.0.1", None, EtcdAddress(("127.0.0.1:2379",), b"antiphon/")),
        ("etcd://localhost:1/", None, EtcdAddress(("localhost:1",), b"antiphon/")),
        ("etcd://[::1]:2379/team/a", None, EtcdAddress(("[::1]:2379",), b"team/a/")),
        ("etcd://a:1,b:2,a:1/x/", CA, EtcdAddress(("a:1", "b:2"), b"x/", CA)),
        ("etcd+plaintext://10.0.0.1:1/x", None, EtcdAddress(("10.0.0.1:1",), b"x/")),
    ],
)
def test_an_address_is_endpoints_and_a_prefix(text: str, tls: TlsFiles | None, address: EtcdAddress) -> None:
    assert parse(text, tls) == address


@pytest.mark.parametrize(
    ("text", "tls", "remedy"),
    [
        ("", None, "etcd://host1:2379"),
        ("http://a:1", CA, "etcd://host1:2379"),
        ("etcd://", CA, "write host:port"),
        ("etcd://a:0", CA, "write host:port"),
        ("etcd://a:65536", CA, "write host:port"),
        ("etcd://a b:1", CA, "write host:port"),
        ("etcd://a:1/x//y", CA, "write a prefix"),
        ("etcd://a:1/ä", CA, "write a prefix"),
        ("etcd://a:1/" + "x" * 65, CA, "write a prefix"),
        ("etcd://" + ",".join(f"h{n}:1" for n in range(17)), CA, "at most 16"),
        ("etcd://127.0.0.1:1,10.0.0.1:1", None, "give store_ca"),
        ("etcd://example.org", None, "give store_ca"),
        ("etcd+plaintext://127.0.0.1:1", CA, "exclude each other"),
    ],
)
def test_what_is_no_address_is_told_what_to_write(text: str, tls: TlsFiles | None, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        parse(text, tls)


def test_the_settings_of_a_cluster_come_from_flags_and_file(tmp_path: Path) -> None:
    file = tmp_path / "orchestrator.toml"
    file.write_text('store = "etcd://a:1,b:2/x"\nstore_ca = "ca.pem"\npayloads = "s3://p"\n')
    archive = "postgresql://a@db/a?sslmode=verify-full"
    config = load({"config": str(file), "store_cert": "/c.pem", "store_key": "/k.pem", "archive": archive}, {})
    tls = TlsFiles(tmp_path / "ca.pem", Path("/c.pem"), Path("/k.pem"))
    assert config.etcd == EtcdAddress(("a:1", "b:2"), b"x/", tls)


def test_without_a_store_setting_it_is_the_embedded_one() -> None:
    assert load({}, {}).etcd is None


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        ({"store": "etcd://10.0.0.1:2379"}, "store: give store_ca"),
        ({"store_ca": "ca.pem"}, "for a store in a cluster; give store"),
        ({"store": "etcd://a:1", "store_ca": "ca.pem", "store_cert": "c.pem"}, "belong together"),
        ({"store": "etcd://a:1", "store_cert": "c.pem", "store_key": "k.pem"}, "give store_ca, too"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(flags: dict[str, str], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        load(flags, {})
