"""What was found of a network's parity with PyTorch, so that anybody can find it again."""

import json
import os
import platform
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from esrjax.bridge import case, parity
from esrjax.bridge.fingerprints import of_file
from esrjax.bridge.parity import Answer, Question
from esrjax.bridge.rule import Rule
from esrjax.errors import UserError
from esrjax.method import Form
from esrjax.network import archive
from esrjax.schema import STRICT, listing, mistakes

PACKAGES = ("esrjax", "jax", "flax", "optax", "numpy", "torch")
TOLERANCES = {"float32": case.TOLERANCE, "float64": case.EXACT}  # shares, see docs/bridge.md


class BadCertificate(UserError):
    """A file that holds no certificate, or a place where none can be written."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Certificate:
    """A question, its answer, and what they depend on.

    hashes: sha256 of weights, files and pictures. checkpoint_sha256: of the file that held the
    weights then. versions: of Python and of packages. tolerances: shares that arrays may differ
    by. results: the whole answer. verdicts: each part of it in a word.
    """

    format: Literal[1] = 1
    question: Question
    form: Form
    passed: bool
    verdicts: Mapping[str, bool]
    hashes: Mapping[str, str]
    checkpoint_sha256: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    tolerances: Mapping[str, float] = field(default_factory=dict[str, float])
    results: Mapping[str, Any] = field(default_factory=dict[str, Any])


_KIND = TypeAdapter(Certificate)


@plain(frozen=True, kw_only=True)
class Verification:
    """A certificate, asked again. differences: what is not as it says. notes: what may explain."""

    certificate: Certificate
    differences: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Everything is as the certificate says, and it says that the two sides agree."""
        return not self.differences and self.certificate.passed

    def as_dict(self) -> dict[str, Any]:
        """In plain types, for JSON."""
        return {
            "method": self.certificate.question.method,
            "passed": self.passed,
            "certified": self.certificate.passed,
            "differences": list(self.differences),
            "notes": list(self.notes),
        }


def certify(asked: Question, answer: Answer) -> Certificate:
    """The certificate of an answer."""
    checkpoint = None if asked.checkpoint is None else archive.read(asked.checkpoint).sha256
    return Certificate(
        question=asked,
        form=answer.form,
        passed=answer.outcome.passed,
        verdicts=answer.outcome.verdicts,
        hashes=answer.hashes,
        checkpoint_sha256=checkpoint,
        versions=_versions(),
        tolerances=TOLERANCES,
        results=answer.outcome.as_dict(),
    )


def verify(path: Path, rules: Sequence[Rule] = ()) -> Verification:
    """Ask the question of the certificate in `path` again; of changed files nothing is run."""
    held = read(path)
    asked = _located(held.question, path)
    found = parity.hashes(asked) | _beside(held, asked)
    known = {key: value for key, value in held.hashes.items() if key in found}
    differences = _differences("sha256 of ", known, found)
    if not differences:
        answer = parity.parity(asked, rules)
        differences = [
            *_differences("sha256 of ", held.hashes, answer.hashes),
            *_differences("", held.verdicts, answer.outcome.verdicts),
        ]
    notes = _differences("version of ", held.versions, _versions())
    return Verification(certificate=held, differences=tuple(differences), notes=tuple(notes))


def _beside(held: Certificate, asked: Question) -> dict[str, str]:
    """Of the files that the PyTorch side imported then, what they are now."""
    folder = Path((asked.torch or "").rpartition(":")[0]).parent
    named = [key for key in held.hashes if key.startswith(parity.BESIDE)]
    return {key: of_file(folder / key.removeprefix(parity.BESIDE)) for key in named}


# --- files -------------------------------------------------------------------------------------


def read(path: Path) -> Certificate:
    """The certificate in a `.json`, or in the manifest of a `.safetensors`."""
    try:
        if path.suffix == ".safetensors":
            manifest = archive.read(path).manifest
            if manifest is None or manifest.certificate is None:
                raise _bad(path, "its manifest holds no certificate")
            return _KIND.validate_json(json.dumps(manifest.certificate))
        return _KIND.validate_json(path.read_bytes())
    except OSError as error:
        raise _bad(path, error.strerror or str(error)) from error
    except ValidationError as error:
        raise _bad(path, listing(mistakes(error, _KIND))) from error


def require_place(path: Path, checkpoint: Path | None) -> None:
    """Raise `BadCertificate` unless a certificate of `checkpoint` can be put into `path`."""
    if path.suffix == ".safetensors":
        if checkpoint is None or not path.is_file() or not path.samefile(checkpoint):
            raise _bad(path, "is not the checkpoint that is compared", write=True)
        if archive.read(path).manifest is None:
            raise _bad(path, "has no manifest; `esrjax convert` writes one", write=True)
    elif path.suffix != ".json" or path.is_dir():
        raise _bad(path, "is no name for a certificate", write=True)


def write(path: Path, certificate: Certificate) -> None:
    """Into a `.json` of its own, or into the manifest of the `.safetensors` that it is about."""
    if path.suffix == ".safetensors":
        held = archive.read(path)
        assert held.manifest is not None
        said = _KIND.dump_python(certificate, mode="json")
        archive.write_safetensors(path, held.tensors, replace(held.manifest, certificate=said))
        return
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(_KIND.dump_json(certificate, indent=2) + b"\n")
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise _bad(path, error.strerror or str(error), write=True) from error


def _located(asked: Question, path: Path) -> Question:
    """With its files where they are named, else beside the certificate."""

    def found(file: str | None) -> str | None:
        beside = path.parent / Path(file or "").name
        return str(beside) if file and not Path(file).exists() and beside.exists() else file

    file, colon, name = (asked.torch or "").rpartition(":")
    return replace(
        asked,
        checkpoint=str(path) if path.suffix == ".safetensors" else found(asked.checkpoint),
        golden=found(asked.golden),
        torch=f"{found(file)}{colon}{name}" if asked.torch else None,
    )


def _differences(what: str, held: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return [
        f"{what}{key}: {_word(held.get(key))} in the certificate, {_word(found.get(key))} now"
        for key in {**held, **found}
        if held.get(key) != found.get(key)
    ]


def _word(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "equal" if value else "not equal"
        case _:
            return f"{value[:12]}…" if len(value) == 64 else str(value)


def _versions() -> dict[str, str]:
    installed = {dist.name for dist in metadata.distributions()}
    found = {name: metadata.version(name) for name in PACKAGES if name in installed}
    return {"python": platform.python_version(), **found}


def _bad(path: Path, why: str, *, write: bool = False) -> BadCertificate:
    return BadCertificate(
        f"no certificate can be {'written into' if write else 'read from'} {path.name}: {why}",
        rule="a certificate is a .json, or in the manifest of the .safetensors that it is about",
        place=str(path),
        remedy="name a .json file" if write else "give what `esrjax parity --certificate` wrote",
    )
