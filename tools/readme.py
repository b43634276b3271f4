"""Write into README.md what the program prints: `make readme`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import test_readme  # noqa: E402
from blocks import filled  # noqa: E402


def main() -> None:
    """Replace the blocks that the tests compare."""
    text = test_readme.README.read_text()
    for name, content in (
        ("help", test_readme.help_text()),
        ("methods", test_readme.method_table()),
    ):
        text = filled(text, name, content)
    test_readme.README.write_text(text)


if __name__ == "__main__":
    main()
