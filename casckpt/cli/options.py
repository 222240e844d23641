"""The options every command has, the command class with examples in its help, and lazy loading."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from casckpt.cli.output import Output, Settings

_Function = TypeVar("_Function", bound=Callable[..., Any])

_EVERYWHERE = frozenset({"--store", "--json", "--quiet", "--color", "--debug", "--help"})
"""The options that every command has."""


def settings_of(context: click.Context) -> Settings:
    """Return the settings of this run of the program."""
    settings: Settings = context.find_root().ensure_object(Settings)
    return settings


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep a global option; one that was not given leaves what stood before the command."""
    if value is not None and value is not False:
        setattr(settings_of(context), str(parameter.name), value)


def global_options(function: _Function) -> _Function:
    """Add --store, --json, -q, --color and --debug; their values end up in the settings."""

    def option(*names: str, **attributes: Any) -> Callable[[_Function], _Function]:
        return click.option(*names, expose_value=False, callback=_remember, **attributes)

    for decorate in (
        option("--debug", is_flag=True, help="Show the traceback of an error."),
        option(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            help="Colour the output; auto obeys NO_COLOR and the terminal.",
        ),
        option(
            "-q",
            "--quiet",
            is_flag=True,
            help="Print names only, one a line (ids of checkpoints), and no remarks.",
        ),
        option("--json", is_flag=True, help="Print JSON: one document, or many, one a line."),
        option(
            "--store",
            metavar="PATH",
            help="The store. Default: CASCKPT_STORE, else the nearest .casckpt upward.",
        ),
    ):
        function = decorate(function)
    return function


class Command(click.Command):
    """A command whose help ends with examples, and lists the global options by themselves."""

    examples: Sequence[str] = ()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then those that all commands have."""
        own: list[tuple[str, str]] = []
        everywhere: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None or isinstance(parameter, click.Argument):
                continue
            (own if _EVERYWHERE.isdisjoint(parameter.opts) else everywhere).append(record)
        for title, records in (("Options", own), ("Everywhere", everywhere)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(formatter, self.examples)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write a section of examples, unwrapped, as they are typed."""
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def command(
    name: str, *, examples: Sequence[str] = ()
) -> Callable[[Callable[..., int | None]], Command]:
    """Make a command of a function that takes an `Output` first, then its parameters.

    What the function returns is the exit code; None is 0.
    """

    def decorate(function: Callable[..., int | None]) -> Command:
        def call(**parameters: Any) -> int | None:
            return function(Output(settings_of(click.get_current_context())), **parameters)

        call.__doc__ = function.__doc__
        call.__name__ = function.__name__
        # Parameters declared by decorators under this one live on the function.
        call.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        made = click.command(name, cls=Command)(global_options(call))
        made.examples = examples
        return made

    return decorate


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line helps, and imports on call.

    Args:
        table: for each command the module and attribute it is, and its line in the list.
        sections: title and command names, in the order of the help.
        examples: lines for the end of the help.
    """

    def __init__(
        self,
        *arguments: Any,
        table: Mapping[str, tuple[str, str]],
        sections: Sequence[tuple[str, Sequence[str]]],
        examples: Sequence[str] = (),
        **attributes: Any,
    ) -> None:
        """Keep the table; nothing is imported."""
        super().__init__(*arguments, **attributes)
        self.table = table
        self.sections = sections
        self.examples = examples

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        return [name for _, names in self.sections for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the one command that is called."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        loaded: click.Command = getattr(importlib.import_module(module), attribute)
        return loaded

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when there is none of that name."""
        if args and args[0] not in self.table and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], self.table, n=1, cutoff=0.5)
            remedy = f"`casckpt {near[0]}`, or see `casckpt --help`" if near else ""
            ctx.fail(f"there is no command {args[0]!r}\n{remedy}".rstrip())
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands first, then the options."""
        self.format_commands(ctx, formatter)
        Command.format_options(self, ctx, formatter)  # type: ignore[arg-type]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section, without importing them."""
        width = max(map(len, self.table))
        for title, names in self.sections:
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), self.table[name][1]) for name in names])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(formatter, self.examples)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete command names without importing the commands."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=self.table[name][1])
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)
