"""The precedence of sources, and the messages about unknown variables and keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import UsageError
from launcher.options import DoctorOptions, RunOptions, ServeOptions
from launcher.options.option import options_of
from launcher.options.sources import ConfigFile, Resolved, Sources, resolve, without_options

KNOWN = (ServeOptions, RunOptions, DoctorOptions)


def resolved(
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Mapping[str, object] | None = None,
    root: type = ServeOptions,
) -> Resolved:
    config = None if file is None else ConfigFile("a.toml", file, dict.fromkeys(file, 7))
    return resolve(options_of(root), Sources(flags or {}, environment or {}, config, KNOWN))


def found(name: str, result: Resolved) -> tuple[Any, str, str]:
    (value,) = (each for each in result.values if each.option.name == name)
    return value.value, value.source, value.place


@pytest.mark.parametrize(
    ("name", "flag", "variable", "key", "default"),
    [
        ("port", ("1", 1), ("2", 2), (3, 3), 8000),
        ("hang_factor", ("1.5", 1.5), ("2", 2.0), (3, 3.0), 5.0),
        ("strict", (False, False), ("yes", True), (True, True), False),
        ("dtype", ("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8"), "auto"),
        ("lengths", (Path("a"), Path("a")), ("b", Path("b")), ("c", Path("c")), None),
        ("max_length", ("10", 10), ("20", 20), (30, 30), None),
        ("instances", ("auto", None), ("2", 2), ("auto", None), None),
        ("model", ("a", "a"), ("b", "b"), ("c", "c"), "demo"),
    ],
)
def test_the_precedence_is_flag_environment_file_default(
    name: str, flag: tuple[Any, Any], variable: tuple[str, Any], key: tuple[Any, Any], default: Any
) -> None:
    option = next(each for each in options_of(ServeOptions) if each.name == name)
    flags, environment, file = {name: flag[0]}, {option.variable: variable[0]}, {option.key: key[0]}
    assert found(name, resolved(flags, environment, file)) == (flag[1], "flag", option.flag)
    assert found(name, resolved({}, environment, file)) == (variable[1], "environment", option.variable)
    assert found(name, resolved({}, {}, file)) == (key[1], "file", "a.toml:7")
    assert found(name, resolved()) == (default, "default", "default")


def test_an_empty_variable_counts_as_not_set() -> None:
    assert found("port", resolved({}, {"LAUNCH_PORT": ""}, {"port": 3}))[:2] == (3, "file")


def test_only_values_that_were_given_replace_the_defaults_of_a_command() -> None:
    given = resolved({"instances": "2"}, {"LAUNCH_STRICT": "1"}, {"sysroot": "/tmp"}, RunOptions).given(RunOptions)
    assert given == {"instances": 2, "strict": True, "sysroot": Path("/tmp")}


def test_keys_and_variables_of_other_commands_are_checked_and_ignored() -> None:
    result = resolved({}, {"LAUNCH_GRACE_SECONDS": "x"}, {"on-failure": "restart"})
    assert result.warnings == ()
    assert "on_failure" not in {each.option.name for each in result.values}
    with pytest.raises(UsageError, match=r"a\.toml:7: on-failure retry: must be one of stop, continue, restart"):
        resolved({}, {}, {"on-failure": "retry"})


def test_keys_may_be_written_as_in_python() -> None:
    assert found("max_length", resolved({}, {}, {"max_length": 5}))[0] == 5
    with pytest.raises(UsageError, match="'max_length' and 'max-length' are the same option"):
        resolved({}, {}, {"max-length": 5, "max_length": 5})


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"prot": 1}, "a.toml:7: unknown key 'prot'; did you mean 'port'?"),
        ({"max_lenght": 1}, "a.toml:7: unknown key 'max_lenght'; did you mean 'max-length'?"),
        ({"dry-run": True}, "a.toml:7: unknown key 'dry-run'"),
        ({"serve": {"port": 1}}, "a.toml:7: [serve] is a table; options must be keys at the top level of the file"),
        ({"port": "80"}, "a.toml:7: port '80': must be an integer from 0 to 65535"),
        ({"port": True}, "a.toml:7: port true: must be an integer from 0 to 65535"),
        ({"port": -1}, "a.toml:7: port -1: must be an integer from 0 to 65535"),
        ({"dtype": "fp8"}, "a.toml:7: dtype fp8: must be one of auto, bf16, fp32, int8"),
        ({"instances": []}, "a.toml:7: instances []: must be an integer of at least 1, or 'auto'"),
    ],
)
def test_bad_keys_and_values_of_a_file_are_refused_with_their_location(
    file: Mapping[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        resolved({}, {}, file)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("LAUNCH_PORT", "http", "LAUNCH_PORT http: must be an integer from 0 to 65535"),
        ("LAUNCH_STRICT", "maybe", "LAUNCH_STRICT maybe: must be true or false"),
        ("LAUNCH_INSTANCES", "0", "LAUNCH_INSTANCES 0: must be an integer of at least 1, or 'auto'"),
        ("LAUNCH_DTYPE", "BF16", "LAUNCH_DTYPE BF16: must be one of auto, bf16, fp32, int8"),
    ],
)
def test_bad_variables_are_refused_by_name(variable: str, text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        resolved({}, {variable: text})
    assert str(error.value) == message


def test_unknown_variables_are_a_warning_with_the_nearest_name() -> None:
    result = resolved({}, {"LAUNCH_MODLE": "x", "LAUNCH_RUN_INSTANCES": "2", "LAUNCH_CONFIG": "f", "HOME": "/"})
    assert result.warnings == (
        "the environment variable LAUNCH_MODLE is not an option and is ignored; did you mean 'LAUNCH_MODEL'?",
    )


SERVICE = {
    "LAUNCH_SERVICE_HOST": "10.0.0.1",
    "LAUNCH_SERVICE_PORT": "80",
    "LAUNCH_SERVICE_PORT_HTTP": "80",
    "LAUNCH_PORT": "tcp://10.0.0.1:80",
    "LAUNCH_PORT_80_TCP": "tcp://10.0.0.1:80",
    "LAUNCH_PORT_80_TCP_PROTO": "tcp",
    "LAUNCH_PORT_80_TCP_PORT": "80",
    "LAUNCH_PORT_80_TCP_ADDR": "10.0.0.1",
}


def test_variables_that_kubernetes_sets_for_a_service_are_explained() -> None:
    with pytest.raises(UsageError, match=r"LAUNCH_PORT tcp://10\.0\.0\.1:80: .*enableServiceLinks: false") as error:
        resolved({}, SERVICE)
    assert "--port" in str(error.value)
    overridden = resolved({"port": "9000"}, SERVICE)
    assert found("port", overridden) == (9000, "flag", "--port")
    assert overridden.warnings == ()


def test_programs_do_not_inherit_the_options_of_the_command_that_starts_them() -> None:
    environment = {
        "LAUNCH_INSTANCES": "4",
        "LAUNCH_GRACE_SECONDS": "1",
        "LAUNCH_CONFIG": "run.toml",
        "LAUNCH_PORT": "9000",
        "LAUNCH_RUN_INSTANCE": "0",
        "PATH": "/bin",
    }
    left = without_options(environment, RunOptions)
    assert left == {"LAUNCH_PORT": "9000", "LAUNCH_RUN_INSTANCE": "0", "PATH": "/bin"}
