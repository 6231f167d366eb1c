"""``launch config`` and configuration files, as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.options import ServeOptions
from launcher.options.option import options_of
from tests.cli.running import launch


def test_each_option_is_shown_with_its_value_and_source(tmp_path: Path) -> None:
    file = tmp_path / "launch.toml"
    file.write_text('# for tests\nport = 9000\ndtype = "fp32"\n')
    done = launch("config", "--config", str(file), "--instances", "2", "--trust-remote-code", env={"LAUNCH_PORT": "1"})
    assert done.returncode == 0, done.stderr
    lines = {tuple(line.split("#")[0].split(" = ")[0].split()): line for line in done.stdout.splitlines()}
    said = {name[0]: " ".join(line.split()) for name, line in lines.items() if name}
    assert said["instances"] == "instances = 2 # --instances"
    assert said["port"] == "port = 1 # LAUNCH_PORT"
    assert said["dtype"] == f'dtype = "fp32" # {file}:3'
    assert said["trust-remote-code"] == "trust-remote-code = true # --trust-remote-code"
    assert said["reserve-cores"] == 'reserve-cores = "auto" # default'
    assert "# max-length = # default" in " ".join(done.stdout.split())
    assert done.stderr == ""


def test_the_output_is_a_file_with_the_same_values(tmp_path: Path) -> None:
    given = ("--instances", "2", "--max-length", "64", "--model", 'a "b" \\ ü', "--no-strict", "--lengths", "x/y")
    first = launch("config", *given)
    file = tmp_path / "again.toml"
    file.write_text(first.stdout, encoding="utf-8")
    values = [json.loads(launch("config", "--json", *more).stdout) for more in (given, ("--config", str(file)))]
    assert [(each["option"], each["value"]) for each in values[0]] == [
        (each["option"], each["value"]) for each in values[1]
    ]


def test_the_json_form_has_all_options_of_serve() -> None:
    entries = json.loads(launch("config", "--json", "--port", "0").stdout)
    assert [each["option"] for each in entries] == [option.key for option in options_of(ServeOptions)]
    by_name = {each["option"]: each for each in entries}
    assert by_name["port"] == {"option": "port", "value": 0, "source": "flag", "place": "--port"}
    assert by_name["sysroot"] == {"option": "sysroot", "value": "/", "source": "default", "place": None}
    assert by_name["instances"]["value"] == "auto"
    assert by_name["max-length"]["value"] is None


def test_the_environment_can_name_the_file_and_a_flag_takes_precedence(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("port = 1")
    two.write_text("port = 2")
    environment = {"LAUNCH_CONFIG": str(one)}
    assert f"# {one}:1" in launch("config", env=environment).stdout
    assert f"# {two}:1" in launch("config", "--config", str(two), env=environment).stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "{file}:1: unknown key 'prot'; did you mean 'port'?"),
        ("\n\nport = 99999", "{file}:3: port 99999: must be an integer from 0 to 65535"),
        ("port = ", "the configuration file {file} is not valid TOML: "),
        ("[serve]\nport = 1", "{file}: [serve] is a table; options must be keys at the top level of the file"),
        (None, "the configuration file {file} cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_usage_error(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "launch.toml"
    if text is not None:
        file.write_text(text)
    done = launch("topology", "--config", str(file))
    assert done.returncode == 2
    assert done.stderr.startswith("launch: " + message.format(file=file))
    assert done.stdout == ""


def test_one_file_serves_several_commands(tmp_path: Path) -> None:
    file = tmp_path / "launch.toml"
    file.write_text('instances = 1\non-failure = "continue"\nport = 9000\nsample-seconds = 0.1\n')
    environment = {"LAUNCH_CONFIG": str(file)}
    for command in (("topology", "--json"), ("run", "--dry-run", "--json", "--", "true")):
        done = launch(*command, env=environment)
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["plan"]["instances"]) == 1


def test_an_unknown_variable_is_a_warning_on_standard_error() -> None:
    done = launch("config", env={"LAUNCH_INSTNACES": "2"})
    assert done.returncode == 0
    assert "warning: the environment variable LAUNCH_INSTNACES" in done.stderr
    assert "did you mean 'LAUNCH_INSTANCES'?" in done.stderr
