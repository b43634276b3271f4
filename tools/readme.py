"""Generator of the blocks of README.md that the program prints: `make readme`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import test_readme  # noqa: E402
from blocks import replace_block  # noqa: E402


def main() -> None:
    """Replace the blocks that tests/test_readme.py compares."""
    text = test_readme.README.read_text()
    for name, content in (
        ("help", test_readme.help_text()),
        ("methods", test_readme.method_table()),
    ):
        text = replace_block(text, name, content)
    test_readme.README.write_text(text)


if __name__ == "__main__":
    main()
