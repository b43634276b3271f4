"""Commands with help from docstrings, shared options, parsers of their values, and their errors."""

import ast
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from esrjax import registry
from esrjax.cli.output import only_json_on_stdout
from esrjax.errors import InvalidArgument
from esrjax.method import Ensemble

CHECKPOINT_HELP = "A .pth or .safetensors file, a run directory, or the key of downloaded weights"

# The word for the key in the metavar of a repeatable option: KEY=VALUE, [METHOD=]FILE.
_KEYED = re.compile(r"\[?(?P<key>[A-Z:]+)=\]?(?P<value>.+)")
# `name: text` or `name (METAVAR): text` in the section `Args` of a docstring.
_ARG = re.compile(r"^    (\w+)(?: \((.+?)\))?: (.+?)(?=^    \w|\Z)", re.MULTILINE | re.DOTALL)


class Command(TyperCommand):
    """A command whose docstring has the help of its own arguments and options, as `Args`.

    `name (METAVAR): text` also sets the text that stands for the value. Options that commands share
    bring their help along. A `bool` is an option without a value, and without a `--no-` form.
    """

    def __init__(self, *args: Any, help: str | None = None, **kwargs: Any):
        text, _, section = (help or "").partition("\n\nArgs:\n")
        super().__init__(*args, help=text, **kwargs)
        params: dict[str | None, Any] = {param.name: param for param in self.params}
        for param in params.values():
            param.secondary_opts = []
        for name, metavar, description in _ARG.findall(section):
            params[name].help = " ".join(description.split())
            params[name].metavar = metavar or params[name].metavar

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; of an option with two values, click would silently use the last.

        Raises:
            InvalidArgument: An option that takes one value is repeated, or one that takes several
                (`KEY=VALUE`) has two for one key.
        """
        if not ctx.resilient_parsing:  # completion in a shell
            self._check_repetitions(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; with `--json` its document alone goes to standard output."""
        with only_json_on_stdout() if ctx.params.get("as_json") else nullcontext():
            return super().invoke(ctx)

    def _check_repetitions(self, ctx: Any, args: Sequence[str]) -> None:
        command: Any = copy(self)
        command.params = [copy(param) for param in self.params]
        for param in command.params:
            param.multiple = param.param_type_name == "option"
        values = command.make_parser(ctx).parse_args(list(args))[0]
        for param in self.params:
            texts = values.get(param.name) or []
            if param.param_type_name == "option" and len(texts) > 1:
                _check_repetition(param, texts)


def _check_repetition(option: Any, texts: Sequence[str]) -> None:
    name = option.opts[-1]
    if not option.multiple:
        values = "" if option.is_flag else f": {', '.join(texts)}"
        raise InvalidArgument(
            f"{name} is repeated{values}",
            rule=f"{name} can be given once",
            remedy=f"leave all but one {name} out",
        )
    counts = Counter(text.partition("=")[0] for text in texts if "=" in text)
    for key in [key for key, count in counts.items() if count > 1]:
        if metavar := _KEYED.fullmatch(option.metavar or ""):
            same = [text for text in texts if text.startswith(f"{key}=")]
            raise InvalidArgument(
                f"{name} has several values for {key!r}: {', '.join(same)}",
                rule=f"{name} {metavar[0]}: one {metavar['value']} for each {metavar['key']}",
                remedy=f"give each a {metavar['key']} of its own, or leave all but one out",
            )


class CommandGroup(typer.Typer):
    """A group of commands, which prints its help when it is run without a command.

    Args:
        description: Its help.
    """

    def __init__(self, description: str):
        super().__init__(help=description, no_args_is_help=True)

    def command(self, name: str | None = None, **kwargs: Any) -> Any:
        """Return a decorator that adds a function to the group, as a `Command`."""
        return super().command(name, cls=Command, **kwargs)


def output(show_default: bool | str = True) -> Any:
    """Return the option `-o`, `--output`.

    Args:
        show_default: The text that the help shows as its default.
    """
    return Option("-o", "--output", show_default=show_default)


def checkpoints(show_default: str) -> Any:
    """Return the option `--checkpoint [METHOD=]FILE`, which can be repeated.

    Args:
        show_default: The text that the help shows as its default.
    """
    help = (
        f"{CHECKPOINT_HELP}; with several methods, or for the members of an ensemble, METHOD=FILE. "
        "Repeatable."
    )
    return Option(help=help, metavar="[METHOD=]FILE", show_default=show_default)


MethodArgument = Annotated[
    str, Argument(help="A method; see `esrjax method list`.", metavar="METHOD")
]
OptionalMethodArgument = Annotated[
    str | None,
    Argument(
        help="A method; see `esrjax method list`. None for that of the checkpoint.",
        metavar="[METHOD]",
        show_default=False,
    ),
]
MethodsArgument = Annotated[
    list[str], Argument(help="One or more methods; see `esrjax method list`.", metavar="METHOD")
]
CheckpointOption = Annotated[
    Path | None, Option(help=f"{CHECKPOINT_HELP}.", show_default="shipped weights")
]
CheckpointsOption = Annotated[list[str] | None, checkpoints("shipped weights")]
HparamsOption = Annotated[
    list[str] | None,
    Option(
        "--hparam",
        help="Set a hyperparameter of the network, e.g. channels=48. Repeatable.",
        metavar="KEY=VALUE",
    ),
]
SourceArgument = Annotated[
    Path,
    Argument(
        help="A folder written by `esrjax eval -o`, or of entries of `esrjax submit`; the "
        "organisers' results.json, or a .csv table.",
        metavar="SOURCE",
    ),
]
DEFAULT_RULES = "ntire2026"
RulesOption = Annotated[
    str, Option(help="The rules of a challenge: the name of shipped rules, or a TOML file.")
]
BaselineOption = Annotated[
    Literal["measured", "published"],
    Option(help="Score relative to the baseline measured in SOURCE, or to its published figures."),
]
FiguresOption = Annotated[
    Literal["exact", "printed"],
    Option(help="Score the exact figures, or the figures rounded as the challenge prints them."),
]
IgnoreThresholdsOption = Annotated[
    bool, Option(help="Also rank methods below the PSNR thresholds.")
]
ProtocolTimingOption = Annotated[
    bool, Option(help="Score the runtimes that `esrjax eval --protocol-timing` measured.")
]
TableFormatOption = Annotated[
    Literal["md", "latex"], Option(help="Format of the table: Markdown or LaTeX.")
]
EngineOption = Annotated[
    Literal["auto", "jax", "openvino", "onnxruntime"],
    Option(
        help="Inference engine; auto on a CPU: OpenVINO, where it is installed, for networks of "
        "convolutions and element-wise operations, else JAX."
    ),
]
PrecisionOption = Annotated[
    Literal["float32", "bfloat16"],
    Option(help="Precision of the computation; bfloat16 with OpenVINO, on CPUs that have it."),
]
SelfEnsembleOption = Annotated[
    bool, Option(help="x8 geometric self-ensemble: the mean over flips and rotations.")
]
WindowsOption = Annotated[
    str | None,
    Option(
        help="Run in windows, once for each of these sides (LR pixels), and average the results.",
        metavar="SIDE[:WEIGHT],...",
    ),
]
JsonOption = Annotated[bool, Option("--json", help="Print JSON.")]
ImplementationOption = Annotated[
    Literal["auto", "reference", "kernel"],
    Option(
        help="Implementation of the operations: reference (plain JAX), kernel (GPU kernels), or "
        "auto (kernels where they are supported)."
    ),
]


# --- parsers of values -------------------------------------------------------------------------


def parse_hparams(texts: list[str] | None) -> dict[str, Any]:
    """`["channels=48"] -> {"channels": 48}`; values are Python literals, or else strings."""
    return dict(_hparam(text) for text in texts or [])


def _hparam(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        rule = "a hyperparameter is KEY=VALUE: an argument of the network and its value"
        raise invalid("--hparam", text, rule, "channels=48")
    try:
        return key, ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nested deeply
        return key, value


def parse_image_size(text: str) -> tuple[int, int]:
    """`"256x256" -> (256, 256)` and `"256" -> (256, 256)`: height and width of an LR image."""
    sides = text.strip().split("x")
    if len(sides) > 2 or not all(re.fullmatch("0*[1-9][0-9]{0,8}", side) for side in sides):
        rule = "an image size is HEIGHTxWIDTH, or one number for a square, in LR pixels"
        raise invalid("--image-size", text, rule, "256x256")
    return int(sides[0]), int(sides[-1])


def check_table_format(format: str, as_json: bool) -> None:
    """Raise `InvalidArgument` if a format of the table is chosen where none is printed."""
    if as_json and format != "md":
        raise excludes(f"--format {format}", "--json", "--json prints no table")


def parse_windows(text: str | None) -> dict[int, float]:
    """`"100,300:1.2" -> {100: 1.0, 300: 1.2}`: weights by side length in LR pixels."""
    if text is None:
        return {}
    pairs = [item.strip().partition(":") for item in text.split(",")]
    try:
        weights = {int(side): float(weight) if colon else 1.0 for side, colon, weight in pairs}
    except ValueError:
        weights = {}
    if len(weights) < len(pairs):
        rule = (
            "windows are a list of different side lengths in LR pixels, each with an optional "
            "weight (default 1)"
        )
        raise invalid("--windows", text, rule, "100,200,300:1.2")
    return weights


def parse_checkpoints(texts: list[str] | None, names: list[str]) -> dict[str, Path]:
    """`["span=a.pth"] -> {"span": Path("a.pth")}`; a bare file belongs to the only method.

    The name may also be that of a member of an ensemble in `names`.
    """
    if not texts:
        return {}
    networks: list[str] = []
    for name in names:
        entry = registry.get_entry(name)
        networks += entry.members if isinstance(entry, Ensemble) else [name]
    files: dict[str, Path] = {}
    for name, file in (split_method("--checkpoint", text, networks) for text in texts):
        if name in files:
            raise InvalidArgument(
                f"--checkpoint has several files for {name!r}: {files[name]}, {file}",
                rule="a method is run with the weights of one checkpoint",
                remedy="leave all but one --checkpoint out",
            )
        files[name] = Path(file)
    return files


def split_method(option: str, text: str, names: Sequence[str]) -> tuple[str, str]:
    """`"span=a.pth" -> ("span", "a.pth")`; a bare file belongs to the only method.

    Args:
        option: The option, named in errors.
        text: Its value, `METHOD=FILE` or `FILE`.
        names: The methods that are run.

    Raises:
        InvalidArgument: The text names no method or another one.
    """
    names = list(dict.fromkeys(names))
    name, equals, file = text.partition("=")
    if equals and name in names:
        return name, file
    if len(names) == 1 and not (equals and name in registry.names()):
        return names[0], text
    raise no_method(option, text, file or text, names)


# --- errors ------------------------------------------------------------------------------------


def invalid(option: str, value: str, rule: str, example: str) -> InvalidArgument:
    """Return the error for a value of an option that cannot be parsed.

    Args:
        option: The option.
        value: Its value.
        rule: What a value must be.
        example: A valid value.
    """
    return InvalidArgument(
        f"Invalid {option} {value!r}", rule=rule, remedy=f"for example {option} {example}"
    )


def no_method(option: str, text: str, file: str, names: Sequence[str]) -> InvalidArgument:
    """Return the error for a value `METHOD=FILE` or `FILE` that names none of the methods.

    Args:
        option: The option.
        text: Its value.
        file: The file in it.
        names: The methods that are run.
    """
    return InvalidArgument(
        f"{option} {text!r} does not name one of the methods that are run",
        rule=f"METHOD in {option} METHOD=FILE is one of {', '.join(names)}; FILE alone is for a "
        "single method",
        remedy=f"for example {option} {names[0]}={file}",
    )


def needs(option: str, other: str, rule: str) -> InvalidArgument:
    """Return the error for an option that has no meaning without another one.

    Args:
        option: The option that is given.
        other: The option that it needs.
        rule: Why it needs that.
    """
    remedy = f"add {other}, or leave {option} out"
    return InvalidArgument(f"{option} needs {other}", rule=rule, remedy=remedy)


def excludes(option: str, other: str, rule: str) -> InvalidArgument:
    """Return the error for two options that cannot be combined.

    Args:
        option: One of the options.
        other: The other one, or several.
        rule: Why they cannot be combined.
    """
    remedy = f"leave {option} out, or leave {other} out"
    return InvalidArgument(f"{option} cannot be combined with {other}", rule=rule, remedy=remedy)
