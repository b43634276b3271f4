"""Print the number of files and of lines of code, without docstrings, comments and blank lines."""

import argparse
import ast
import io
import tokenize
from pathlib import Path

SKIPPED = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the numbers of all lines that are part of a docstring."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            lines |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def count_code_lines(source: str) -> int:
    """Return the number of lines of Python source that contain code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*SKIPPED, tokenize.ENDMARKER):
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(source)))


def main() -> None:
    """Print one line for each folder, and the total."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("esrjax")])
    total_files = total_lines = 0
    for folder in parser.parse_args().folders:
        for child in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]:
            counts = [count_code_lines(path.read_text()) for path in sorted(child.glob("*.py"))]
            if counts:
                print(f"{child!s:30} {len(counts):4} files {sum(counts):6} lines of code")
                total_files, total_lines = total_files + len(counts), total_lines + sum(counts)
    print(f"{'total':30} {total_files:4} files {total_lines:6} lines of code")


if __name__ == "__main__":
    main()
