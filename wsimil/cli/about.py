"""Commands about this tool: what there is, whether it runs here, and a demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsimil.cli.app import ABOUT, AsJson, exits

commands = typer.Typer(rich_markup_mode="rich")


@commands.command(rich_help_panel=ABOUT)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")] = Path("demo"),
    slides: Annotated[int, typer.Option(min=8, help="How many slides to draw.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Decides what is drawn and how training starts.")] = 0,
) -> None:
    """Draw slides with known tumor, run extract, train and predict on them, and say how well that went."""
    with exits():
        from wsimil.stages import text
        from wsimil.stages.demo import demo as run_demo

        text.show_demo(run_demo(out, slides=slides, seed=seed, say=text.say), out)


@commands.command(rich_help_panel=ABOUT)
def doctor(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A folder that is going to be written to.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that this machine is ready; every line says PASS, WARN or FAIL, and what to do."""
    with exits():
        from wsimil.stages import text
        from wsimil.stages.doctor import diagnose

        checks = diagnose(out)
        text.show_checks(checks, as_json=as_json)
        raise typer.Exit(1 if any(check.verdict == "FAIL" for check in checks) else 0)


listing = typer.Typer(no_args_is_help=True, help="List what there is: encoders or methods.")
commands.add_typer(listing, name="list", rich_help_panel=ABOUT)


@listing.command("encoders")
def list_encoders(as_json: AsJson = False) -> None:
    """Encoders with their ids, sizes and licenses."""
    with exits():
        from wsimil.encoders import list_cards
        from wsimil.stages import text

        text.show_encoders(list_cards(), as_json=as_json)


@listing.command("methods")
def list_methods(as_json: AsJson = False) -> None:
    """MIL methods, with their hyperparameters."""
    with exits():
        from wsimil.mil import registry
        from wsimil.stages import text

        configs = {name: registry.config_class(name) for name in registry.names()}
        text.show_methods({name: config().model_dump(mode="json") for name, config in configs.items()}, as_json=as_json)


@commands.command("config", rich_help_panel=ABOUT)
def show_config(
    command: Annotated[str, typer.Argument(help="extract, train or plan.")],
    schema: Annotated[bool, typer.Option("--schema", help="JSON Schema, for editors.")] = False,
) -> None:
    """Print the default config of a command as YAML, to start a file of your own from."""
    with exits():
        from wsimil.config import FrozenConfig
        from wsimil.errors import ConfigError
        from wsimil.stages import text

        config: FrozenConfig
        if command == "extract":
            from wsimil.extraction.config import ExtractConfig

            config = ExtractConfig()
        elif command == "train":
            from wsimil.stages.train_config import TrainConfig

            config = TrainConfig()
        elif command == "plan":
            from wsimil.stages.study.config import example

            config = example()
        else:
            raise ConfigError(f"config {command!r}: wanted extract, train or plan")
        if schema:
            text.say_json(type(config).model_json_schema())
        else:
            typer.echo(config.to_yaml(), nl=False)
