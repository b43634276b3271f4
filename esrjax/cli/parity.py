"""The verb parity: `esrjax parity NAME`, and `esrjax parity verify FILE`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from esrjax.cli import ensembles
from esrjax.cli.options import (
    BadOption,
    Body,
    Checkpoints,
    Json,
    Name,
    Size,
    by_name,
    print_json,
    sizes,
)

LR = 1e-3  # of the steps that are compared


class WithVerify(TyperCommand):
    """A verb whose first word may be `verify` in the place of a method."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """That of `verify`, where it is the first word."""
        if args[:1] == ["verify"]:
            return get_command(_verifier).make_context("parity verify", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


_verifier = typer.Typer(add_completion=False, rich_markup_mode="rich")


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    app.command(cls=WithVerify)(parity)


def parity(
    name: Name,
    golden: Annotated[
        Path | None, typer.Option(help="An .npz of inputs and outputs that PyTorch gave.")
    ] = None,
    torch: Annotated[
        str | None,
        typer.Option(
            help="A PyTorch network, run beside ours, with drawn weights where none are given.",
            metavar="FILE.py:CLASS",
        ),
    ] = None,
    torch_args: Annotated[
        str, typer.Option(help="What the class is built with.", metavar="JSON")
    ] = "{}",
    checkpoint: Checkpoints = None,
    size: Size = None,
    data: Annotated[
        str | None, typer.Option(help="With --torch, also a set: its name or folder.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of drawn pictures and weights.", min=0)] = 0,
    certificate: Annotated[
        Path | None,
        typer.Option("-o", "--certificate", help="Write one: a .json, or into the .safetensors."),
    ] = None,
    body: Body = "auto",
    as_json: Json = False,
) -> None:
    """Whether the network gives what PyTorch gave; exit code 0 exactly when it does.

    `esrjax parity verify FILE` asks again what a certificate says.
    """
    from esrjax.bridge import certificate as paper
    from esrjax.bridge.parity import Question
    from esrjax.bridge.parity import parity as compare

    files = by_name(checkpoint, [name])
    if ensembles.is_ensemble(name):
        alone = None if torch or data or certificate else golden
        found = ensembles.parity(name, files, sizes(size), alone, body)
        raise typer.Exit(not _printed(found, as_json).passed)
    asked = Question(
        method=name,
        sizes=sizes(size),
        checkpoint=_path(files.get(name)),
        golden=_path(golden),
        torch=torch,
        torch_args=_arguments(torch_args),
        data=data,
        seed=seed,
        body=body,
    )
    if certificate is not None:
        paper.require_place(certificate, files.get(name))
    answer = compare(asked, _rules() if torch else ())
    _printed(answer.outcome, as_json)
    if certificate is not None:
        paper.write(certificate, paper.certify(asked, answer))
    raise typer.Exit(not answer.outcome.passed)


@_verifier.command()
def verify(
    file: Annotated[
        Path, typer.Argument(help="A certificate: a .json, or a .safetensors that holds one.")
    ],
    as_json: Json = False,
) -> None:
    """Ask again what a certificate says; exit code 0 exactly when it is so."""
    from esrjax.bridge import certificate as paper
    from esrjax.cli.tables import say

    found = paper.verify(file, _rules() if paper.read(file).question.torch else ())
    if as_json:
        print_json(found.as_dict())
    else:
        for line in found.differences:
            say(f"not as certified: {line}")
        for line in found.notes:
            say(f"note: {line}")
        verdict = "as certified" if not found.differences else "not as certified"
        equal = "equal" if found.certificate.passed else "not equal"
        say(f"{found.certificate.question.method}: {verdict} ({equal} to PyTorch)")
    raise typer.Exit(not found.passed)


def _rules() -> Any:
    """Adam, AdamW and Muon as they are, but for an epsilon that Muon's two sides use unlike.

    Of Muon one step: from the second on, optax corrects the bias of its momentum, PyTorch not.
    Leaves are `(out, in)`, as PyTorch has them.
    """
    import jax
    import optax
    from optax import contrib

    from esrjax.bridge.rule import Rule

    there_and_back, tiny = (1.0, -0.5), 1e-30
    decayed = {"lr": LR, "weight_decay": 0.01}
    plain = {"lr": LR, "weight_decay": 0.0, "eps": tiny}
    axes = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    adamw = optax.adamw(LR, weight_decay=0.01)
    muon = contrib.muon(
        LR, eps=tiny, muon_weight_dimension_numbers=lambda held: jax.tree.map(lambda _: axes, held)
    )
    return (
        Rule(theirs="Adam", said={"lr": LR}, ours=optax.adam(LR), scales=there_and_back),
        Rule(theirs="AdamW", said=decayed, ours=adamw, scales=there_and_back),
        Rule(theirs="Muon", said=plain, ours=muon, matrices=True),
    )


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _arguments(text: str) -> dict[str, Any]:
    try:
        held = json.loads(text)
    except ValueError as error:
        raise _no_arguments(text, f"is not JSON: {error}") from error
    if not isinstance(held, dict):
        raise _no_arguments(text, "is no JSON object")
    return held  # pyright: ignore[reportUnknownVariableType] # keys of JSON are strings


def _no_arguments(text: str, why: str) -> BadOption:
    return BadOption(
        f"--torch-args {text!r} {why}",
        rule="the class is built with keyword arguments, a JSON object",
        remedy="""write for instance --torch-args '{"channels": 28}'""",
    )


# --- what it prints ----------------------------------------------------------------------------


def _printed(outcome: Any, as_json: bool) -> Any:
    print_json(outcome.as_dict()) if as_json else _show(outcome)
    return outcome


def _show(outcome: Any) -> None:
    from esrjax.cli.tables import say, show_parity

    if not hasattr(outcome, "layers"):
        show_parity(outcome)
        return
    _show_cases(outcome)
    _show_layers(outcome.layers)
    if outcome.data is not None:
        _show_data(outcome.data)
    for note in outcome.notes:
        say(f"note: {note}")
    verdict = "[green]equal[/green]" if outcome.passed else "[red]not equal[/red]"
    say(f"{outcome.method}, {outcome.form} form: {verdict} to PyTorch", markup=True)


def _show_cases(outcome: Any) -> None:
    from esrjax.cli.tables import show_table

    rows = [
        {
            "case": case.case,
            "precision": case.precision,
            "max |difference|": f"{case.max_abs:.2e}",
            "allowed": f"{case.allowed:.2e}",
            "8-bit changes": case.changed,
            "worst": case.worst,
            "passed": case.passed,
        }
        for case in outcome.cases
    ]
    show_table(rows, list(rows[0]))


def _show_layers(layers: Any) -> None:
    from esrjax.cli.tables import say

    if layers.first is None:
        say(f"parts: equal wherever both have them ({layers.compared} arrays)")
    else:
        say(f"[bold]they part[/bold] {layers.first.place}", markup=True)
        say(f"  {layers.first.reason}")
    for title, paths in (
        ("cut differently, without effect", layers.apart),
        ("only in PyTorch", layers.only_theirs),
        ("only here", layers.only_ours),
        ("of no common shape", layers.unfit),
    ):
        if paths:
            more = f" and {len(paths) - 8} more" if len(paths) > 8 else ""
            say(f"{title}: {', '.join(paths[:8])}{more}")


def _show_data(data: Any) -> None:
    from esrjax.cli.tables import say

    say(
        f"{data.pictures} pictures, {data.spec}: {data.ours:.4f} dB, PyTorch {data.theirs:.4f} dB: "
        f"{data.mdb:+.3f} mdB; {data.changed:,} of {data.values:,} 8-bit values differ"
    )
