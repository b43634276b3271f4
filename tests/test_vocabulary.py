"""Names are the field's: no house words as identifiers, one meaning per class name."""

import ast
import io
import re
import tokenize
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("esrjax", "plugins", "kernels", "tools")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Participles and house words that say nothing of the value or function that they would name.
FORBIDDEN = frozenset(
    """said told held taught asked slope slopes wide upended beside numbers verdict lanes
    room course judged lesson lessons optimiser quantise recognise picture_mean""".split()
)
# Words that have a meaning in the field, or in a library, and hide the noun where they are used
# without one: each at most so often.
RARE = dict.fromkeys("found given kind whole picture pictures".split(), 15)
# Names that libraries define.
LIBRARY_NAMES = frozenset({("dtype", "kind")})
# Terms that everybody who trains networks looks for.
REQUIRED = ("in_channels", "out_channels", "learning_rate", "grads", "params")


def identifiers(path):
    """The NAME tokens of a file, without attributes that a library defines."""
    tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text()).readline))
    for i, token in enumerate(tokens):
        owner = tokens[i - 2].string if i > 1 and tokens[i - 1].string == "." else None
        if token.type == tokenize.NAME and (owner, token.string) not in LIBRARY_NAMES:
            yield token


def definitions(node_type):
    """(path, node) of every definition of a type in the package and the kernels."""
    for path in FILES:
        if path.relative_to(ROOT).parts[0] in ("esrjax", "kernels"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, node_type):
                    yield path.relative_to(ROOT).as_posix(), node


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_forbidden_word_as_identifier_is_reported(path):
    hits = [f"{t.string}, line {t.start[0]}" for t in identifiers(path) if t.string in FORBIDDEN]
    assert not hits, f"use the noun or verb of the field: {hits}"


def test_words_without_a_noun_are_rare():
    counts = Counter(token.string for path in FILES for token in identifiers(path))
    assert {word: counts[word] for word, most in RARE.items() if counts[word] > most} == {}
    assert [word for word in REQUIRED if not counts[word]] == []


def test_class_name_has_one_meaning():
    places = defaultdict(list)
    for path, node in definitions(ast.ClassDef):
        places[node.name].append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_exception_docstring_says_when_it_is_raised():
    bases = {"Exception", "UserError"}
    wrong = [
        f"{path}: {node.name}"
        for path, node in definitions(ast.ClassDef)
        if bases & {ast.unparse(base) for base in node.bases}
        and node.name != "UserError"
        and not (ast.get_docstring(node) or "").startswith("Raised when ")
    ]
    assert wrong == []


# Phrases of the first drafts, each with the field's term beside it.
PHRASES = {
    r"\bpictures?\b": "image",
    r"\bslopes?\b": "gradient",
    r"\bunsaid\b": "unspecified",
    r"\bverbs?\b": "command",
    r"\blessons?\b": "distillation term",
    r"\bwhite at 1\b": "values in [0, 1]",
    r"\bway back\b": "backward pass",
    r"\bin its stride\b": "after its own warm-up call",
    r"\blaws? (hold|that)\b": "checks passed",
    r"\bhangs on\b": "depends on",
}
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*.toml")])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_use_the_terms_of_the_field(path):
    text = re.sub(r"\(\S+\.png\)", "", path.read_text())
    if path.name == "CONTRIBUTING.md":  # its section on names lists the words to avoid
        text = text.replace(text[text.index("## Names") : text.index("## Tests")], "")
    hits = [(m[0], term) for word, term in PHRASES.items() for m in re.finditer(word, text, re.I)]
    assert hits == []
