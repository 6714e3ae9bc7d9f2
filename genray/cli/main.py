"""The command line: `genray COMMAND …`. Heavy libraries are imported by the commands that need them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

import genray
from genray.cli.exit_codes import exit_codes
from genray.cli.judging import Compare, Evaluate, Export
from genray.cli.listing import Fields, List, Presets
from genray.cli.rendering import Generate, Navigate, Preview, Steer
from genray.cli.training import Bench, Sweep, Train

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Preview, tyro.conf.subcommand("preview")]
    | Annotated[Steer, tyro.conf.subcommand("steer")]
    | Annotated[Navigate, tyro.conf.subcommand("navigate")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Presets, tyro.conf.subcommand("presets")]
    | Annotated[Fields, tyro.conf.subcommand("fields")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, or print the version for `--version`.

    Exit codes: 2 for errors that the user can fix, 1 for failures; 75 (EX_TEMPFAIL) after SIGTERM and 130 after Ctrl-C
    for a run that can be resumed.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"genray {genray.__version__}")
        return
    command, overrides = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="genray",
        description="Train visual representations without a dataset: generators render the views.",
        args=arguments,
        return_unknown_args=True,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    with exit_codes():
        command(overrides)
