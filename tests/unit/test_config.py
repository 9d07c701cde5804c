"""Settings: precedence, refusals, and that every row of the table works by every way."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd import config
from hvd.config import Config
from hvd.errors import HvdError

SAMPLES = {
    "state_dir": "/a", "runtime_dir": "/b", "listen": "unix:///c", "metrics_listen": "127.0.0.1:9", "log_level": "debug",
    "log_format": "json", "stop_grace": "2.5", "max_guests": "7", "default_memory": "96M", "log_max_bytes": "1M", "log_files": "3",
    "image_dirs": "/d", "cache_dir": "/e", "tls_cert": "/f", "tls_key": "/g", "tls_client_ca": "/h",
    "network_pool": "10.5.0.0/16", "registry_ca": "/i", "insecure_registries": "registry:5000", "registry_auth_file": "/j",
    "container_tracer": "tracefs", "socket_group": "view=0", "socket_mode": "view=666", "call_rate": "5", "max_calls": "6", "audit_log": "/k",
    "jail": "off", "spare_runners": "0",
}  # fmt: skip


@pytest.mark.parametrize("name", [setting.name for setting in fields(Config)])
def test_every_setting_by_flag_environment_and_file(name: str, tmp_path: Path) -> None:
    key, value = name.replace("_", "-"), SAMPLES[name]
    file = tmp_path / "hvd.toml"
    file.write_text(f'{key} = "{value}"\n')
    by_flag = config.load([f"--{key}", value], {})
    by_environment = config.load([], {f"HVD_{name.upper()}": value})
    by_file = config.load(["--config", str(file)], {})
    assert by_flag == by_environment == by_file != config.load([], {})
    assert f"`--{key}" in config.markdown_table()


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "hvd.toml"
    file.write_text('max-guests = 1\nstop-grace = 1\nlisten = ["unix:///a", "unix:///b"]\n')
    environment = {"HVD_CONFIG": str(file), "HVD_MAX_GUESTS": "2", "HVD_STOP_GRACE": ""}
    loaded = config.load(["--max-guests", "3"], environment)
    assert (loaded.max_guests, loaded.stop_grace, loaded.listen) == (3, 1.0, ("unix:///a", "unix:///b"))
    assert config.load([], environment).max_guests == 2
    assert config.load(["--listen", "unix:///x", "--listen", "unix:///y"], environment).listen == (
        "unix:///x",
        "unix:///y",
    )
    assert config.load([], {"HVD_LISTEN": "unix:///x,unix:///y"}).listen == ("unix:///x", "unix:///y")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("max-guests = 0", "whole number"),
        ("max-guests = true", "neither text nor number"),
        ("spare-runners = 17", "from 0 to 16"),
        ("max_guests = 1", "no such setting"),
        ("colour = 'red'", "no such setting"),
        ("max-guests = ", "Invalid value"),
        ("max-guests = [1, 2]", "is a list"),
        ("stop-grace = -1", "seconds"),
        ("stop-grace = nan", "seconds"),
        ("listen = 'unix://relative'", "absolute"),
        ("listen = 'somewhere'", "host:port"),
        ("listen = 'h:99999'", "host:port"),
        ("log-level = 'loud'", "none of"),
        ("default-memory = '5000'", "multiple"),
        ("default-memory = '5 apples'", "size"),
        ("log-max-bytes = 1", "too small"),
        ("state-dir = ''", "empty"),
        ("socket-group = 'king=root'", "roles are view, trace, operate, admin"),
        ("socket-group = 'view=no-such-group'", "no group of this host"),
        ("socket-mode = 'view=rw'", "mode like 660"),
        ("socket-mode = 'view'", "ROLE=MODE"),
        ("call-rate = 0", "whole number"),
    ],
)
def test_bad_values_name_the_setting_and_the_problem(text: str, part: str, tmp_path: Path) -> None:
    file = tmp_path / "hvd.toml"
    file.write_text(text)
    with pytest.raises(HvdError, match=part) as caught:
        config.load(["--config", str(file)], {})
    assert caught.value.reason == "CONFIG_INVALID" and caught.value.help


def test_missing_file() -> None:
    with pytest.raises(HvdError, match="No such file"):
        config.load(["--config", "/nowhere/hvd.toml"], {})


def test_tcp_needs_all_of_tls() -> None:
    with pytest.raises(HvdError, match="mutual TLS") as caught:
        config.load(["--listen", "127.0.0.1:1", "--tls-cert", "/c"], {})
    assert "--tls-key" in caught.value.help and "--tls-cert" not in caught.value.help
    assert config.load(
        ["--listen", "127.0.0.1:1", "--tls-cert", "/c", "--tls-key", "/k", "--tls-client-ca", "/a"], {}
    ).listen


def test_directories_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 4242)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/x")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/x/state")
    loaded = config.load([], {})
    assert (loaded.runtime_dir, loaded.state_dir) == (Path("/run/user/x/hvd"), Path("/home/x/state/hvd"))
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert config.default_runtime_dir() == Path("/home/x/state/hvd/run")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert config.load([], {}).runtime_dir == Path("/run/hvd")


def test_help_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        config.load(["--help"], {})
    text = capsys.readouterr().out
    assert all(f"--{setting.name.replace('_', '-')}" in text for setting in fields(Config))


@given(st.integers(0, 1 << 50), st.sampled_from(["", "K", "M", "G", "k", "Mi", "GiB", "MB"]))
def test_sizes(number: int, unit: str) -> None:
    factor = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[unit[:1].upper()]
    if unit in ("Mi",):
        with pytest.raises(ValueError, match="size"):
            config.parse_size(f"{number}{unit}")
    else:
        assert config.parse_size(f"{number}{unit}") == number * factor


@given(st.text())
def test_any_text_as_size_is_a_number_or_a_value_error(text: str) -> None:
    try:
        assert config.parse_size(text) >= 0
    except ValueError as error:
        assert "size" in str(error)


def test_documented_table_is_this_one() -> None:
    """Made with: python -c "from hvd.config import markdown_table as t; print(t(), end='')"."""
    page = Path(__file__).parents[2] / "docs/settings.md"
    assert config.markdown_table() in page.read_text()
