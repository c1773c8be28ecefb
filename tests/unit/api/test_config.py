"""Where settings come from, and that every mistake is told at once with its place and remedy."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from antiphon_orchestrator.archive.place import proving
from antiphon_orchestrator.config import Config, ConfigError, _parse, flags, keys, load, shown
from hypothesis import given
from hypothesis.strategies import integers

PREFIX = "ANTIPHON_ORCHESTRATOR_"


def written(folder: Path, text: str) -> dict[str, str]:
    path = folder / "orchestrator.toml"
    path.write_text(text)
    return {"config": str(path)}


def test_defaults_are_finite_closed_and_local() -> None:
    config = load({}, {"ANTIPHON_HOME": "/srv/antiphon"})
    assert (config.data, config.authority) == (Path("/srv/antiphon/orchestrator"), Path("/srv/antiphon/ca"))
    assert (config.listen, config.join_listen, config.shards) == ("127.0.0.1:7443", "127.0.0.1:7444", None)
    assert config.policy_folder is None and config.policy_profile == "" and not config.development
    assert config.telemetry.metrics_port is None and not config.telemetry.tracing
    assert config.join.calls_per_second < config.api.calls_per_second
    assert all(setting.source == "default" for setting in config.describe())


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, 'shards = 8\nlisten = "127.0.0.1:1"\ninbox_limit = 5\n[api]\ncall_burst = 7\n')
    environ = {f"{PREFIX}SHARDS": "4", f"{PREFIX}LISTEN": "127.0.0.1:2", "PATH": "x"}
    config = load({**file, "shards": 2, "listen": None}, environ)
    assert (config.shards, config.listen, config.inbox_limit, config.api.call_burst) == (2, "127.0.0.1:2", 5, 7)
    sources = {setting.key: setting.source for setting in config.describe()}
    assert sources["shards"] == "--shards"
    assert sources["listen"] == f"{PREFIX}LISTEN"
    assert sources["inbox_limit"] == f"{file['config']}: inbox_limit"
    assert sources["api.call_burst"] == f"{file['config']}: api.call_burst"
    assert sources["data"] == "default"


def test_each_setting_says_what_it_means_and_how_its_default_is_written() -> None:
    config = Config(Path("~/.antiphon/orchestrator"), Path("~/.antiphon/ca"))
    told = {flag.key: flag for flag in flags()}
    assert [(key, told[key].flag) for key in told] == keys()
    assert {key: flag.default for key, flag in told.items() if key not in ("archive", "payloads")} == {
        setting.key: setting.value for setting in config.describe() if setting.key not in ("archive", "payloads")
    }
    assert all(flag.meaning.endswith(".") for flag in told.values())
    assert told["api.connection_age"].default == "30m"


@given(integers(0, 10**13))
def test_a_duration_is_shown_as_it_may_be_written(milliseconds: int) -> None:
    value = timedelta(milliseconds=milliseconds)
    assert _parse(timedelta, shown(value)) == value


def test_values_are_read_by_their_type(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        'data = "state"\nhosts = ["a.example", "b.example"]\ndevelopment = true\n[api]\nconnection_age = "1h30m"\n',
    )
    config = load(file, {f"{PREFIX}API_CALLS_PER_SECOND": "2.5", f"{PREFIX}TELEMETRY_METRICS_PORT": "9464"})
    assert config.data == tmp_path / "state"  # beside the file, wherever the process runs
    assert config.hosts == ("a.example", "b.example")
    assert config.development
    assert config.api.connection_age == timedelta(minutes=90)
    assert (config.api.calls_per_second, config.telemetry.metrics_port) == (2.5, 9464)
    assert load({"hosts": "a.example, c.example"}, {}).hosts == ("a.example", "c.example")


def test_every_mistake_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    file = written(tmp_path, 'shard = 8\ndevelopment = "perhaps"\n[api]\nconnection_age = "soon"\n')
    environ = {f"{PREFIX}SHARDS": "9999", f"{PREFIX}INBOX_LIMITS": "1", f"{PREFIX}LISTEN": "nowhere"}
    with pytest.raises(ConfigError) as caught:
        load({**file, "inbox_limit": "many"}, environ)
    mistakes = "\n".join(caught.value.mistakes)
    assert f"{file['config']}: shard is not a setting; did you mean shards?" in mistakes
    assert "development: write true or false, not 'perhaps'" in mistakes
    assert "api.connection_age: write a duration such as 500ms" in mistakes
    assert f"{PREFIX}SHARDS: write a number from 1 to 1024" in mistakes
    assert f"{PREFIX}INBOX_LIMITS is not a setting; did you mean {PREFIX}INBOX_LIMIT?" in mistakes
    assert f"{PREFIX}LISTEN: " in mistakes
    assert "--inbox-limit: write a whole number, not 'many'" in mistakes
    assert len(caught.value.mistakes) == 7


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"policy_folder": "p", "policy_profile": "dev"}, "exclude each other"),
        ({"policy_profile": "prod"}, "write one of"),
        ({"listen": "0.0.0.0:7443"}, "give advertise"),
        ({"join_advertise": "0.0.0.0:7444"}, "give join_advertise"),
        ({"join_advertise": "mesh.example"}, "write host:port"),
        ({"store_cert": ""}, "^--store-cert: write a path"),
        ({"data": ""}, "^--data: write a path"),
        ({"inbox_limit": 0}, "more than nothing"),
        ({"api.call_burst": "inf"}, "finite"),
        ({"config": "/nowhere/x.toml"}, "cannot be read"),
    ],
)
def test_values_that_make_no_sense_are_refused(flags: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load(flags, {})


def test_an_empty_path_is_not_the_folder_that_we_are_in() -> None:
    with pytest.raises(ConfigError, match=f"^{PREFIX}STORE_CERT: write a path; where none is meant, leave"):
        load({}, {f"{PREFIX}STORE_CERT": ""})


def test_a_file_that_is_not_toml_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not TOML"):
        load(written(tmp_path, "shards ="), {})


def test_the_certificate_names_what_others_dial() -> None:
    config = load({"listen": "0.0.0.0:7443", "advertise": "mesh.example:7443", "hosts": "other.example"}, {})
    assert config.certificate_hosts == ("mesh.example", "other.example")
    assert (config.advertised, config.advertised_host) == ("mesh.example:7443", "mesh.example")
    assert isinstance(config, Config)
    elsewhere = load({"advertise": "[::1]:30443", "join_advertise": "join.example:30444"}, {})
    assert elsewhere.certificate_hosts == ("::1", "join.example")


@pytest.mark.parametrize(
    ("flags", "both"),
    [
        ({}, ("127.0.0.1:7443", "127.0.0.1:7444")),
        ({"advertise": "a.example:30443"}, ("a.example:30443", "a.example:7444")),
        ({"advertise": "a.example:0", "join_listen": "0.0.0.0:0"}, ("a.example:0", "a.example:0")),
        ({"join_advertise": "b.example:30444"}, ("127.0.0.1:7443", "b.example:30444")),
    ],
)
def test_what_is_advertised_is_what_is_listened_on_unless_it_is_said(
    flags: dict[str, str], both: tuple[str, str]
) -> None:
    config = load(flags, {})
    assert (config.advertised, config.join_advertised) == both


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://antiphon:hush@db.example/runs",
        "postgresql://antiphon@db.example/runs?password=hush&sslrootcert=/etc/ca.pem",
        "postgresql://antiphon:hush@one:5432,two:5433/runs?target_session_attrs=read-write",
    ],
)
def test_the_password_of_an_archive_is_never_shown(url: str) -> None:
    config = load({"archive": url}, {})
    (shown,) = [setting.value for setting in config.describe() if setting.key == "archive"]
    assert "hush" not in shown and "***" in shown and "antiphon" in shown and "/runs" in shown
    assert "hush" not in repr(config)
    for wrong in (url.replace("postgresql", "mysql"), url.replace("/runs", ""), f"{url}&sslmode=disable"):
        with pytest.raises(ConfigError) as caught:
            load({"archive": wrong.replace("&sslmode", "&sslmode" if "?" in wrong else "?sslmode")}, {})
        assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("runs.db", "write sqlite:///FILE or postgresql://"),
        ("sqlite://", "write sqlite:///FILE"),
        ("sqlite://host/file", "write sqlite:///FILE"),
        ("postgresql://db.example", "the database has no name"),
        ("postgresql:///runs", "the server has no name"),
        ("postgresql://db.example/runs?sslmode=require", "write sslmode=verify-full"),
        ("postgresql://127.0.0.1,db.example/runs?sslmode=disable", "write sslmode=verify-full"),
        ("postgresql:///runs?host=db.example&sslmode=prefer", "write sslmode=verify-full"),
    ],
)
def test_what_is_no_place_of_an_archive_is_refused_with_the_remedy(url: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=f"--archive: .*{remedy}"):
        load({"archive": url}, {})


def test_an_archive_across_a_network_proves_its_name_and_one_beside_us_need_not() -> None:
    for there in ("postgresql://db.example/runs", "postgresql://[2001:db8::1]:5432/runs", "postgresql://10.0.0.7/runs"):
        assert "sslmode=verify-full" in proving(there)
    for here in (
        "postgresql://localhost:5432/runs",
        "postgresql:///runs?host=/run/postgresql",
        "postgresql://[::1]/runs",
    ):
        assert proving(here) == here
        assert load({"archive": f"{here}{'&' if '?' in here else '?'}sslmode=disable"}, {}).archive
    said = "postgresql://db.example/runs?sslmode=verify-ca"
    assert proving(said) == said


def test_archive_and_payloads_are_in_the_data_folder_unless_said_otherwise() -> None:
    config = load({"data": "/srv/data"}, {})
    assert (config.archive_url, config.payloads_url) == ("sqlite:////srv/data/archive.db", "file:///srv/data/payloads")
    config = load({"archive": "sqlite:////a.db", "payloads": "s3://bucket/x", "archive_retention": "30d"}, {})
    assert (config.archive_url, config.payloads_url) == ("sqlite:////a.db", "s3://bucket/x")
    assert config.archive_retention == timedelta(days=30)
    with pytest.raises(ConfigError, match="from 1h to 36500d, not"):
        load({"archive_retention": "1m"}, {})
    with pytest.raises(ConfigError, match="--payloads: write file:///FOLDER, s3://"):
        load({"payloads": "bucket"}, {})


def test_beside_a_store_that_machines_share_nothing_may_lie_on_one_of_them() -> None:
    with pytest.raises(ConfigError) as refused:
        load({"store": "etcd+plaintext://10.0.0.1:2379"}, {})
    archive, payloads = refused.value.mistakes
    assert "--archive postgresql://" in archive and "--payloads s3://" in payloads
    elsewhere = {"archive": "postgresql://a@db.example/a?sslmode=verify-full", "payloads": "file:///srv/shared"}
    assert load({"store": "etcd+plaintext://10.0.0.1:2379", **elsewhere}, {}).etcd is not None


def test_an_etcd_on_this_machine_may_have_files_beside_it() -> None:
    assert load({"store": "etcd://127.0.0.1:2379,[::1]:2379"}, {}).archive_url.startswith("sqlite:")


def test_weights_of_namespaces_are_a_list_whose_mistakes_are_told() -> None:
    assert load({"schedule.weights": "a=4,b=2"}, {}).schedule.weights == ("a=4", "b=2")
    with pytest.raises(ConfigError) as refused:
        load({"schedule.weights": "a=4,b=many"}, {})
    assert refused.value.mistakes == (
        "--schedule-weights: write NAMESPACE=WEIGHT with a weight from 1 to 1000, such as team-a=4, not 'b=many'",
    )
