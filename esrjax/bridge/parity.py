"""Is our network the one that PyTorch has? A question, asked so that it can be asked again."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import field
from pathlib import Path
from typing import Any, Protocol

from pydantic.dataclasses import dataclass

from esrjax import registry
from esrjax.bridge import fingerprints, golden
from esrjax.bridge.case import Body
from esrjax.bridge.rule import Rule
from esrjax.errors import UserError
from esrjax.method import Form, Method
from esrjax.model import open_method
from esrjax.network import archive
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import scattered, tensors
from esrjax.pictures import sets
from esrjax.pictures.sets import Pair
from esrjax.recognition import recognise
from esrjax.schema import STRICT

BESIDE = "beside torch: "  # a file that the PyTorch side imports, by its path from there


class NoQuestion(UserError):
    """A comparison without another side, or with two of them."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Question:
    """What is compared with what.

    golden: the .npz that PyTorch once wrote; or torch: FILE.py:Class, built with torch_args.
    checkpoint: of both sides; where there is none, the golden's side has the shipped weights, and
    a live one weights drawn from `seed`, as the pictures are. data: a set to run both on.
    """

    method: str
    sizes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    checkpoint: str | None = None
    golden: str | None = None
    torch: str | None = None
    torch_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    data: str | None = None
    seed: int = 0
    body: Body = "auto"

    def __post_init__(self) -> None:
        alone = {"data": self.data, "torch_args": self.torch_args}
        if (self.golden is None) == (self.torch is None):
            raise _no_question("both --golden and --torch" if self.golden else "nothing")
        if self.golden is not None and any(alone.values()):
            raise _no_question("--golden together with --data or --torch-args")


class Outcome(Protocol):
    """What was compared: `golden.Parity`, or `live.Live`, whose room needs PyTorch."""

    @property
    def verdicts(self) -> dict[str, bool]: ...
    @property
    def passed(self) -> bool: ...
    def as_dict(self) -> dict[str, Any]: ...


@plain(frozen=True, kw_only=True)
class Answer:
    """What came of it. form: that our network took. hashes: sha256 of all that was compared."""

    outcome: Outcome
    form: Form
    hashes: Mapping[str, str]


def parity(asked: Question, rules: Sequence[Rule] = ()) -> Answer:
    """Ask. rules: optimisers of which a live comparison takes steps."""
    return _stored(asked) if asked.golden is not None else _live(asked, rules)


def hashes(asked: Question) -> dict[str, str]:
    """The sha256 of all files that the question names; of a checkpoint, that of its tensors."""
    files = {"golden": asked.golden, "torch": asked.torch and asked.torch.rpartition(":")[0]}
    found = {key: fingerprints.of_file(Path(file)) for key, file in files.items() if file}
    if asked.checkpoint is not None:
        found["weights"] = fingerprints.of_tensors(archive.read(asked.checkpoint).tensors)
    for pair in _pairs(asked):
        found[f"{pair.name} HR"] = fingerprints.of_file(pair.hr)
        if pair.lr is not None:
            found[f"{pair.name} LR"] = fingerprints.of_file(pair.lr)
    return found


def _stored(asked: Question) -> Answer:
    assert asked.golden is not None
    model = open_method(asked.method, asked.checkpoint, asked.sizes)
    found = golden.parity(asked.method, model.method, model.net, asked.golden, asked.body)
    weights = fingerprints.of_tensors(model.checkpoint.tensors)
    return Answer(outcome=found, form="deploy", hashes={"weights": weights, **hashes(asked)})


def _live(asked: Question, rules: Sequence[Rule]) -> Answer:
    archive.pytorch("comparing with a PyTorch network")
    from esrjax.bridge import live, peer

    assert asked.torch is not None
    method, pairs = registry.plain(asked.method), _pairs(asked)
    other = peer.build(peer.source(asked.torch, asked.torch_args), asked.seed)
    match = (_drawn if asked.checkpoint is None else _read)(asked, method, other)
    x = live.inputs(method, asked.seed)
    said = {
        "weights": fingerprints.of_tensors(tensors(match.net, match.naming)),
        **{name: fingerprints.of_array(each) for name, each in zip(live.INPUTS, x, strict=True)},
        **{
            BESIDE
            + os.path.relpath(file, other.source.file.resolve().parent): fingerprints.of_file(file)
            for file in other.siblings
        },
    }
    found = live.live(match, x, rules, pairs, asked.body)
    return Answer(outcome=found, form=match.form, hashes={**said, **hashes(asked)})


def _read(asked: Question, method: Method, other: Any) -> Any:
    """Both sides with the tensors of the checkpoint; ours in the form that they fill."""
    from esrjax.bridge import live, peer

    assert asked.checkpoint is not None
    found = recognise(asked.method, method, archive.read(asked.checkpoint), asked.sizes)
    peer.fill(other, found.checkpoint.tensors, method.unused, str(found.checkpoint.path))
    return live.Match(name=asked.method, method=method, net=found.net, form=found.form, peer=other)


def _drawn(asked: Question, method: Method, other: Any) -> Any:
    """Both sides with drawn weights; ours in the form whose tensors PyTorch's side has."""
    from esrjax.bridge import live, peer

    net = scattered(method.build(seed=asked.seed, **asked.sizes), seed=asked.seed)
    net.eval()
    naming = Naming(method.torch_names)
    forms: dict[Form, Any] = {"deploy": deploy(net), "train": net}
    wrong = {f: peer.misfits(other, tensors(n, naming), method.unused) for f, n in forms.items()}
    form = min(forms, key=lambda form: len(wrong[form]))
    place = f"drawn weights of {asked.method} in {form} form"
    peer.fill(other, tensors(forms[form], naming), method.unused, place)
    return live.Match(name=asked.method, method=method, net=forms[form], form=form, peer=other)


def _pairs(asked: Question) -> Sequence[Pair]:
    """Those of the set, if there is one."""
    if asked.data is None:
        return ()
    return sets.select(asked.data, registry.plain(asked.method).scale)


def _no_question(given: str) -> NoQuestion:
    return NoQuestion(
        f"there is {given} to compare with",
        rule="our network is compared with one PyTorch side: a stored one or a live one",
        remedy="give --golden FILE.npz, or --torch FILE.py:Class",
    )
