"""Options by name: building them from a flat mapping, and the errors for unknown names and invalid values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.errors import UsageError
from launcher.options import MachineOptions, RunOptions, RuntimeOptions, ServeOptions, from_flat, to_flat
from launcher.options.option import ClassPath, options_of
from launcher.options.values import parse

ROOTS = (ServeOptions, RunOptions)


def test_values_reach_the_fields_of_all_parts() -> None:
    options = from_flat(
        ServeOptions, {"instances": 2, "dtype": "fp32", "max_body_bytes": 10, "log_json": True, "measure": True}
    )
    assert options.machine.instances == 2
    assert options.model.dtype == "fp32"
    assert options.front.body_bytes == 10
    assert options.log.json is True
    assert options.model.measure is True


def test_without_values_all_options_have_their_defaults() -> None:
    assert from_flat(ServeOptions, {}) == ServeOptions()
    assert from_flat(RunOptions, {}, program=("true",)) == RunOptions(program=("true",))


def test_defaults_of_a_part_apply_only_in_that_part() -> None:
    options = from_flat(RunOptions, {"instances": 3}, program=("true",))
    assert options.machine == MachineOptions(reserve_cores=0, instances=3)
    assert options.runtime == RuntimeOptions(allocator="system")


@pytest.mark.parametrize("options", [ServeOptions(), RunOptions(program=("true",))])
def test_flat_values_build_the_same_options_again(options: Any) -> None:
    flat = to_flat(options)
    program = flat.pop("program", None)
    assert from_flat(type(options), flat, **({"program": program} if program else {})) == options


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("instances", "auto", None),
        ("instances", None, None),
        ("reserve_cores", 0, 0),
        ("max_length", None, None),
        ("drain_seconds", 3, 3.0),
        ("sysroot", "/tmp", Path("/tmp")),
        ("lengths", Path("lengths.txt"), Path("lengths.txt")),
    ],
)
def test_valid_values_are_accepted(name: str, value: object, expected: object) -> None:
    found = to_flat(from_flat(ServeOptions, {name: value}))[name]
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("instances", 0, "instances 0: must be an integer of at least 1, or 'auto'"),
        ("instances", "2", "instances '2': must be an integer of at least 1, or 'auto'"),
        ("instances", True, "instances true: must be an integer of at least 1, or 'auto'"),
        ("port", 65536, "port 65536: must be an integer from 0 to 65535"),
        ("port", 80.0, "port 80.0: must be an integer from 0 to 65535"),
        ("port", None, "port None: must be an integer from 0 to 65535"),
        ("dtype", "fp8", "dtype fp8: must be one of auto, bf16, fp32, int8"),
        ("strict", 1, "strict 1: must be true or false"),
        ("strict", "true", "strict 'true': must be true or false"),
        ("drain_seconds", float("inf"), "drain_seconds inf: must be a number of at least 0"),
        ("drain_seconds", float("nan"), "drain_seconds nan: must be a number of at least 0"),
        ("drain_seconds", "30", "drain_seconds '30': must be a number of at least 0"),
        ("sysroot", 1, "sysroot 1: must be a path"),
        ("model", 1, "model 1: must be text"),
    ],
)
def test_invalid_values_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(UsageError) as error:
        from_flat(ServeOptions, {name: value})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("instnaces", "unknown option 'instnaces'; did you mean 'instances'?"),
        ("body_bytes", "unknown option 'body_bytes'; did you mean 'max_body_bytes'?"),
        ("qqqq", "unknown option 'qqqq'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        from_flat(ServeOptions, {name: 1})
    assert str(error.value) == message


def test_options_excluded_from_a_part_are_unknown() -> None:
    with pytest.raises(UsageError, match="unknown option 'classes'"):
        from_flat(RunOptions, {"classes": "auto"}, program=("true",))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("instances", "4", 4),
        ("instances", "auto", None),
        ("strict", "1", True),
        ("strict", "No", False),
        ("hang_factor", "2", 2.0),
        ("sysroot", "/tmp", Path("/tmp")),
        ("model", "123", "123"),
        ("dtype", "int8", "int8"),
    ],
)
def test_text_is_parsed_by_the_type_of_the_option(name: str, text: str, expected: object) -> None:
    (option,) = (each for each in options_of(ServeOptions) if each.name == name)
    assert parse(option, text, option.variable) == expected


@pytest.mark.parametrize(
    ("name", "text"), [("instances", "1_0"), ("instances", ""), ("strict", "maybe"), ("drain_seconds", "30s")]
)
def test_text_that_is_not_a_value_is_refused_with_its_source(name: str, text: str) -> None:
    (option,) = (each for each in options_of(ServeOptions) if each.name == name)
    with pytest.raises(UsageError, match=f"{option.variable} {text}: must be "):
        parse(option, text, option.variable)


@pytest.mark.parametrize("root", ROOTS)
def test_every_option_is_declared_with_help_a_group_and_a_valid_default(root: type) -> None:
    for option in options_of(root):
        assert option.declared.help.endswith("."), option.name
        if option.declared.positional:
            continue
        assert option.declared.group is not None, option.name
        kind = tuple if option.many else option.kind
        assert option.default is None or isinstance(option.default, kind), option.name
        assert option.default is not None or option.optional, option.name
        if option.choices:
            assert option.default in option.choices, option.name


def test_one_name_means_the_same_in_all_commands() -> None:
    by_name: dict[str, set[tuple[object, ...]]] = {}
    for root in ROOTS:
        for option in options_of(root):
            by_name.setdefault(option.name, set()).add((option.declared, option.kind, option.choices))
    assert {name for name, forms in by_name.items() if len(forms) > 1} == set()


def test_a_task_may_be_a_class_of_the_users_own() -> None:
    place = from_flat(ServeOptions, {"task": "package.module:Class"}).model.task
    assert isinstance(place, ClassPath)
    assert place == "package.module:Class"
    for wrong in ("module:", ":Class", "module", "a b:C", "module:Class:other", "1a:B"):
        with pytest.raises(UsageError, match=r"must be one of auto, .*, or a custom class as module:Class"):
            from_flat(ServeOptions, {"task": wrong})
    with pytest.raises(UsageError, match="must be one of"):
        from_flat(ServeOptions, {"dtype": "module:Class"})
