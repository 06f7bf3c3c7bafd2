"""The commands, assembled."""

from __future__ import annotations

import typer

from ddpm_core.cli.convert import convert
from ddpm_core.cli.evaluate import evaluate
from ddpm_core.cli.info import info
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
for _command in (sample, train, evaluate, convert, verify, info):
    app.command()(_command)


def run(arguments: list[str]) -> int:
    """Runs a command; ValueError, in one line, if the arguments are not understood."""
    command = typer.main.get_command(app)
    try:
        status = command.main(arguments or ["--help"], "ddpm-core", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # Usage errors; their class has moved between versions of typer, their method has not.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        raise ValueError(f"{describe()} (see --help)") from None
    return status if isinstance(status, int) else 0
