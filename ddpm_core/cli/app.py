"""The commands, assembled."""

from __future__ import annotations

from typing import Annotated

import typer

import ddpm_core
from ddpm_core.cli.audit import audit
from ddpm_core.cli.average import average
from ddpm_core.cli.convert import convert
from ddpm_core.cli.edit import edit
from ddpm_core.cli.evaluate import evaluate
from ddpm_core.cli.export import export
from ddpm_core.cli.info import info
from ddpm_core.cli.plot import plot
from ddpm_core.cli.sample import sample
from ddpm_core.cli.train import train
from ddpm_core.cli.verify import verify

app = typer.Typer(
    help="Denoising diffusion probabilistic models (Ho et al. 2020): sample, train, evaluate.",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    sample,
    edit,
    train,
    plot,
    average,
    evaluate,
    convert,
    export,
    verify,
    audit,
    info,
):
    app.command()(_command)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"ddpm-core {ddpm_core.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error comes from, to report it.")
    ] = False,
) -> None:
    """Both are read elsewhere: by `_version`, and by `ddpm_core.cli.main`."""


def run(arguments: list[str]) -> int:
    """Runs a command and returns its exit status.

    ValueError, in one line, if the arguments are not understood.
    """
    command = typer.main.get_command(app)
    try:
        with command.make_context("ddpm-core", arguments or ["--help"]) as context:
            status = command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except Exception as error:
        # Usage errors; their class has moved between versions of typer, their method has not.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        raise ValueError(f"{describe()} (see --help)") from None
    return status if isinstance(status, int) else 0
