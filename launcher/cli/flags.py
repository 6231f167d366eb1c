"""Creates commands from option dataclasses: their flags, their help, and the arguments of their functions.

A command is a function whose parameters are option dataclasses. Typer reads signatures, so each command gets one
that is derived from the definitions of its options; no flag is written by hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from functools import partial
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

import typer
from typer.core import TyperCommand

from launcher.errors import UsageError
from launcher.options import DoctorOptions, RunOptions, ServeOptions
from launcher.options.definitions import OUTPUT
from launcher.options.option import Option, option, options_of
from launcher.options.sources import CONFIG_VARIABLE, ConfigFile, ConfigurationSources, Resolved, Sources, resolve
from launcher.options.values import build

# A configuration file and the environment may contain the options of all of these, whichever command reads them.
ROOTS = (ServeOptions, RunOptions, DoctorOptions)
NO = "no_"
# Parameters of commands that are not options themselves.
SOURCES = (Resolved, ConfigurationSources)

EPILOG = "Each option is also an environment variable (LAUNCH_MAX_LENGTH) and a key of --config FILE (max-length)."


@dataclass(frozen=True, slots=True)
class ConfigOptions:
    """The configuration file."""

    command_line_only: ClassVar[bool] = True

    config: Path | None = option(
        None, f"Read options from a TOML file (or set {CONFIG_VARIABLE}).", group=OUTPUT, metavar="FILE"
    )


(CONFIG,) = options_of(ConfigOptions)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the command line.

    The parameters of ``function`` are option dataclasses; one of type ``Resolved`` receives all values with their
    sources, one of type ``ConfigurationSources`` the means to read the sources again. Options of the groups
    ``unlisted`` are accepted but not listed in help. ``settings`` are passed to the click context.
    """

    function: Callable[..., None]
    example: str
    unlisted: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def roots(self) -> dict[str, type]:
        """The parameters of the function, and their types."""
        return {name: hint for name, hint in get_type_hints(self.function).items() if name != "return"}

    @property
    def options(self) -> list[Option]:
        """Its options, including ``--config`` if a configuration file can set any of them."""
        own = [each for root in self.roots.values() if root not in SOURCES for each in options_of(root)]
        return [*own, CONFIG] if any(not each.command_line_only for each in own) else own


def keep_text(params: Sequence[Any]) -> None:
    """Make click parameters return their values as typed, without typer's conversion.

    ``launcher.options`` converts and validates the values of all sources. Typer would also convert the parameters that
    were not given, for which it imports pydantic and builds an adapter each; that takes longer than a report.
    """
    for param in params:
        setattr(param, "process_value", partial(_process, param, param.process_value))  # noqa: B010 - for mypy


def _process(param: Any, convert: Callable[[Any, Any], Any], ctx: Any, value: Any) -> Any:
    if value is None and not param.required:
        return None
    return value if value and param.callback is None else convert(ctx, value)


def without_metavars(params: list[Any]) -> list[Any]:
    """The click parameters, the flags among them without typer's placeholder ``<bool>`` in help."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = " "
    return params


class OptionCommand(TyperCommand):
    """A command whose values are converted by ``launcher.options``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        keep_text(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """See the base class."""
        return without_metavars(super().get_params(ctx))


def add_command(app: typer.Typer, command: Command) -> None:
    """Add a command to ``app``, with a flag for each of its options."""
    options, roots = command.options, command.roots

    def run(ctx: typer.Context, **values: Any) -> None:
        flags = _flags(ctx, options, values)
        resolved = _resolve(options, flags)
        if resolved.warnings:
            from launcher.host.log import write_line  # rarely needed

            for warning in resolved.warnings:
                write_line(f"launch: warning: {warning}")
        path = _config_path(flags)
        again = ConfigurationSources(partial(_resolve, options, flags), str(path) if path else None)
        command.function(
            **{
                name: {Resolved: resolved, ConfigurationSources: again}.get(root) or build(root, resolved.given(root))
                for name, root in roots.items()
            }
        )

    parameters = [Parameter("ctx", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    parameters += [each for one in options for each in _parameters(one, command.unlisted)]
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    app.command(
        command.function.__name__,
        cls=OptionCommand,
        help=f"{command.function.__doc__}\n\nExample: {command.example}",
        epilog=EPILOG if CONFIG in options else None,
        context_settings=dict(command.settings),
    )(run)


def _resolve(options: Sequence[Option], flags: Mapping[str, Any]) -> Resolved:
    if CONFIG not in options:
        return resolve(options, Sources(flags, {}, None, ()))
    path = _config_path(flags)
    return resolve(options, Sources(flags, os.environ, _read(path) if path else None, ROOTS))


def _config_path(flags: Mapping[str, Any]) -> str | None:
    return flags.get(CONFIG.name) or os.environ.get(CONFIG_VARIABLE)


def _read(path: str) -> ConfigFile:
    from launcher.cli.config_file import read_config  # only with --config

    return read_config(Path(path))


def _flags(ctx: typer.Context, options: Sequence[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """The flags given on the command line, by option name."""
    given = {name for name in values if (source := ctx.get_parameter_source(name)) and source.name == "COMMANDLINE"}
    flags = {each.name: values[each.name] for each in options if each.name in given}
    for each in options:
        if each.default is MISSING and each.name not in flags:
            raise UsageError(f"{each.declared.metavar} is missing; see --help")
        if NO + each.name in given:
            if each.name in flags:
                raise UsageError(f"{each.flag} and --no-{each.key} exclude each other; keep one of them")
            flags[each.name] = False
    return flags


def _parameters(one: Option, unlisted: Sequence[str]) -> Iterator[Parameter]:
    declared = one.declared
    hidden = declared.group in unlisted
    if declared.positional:
        info: Any = typer.Argument(help=declared.help, metavar=declared.metavar, show_default=False)
        # Never required by the parser, so that a missing one is reported like other errors, by ``_flags``.
        yield _parameter(one.name, None, list[str] | None, info)
        return
    names = [one.flag] if declared.short is None else [one.flag, declared.short]
    info = typer.Option(
        *names,
        help=_help(one),
        metavar=_metavar(one),
        rich_help_panel=declared.group,
        show_default=False,
        hidden=hidden,
        autocompletion=_completion(one) if one.choices else None,
    )
    yield _parameter(one.name, False if one.kind is bool else None, _annotation(one), info)
    if one.kind is bool and not one.command_line_only:
        # Overrides the environment and the file. Hidden, because it would double the width of the flags in help.
        no = typer.Option(f"--no-{one.key}", hidden=True, show_default=False)
        yield _parameter(NO + one.name, False, bool, no)


def _parameter(name: str, default: Any, annotation: Any, info: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info])


def _annotation(one: Option) -> Any:
    """The type for the parser. Numbers and choices stay text: ``launcher.options`` reads them from all sources."""
    if one.kind is bool:
        return bool
    if one.many:
        return list[str] | None
    return (Path if one.kind is Path else str) | None


def _completion(one: Option) -> Callable[[str], list[str]]:
    """The completion of a choice in the shell."""
    return lambda incomplete: [choice for choice in one.choices if choice.startswith(incomplete)]


def _metavar(one: Option) -> str | None:
    """The placeholder of the value in help. Choices are listed in the text, where lines can wrap."""
    if one.kind is bool:
        return " "  # instead of typer's <bool>
    return one.declared.metavar or (one.name.rpartition("_")[2].upper() if one.choices else None)


def _help(one: Option) -> str:
    default = one.declared.none if one.default is None else one.default
    notes = [", ".join(one.choices)] if one.choices else []
    if default is not None and default is not False and default != ():
        notes.append(f"default: {default:g}" if isinstance(default, float) else f"default: {default}")
    return f"{one.declared.help.removesuffix('.')} ({'; '.join(notes)})." if notes else one.declared.help
