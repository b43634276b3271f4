"""The command `esrjax`, also as `python -m esrjax`."""

from esrjax.memory import take_large_pages


def main() -> None:
    """Run the command line, in a process that is made for it."""
    take_large_pages()
    from esrjax import cli

    cli.main()


if __name__ == "__main__":
    main()
