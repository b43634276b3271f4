"""Entry point of the command `esrjax` and of `python -m esrjax`."""

from esrjax.runtime import reexec_with_huge_pages


def main() -> None:
    """Run the command line, in a process with huge pages where the system has them."""
    # Before any import that takes time: it may start the process again.
    reexec_with_huge_pages()
    from esrjax import cli

    cli.main()


if __name__ == "__main__":
    main()
