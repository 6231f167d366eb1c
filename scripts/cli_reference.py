"""Writes docs/cli.md: all commands and options, from the declarations that the command line is made from."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from itertools import groupby

from launcher.cli.app import BENCH_COMMANDS, COMMANDS
from launcher.cli.flags import Command
from launcher.options import ServeOptions
from launcher.options.bench import WORKLOAD, ThroughputCommandOptions
from launcher.options.option import Option, options_of

HEAD = """\
# Command line

This file is made by `scripts/docs`. `launch COMMAND --help` shows the same.

`launch` without a command is `launch serve`: `launch --instances 4` is `launch serve --instances 4`.
Exit codes: 0 success, 1 failure at run time, 2 usage error, 3 the machine cannot satisfy the request.

`--max-length N` can also be set by the environment variable `LAUNCH_MAX_LENGTH` or the key `max-length` of a
configuration file, and so can every option that is not marked *flag only*; see [configuration.md](configuration.md).
A switch such as `--strict` also has the form `--no-strict`.
"""


def reference() -> str:
    """The whole document."""
    commands = [*(("", each) for each in COMMANDS), *(("bench ", each) for each in BENCH_COMMANDS)]
    return HEAD + "".join(_command(prefix, command) for prefix, command in commands)


def _command(prefix: str, command: Command) -> str:
    name = command.function.__name__
    parts = [f"\n## launch {prefix}{name}\n", textwrap.fill(command.function.__doc__ or "", 120), ""]
    parts += ["```console", f"$ {command.example}", "```"]
    listed = command.options
    if (note := _shared(name)) is not None:
        parts += ["", note]
        shared = {each.name for each in _shared_options(name)}
        listed = [each for each in listed if each.name not in shared]
    return "\n".join([*parts, *_groups(listed)]) + "\n"


def _shared(name: str) -> str | None:
    """Where the options of a command are listed that it shares with serve."""
    if name in ("topology", "config"):
        return "Takes all options of [launch serve](#launch-serve), and:"
    if name == "throughput":
        groups = dict.fromkeys(each.declared.group for each in options_of(ServeOptions))
        own = {each.name for each in options_of(ThroughputCommandOptions)}
        absent = [each for each in options_of(ServeOptions) if each.name not in own]
        whole = [group for group in groups if all(e in absent for e in _of(group, options_of(ServeOptions)))]
        single = [f"`{each.flag}`" for each in absent if each.declared.group not in whole]
        without = [*(f"the group {group}" for group in whole), *single]
        return textwrap.fill(
            f"Takes the options of [launch serve](#launch-serve), except {', '.join(without[:-1])} and {without[-1]}; "
            "`--lengths` has another meaning and `--log-level` another default. And:",
            120,
        )
    return None


def _of(group: str | None, options: Sequence[Option]) -> list[Option]:
    return [each for each in options if each.declared.group == group]


def _shared_options(name: str) -> list[Option]:
    if name == "throughput":
        workload = {each.name for each in options_of(ThroughputCommandOptions) if each.declared.group == WORKLOAD}
        return [each for each in options_of(ServeOptions) if each.name not in workload]
    return list(options_of(ServeOptions))


def _groups(options: Sequence[Option]) -> Iterator[str]:
    ordered = sorted(options, key=lambda each: [e.declared.group for e in options].index(each.declared.group))
    for group, members in groupby(ordered, key=lambda each: each.declared.group):
        yield f"\n**{group or 'Arguments'}**\n"
        for each in members:
            yield textwrap.fill(
                _entry(each), 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
            )


def _entry(option: Option) -> str:
    declared = option.declared
    if declared.positional:
        return f"* `{declared.metavar}`: {declared.help}{' Required.' if option.default is MISSING else ''}"
    names = f"{option.flag}, {declared.short}" if declared.short else option.flag
    value = "" if option.kind is bool else " " + (declared.metavar or "|".join(option.choices))
    return f"* `{names}{value}`: {' '.join([declared.help, *_facts(option)])}"


def _facts(option: Option) -> Iterator[str]:
    if option.command_line_only:
        yield "*Flag only.*"
    default = option.declared.none if option.default is None else option.default
    if default is not None and default is not False and default != ():
        yield f"Default: `{default:g}`." if isinstance(default, float) else f"Default: `{default}`."
    if option.kind is not bool and not option.choices and (limits := option.limits):
        yield f"Must be {limits.removeprefix('of ')}."


if __name__ == "__main__":
    print(reference(), end="")
