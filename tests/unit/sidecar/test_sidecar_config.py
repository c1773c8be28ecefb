"""What a sidecar is told: precedence, and every mistake at once with its key and remedy."""

from __future__ import annotations

import ast
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import antiphon_sidecar.config as config_module
import pytest
from antiphon_certs import Grants
from antiphon_sidecar.app import agents_of
from antiphon_sidecar.config import AgentConfig, Config, ConfigError, load
from antiphon_sidecar.table import Mistakes

ROOT = Path(__file__).parents[3]
TOML = """
orchestrators = ["127.0.0.1:7443"]
grace = "10s"
state = "state"

[socket]
mode = "0660"

[[agent]]
name = "summarizer"
command = ["python", "my_agent.py"]

[[agent]]
name = "redactor"
adapter = "exec"
mode = "pool"
pool_size = 3
command = ["redact", "--lines"]

  [[agent.capability]]
  name = "text.redact"
  input_schema_file = "redact.json"
  effect = "pure"
  timeout = "30s"

[[agent]]
name = "gateway"
adapter = "http"
concurrency = 8

  [[agent.capability]]
  name = "text.summarize"
  version = "2"
  url = "http://127.0.0.1:9000/summarize/${input.id}"
  headers = { Authorization = "Bearer ${env:API_KEY}" }
  body = '{"text": ${input.text}}'
  output = "/result"
  [agent.capability.errors]
  429 = "TRANSIENT"
  4xx = "PERMANENT"
"""


def loaded(tmp_path: Path, text: str, flags: dict[str, Any] | None = None, **environ: str) -> Config:
    path = tmp_path / "sidecar.toml"
    path.write_text(text)
    return load({"config": str(path), **(flags or {})}, (), {"API_KEY": "key", **environ})


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "redact.json").write_text('{"type": "object"}')
    config = loaded(tmp_path, TOML)
    assert config.orchestrators == ("127.0.0.1:7443",)
    assert config.state == tmp_path / "state" and config.socket.mode == 0o660
    summarizer, redactor, gateway = config.agents
    assert summarizer == AgentConfig("summarizer", ("python", "my_agent.py"))
    assert redactor.concurrency == redactor.pool_size == 3
    assert redactor.capabilities[0].input_schema == '{"type": "object"}'
    assert redactor.capabilities[0].timeout == timedelta(seconds=30)
    call = gateway.capabilities[0].http
    assert call and call.headers == {"Authorization": "Bearer key"} and call.errors["4xx"] == "PERMANENT"
    assert "key" not in repr(config)


def test_what_the_page_for_users_shows_is_one_file(tmp_path: Path) -> None:
    page = (ROOT / "docs/sidecar.md").read_text()
    (tmp_path / "summarize.json").write_text("{}")
    config = loaded(tmp_path, "".join(re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)), KEY="secret")
    assert [agent.name for agent in config.agents] == ["gateway", "redactor", "summarizer", "resident"]


def test_the_reference_has_just_the_keys_that_can_be_set() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text().partition("## Sidecar")[2]
    told = [table.splitlines() for table in re.split(r"^### ", page, flags=re.MULTILINE)]
    source = ast.parse(Path(config_module.__file__).read_text())
    asked: dict[str, set[str]] = {}
    for function in (node for node in source.body if isinstance(node, ast.FunctionDef)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "table" and call.args:
                for argument in ast.walk(call.args[0]):
                    if isinstance(argument, ast.Constant) and call.func.attr not in ("key", "table", "tables"):
                        asked.setdefault(function.name, set()).add(str(argument.value))
    readers = ("read", "_identity", "_socket", "_agent", "_capability", "_http")
    keys = [{line.split("`")[1] for line in lines if line.startswith("| `")} for lines in told]
    assert keys[1] == {"key", "cert", "bundle"}  # which are read in a loop
    assert keys[0] == asked["read"] - {"agent"}  # said in the text above the table
    assert keys[2:] == [asked[reader] for reader in readers[2:]]


def test_a_flag_is_stronger_than_the_environment_and_that_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "redact.json").write_text("{}")
    environ: dict[str, Any] = {"ANTIPHON_SIDECAR_GRACE": "20s"}
    assert loaded(tmp_path, TOML).grace == timedelta(seconds=10)
    assert loaded(tmp_path, TOML, **environ).grace == timedelta(seconds=20)
    assert loaded(tmp_path, TOML, {"grace": "500ms"}, **environ).grace == timedelta(milliseconds=500)
    assert load({}, (), {}).grace == timedelta(seconds=30)


def test_a_token_is_taken_from_the_flag_before_the_variable_and_from_there_before_a_file_it_names(
    tmp_path: Path,
) -> None:
    held = tmp_path / "token"
    held.write_text("held\n")
    environ = {"ANTIPHON_TOKEN": "variable", "ANTIPHON_TOKEN_FILE": str(held)}
    assert load({"token": "flag"}, (), environ).token == "flag"
    assert load({}, (), environ).token == "variable"
    assert load({"token_file": str(held)}, (), environ).token == "held"
    assert load({}, (), {"ANTIPHON_TOKEN_FILE": str(held)}).token == "held"


def test_every_mistake_is_reported_at_once_with_its_key(tmp_path: Path) -> None:
    text = """
    orchestrators = ["nowhere"]
    gracee = "1s"
    grace = "soon"
    [[agent]]
    name = "Not A Name"
    concurrency = 0
    adapter = "http"
      [[agent.capability]]
      name = "a"
      url = "ftp://x/${inputt.a}"
      body = "${input.a}${other}"
      headers = { X = "${env:MISSING}" }
      output = "result"
      input_schema = "{"
      [agent.capability.errors]
      teapot = "TRANSIENT"
    [[agent]]
    name = "twice"
    [[agent]]
    name = "twice"
    adapter = "exec"
    [[agent]]
    concurrency = "many"
    """
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    lines = str(caught.value).splitlines()
    for key in (
        "orchestrators: 'nowhere'",
        "gracee: unknown key; did you mean grace?",
        "grace: 'soon' is not a time",
        "agent Not A Name: name:",
        "agent Not A Name: concurrency: use 1 to",
        "agent Not A Name: capability a: url:",
        "agent Not A Name: capability a: body:",
        "agent Not A Name: capability a: headers.X: set the environment variable MISSING",
        "agent Not A Name: capability a: output:",
        "agent Not A Name: capability a: input_schema: it is not JSON",
        "agent Not A Name: capability a: errors.teapot",
        "agent twice: capability: an adapter needs",
        "agent twice: command:",
        "agent: twice is there twice",
        "agent number 4: name: use 1-63",
    ):
        assert any(line.startswith(key) for line in lines), (key, lines)


@pytest.mark.parametrize(
    ("lines", "key", "remedy"),
    [
        ('adapter = "exec"\nmode = "pool"\nconcurrency = 2', "concurrency", "with a pool it is pool_size"),
        ('adapter = "exec"\npool_size = 2', "pool_size", 'set mode = "pool"'),
        ('adapter = "http"\nmode = "pool"', "mode", 'it is for adapter = "exec"'),
        ('adapter = "http"\npool_size = 2', "pool_size", 'it is for adapter = "exec"'),
        ('adapter = "http"\nmax_output = 2', "max_output", 'it is for adapter = "exec"'),
        ('mode = "per_call"', "mode", 'it is for adapter = "exec"'),
        ("concurrency = 2", "concurrency", "an agent says itself"),
        ("prefetch = 2", "prefetch", "an agent says itself"),
    ],
)
def test_a_key_that_would_have_no_effect_is_refused(tmp_path: Path, lines: str, key: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f'[[agent]]\nname = "one"\n{lines}\n')
    assert [line for line in str(caught.value).splitlines() if f"{key}: leave it out" in line and remedy in line]


def test_a_variable_that_is_none_of_ours_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ANTIPHON_SIDECAR_GRACEE: .* did you mean ANTIPHON_SIDECAR_GRACE"):
        load({}, (), {"ANTIPHON_SIDECAR_GRACEE": "5s"})


def _http_agent(*lines: str) -> str:
    return "\n".join(['[[agent]]\nname = "gateway"\nadapter = "http"\n[[agent.capability]]\nname = "text.do"', *lines])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('url = "http://127.0.0.1:port/x"', "give the service's URL"),
        ('url = "http://127.0.0.1:70000/x"', "give the service's URL"),
        ('url = "http:///x"', "give the service's URL"),
        ('url = "http://[::1/x"', "give the service's URL"),
        ('url = "http://127.0.0.1/a b"', "percent-encoded, such as %20"),
        ('url = "http://127.0.0.1/caf\u00e9"', "percent-encoded, such as %20"),
        ('url = "https://bob:s3cret@127.0.0.1/x"', "leave out user and password"),
        ('url = "https://bob:s3cret@127.0.0.1:port/x"', "leave out user and password"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_being_shown(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, _http_agent(line))
    assert said in str(caught.value) and "url:" in str(caught.value) and "s3cret" not in str(caught.value)


def test_a_body_is_json_once_the_input_is_filled_in(tmp_path: Path) -> None:
    url = 'url = "http://${input.host}:${input.port}/x?q=${input.q}"'
    quoted = """body = '{"text": "${input.text}"}'"""
    right = (
        """body = '{"text": ${input.text}, "all": [${input}]}'""",
        'body = "${input}"',
        """body = '{"path": "/items/${input.id}", "by": {"${input.id} times": ${input.n}}}'""",
    )
    for body in right:
        assert loaded(tmp_path, _http_agent(url, body))
    lines = """body = '{"index": {}}\\n{"doc": ${input.doc}}'"""
    assert loaded(tmp_path, _http_agent(url, lines, 'headers = { content-type = "application/x-ndjson" }'))
    with pytest.raises(ConfigError, match=r"body: it is not JSON once a text is filled in.*brings its own quotes"):
        loaded(tmp_path, _http_agent(url, quoted))
    assert loaded(tmp_path, _http_agent(url, quoted, 'headers = { content-type = "text/plain" }'))


def test_a_capability_is_there_once(tmp_path: Path) -> None:
    url = 'url = "http://127.0.0.1/"'
    another = ("[[agent.capability]]", 'name = "text.do"', url)
    assert loaded(tmp_path, _http_agent(url, *another, 'version = "2"'))
    with pytest.raises(ConfigError, match=r"agent gateway: capability: text.do@1 is there twice"):
        loaded(tmp_path, _http_agent(url, *another))


def test_a_secret_that_no_header_can_hold_is_refused_without_being_shown(tmp_path: Path) -> None:
    text = """
    [[agent]]
    name = "gateway"
    adapter = "http"
      [[agent.capability]]
      name = "text.do"
      url = "http://localhost/"
      headers = { Authorization = "Bearer ${env:KEY}" }
    """
    with pytest.raises(ConfigError, match=r"headers.Authorization: must hold printable ASCII") as caught:
        loaded(tmp_path, text, KEY="sk-live\u2026")
    assert "sk-live" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_toml_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load({"config": str(tmp_path / "none.toml")}, (), {})
    with pytest.raises(ConfigError, match="is not TOML"):
        loaded(tmp_path, "= 1")


def granted(config: Config, grants: Grants) -> tuple[AgentConfig, ...]:
    mistakes = Mistakes()
    agents = agents_of(config, grants, mistakes)
    mistakes.raise_any(ConfigError)
    return agents


def test_agents_default_to_those_the_certificate_names() -> None:
    config = Config(command=("python", "agent.py"))
    assert granted(config, Grants(("echo",), ("text.*",))) == (AgentConfig("echo", ("python", "agent.py")),)
    with pytest.raises(ConfigError, match="--agent"):
        granted(config, Grants(("a", "b"), ()))
    with pytest.raises(ConfigError, match="patterns only"):
        granted(config, Grants(("echo-*",), ()))


def test_agents_and_capabilities_beyond_the_grants_are_refused_before_anything_is_dialled(tmp_path: Path) -> None:
    (tmp_path / "redact.json").write_text("{}")
    config = loaded(tmp_path, TOML)
    with pytest.raises(ConfigError) as caught:
        granted(config, Grants(("summarizer", "redactor"), ("text.summarize",)))
    text = str(caught.value)
    assert "agent gateway: the certificate allows summarizer, redactor" in text
    assert "agent redactor: the certificate does not allow text.redact" in text
    assert "agent summarizer" not in text
