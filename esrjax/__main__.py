"""`python -m esrjax`: the same as the command `esrjax`."""

from esrjax.cli import main

main()
