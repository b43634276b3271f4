"""Files that docs/architecture.md names exist, and every file of esrjax has the size of one job."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text()


def test_files_of_the_page_exist():
    paths = re.findall(r"`([\w/]+\.py)`", PAGE)
    assert len(paths) > 80
    for path in paths:
        assert (ROOT / path).is_file() or (ROOT / "esrjax" / path).is_file(), path


def test_number_and_size_of_files():
    files = {path: len(path.read_text().splitlines()) for path in (ROOT / "esrjax").rglob("*.py")}
    assert len(files) <= 120
    assert {str(path) for path, lines in files.items() if lines > 750} == set()
