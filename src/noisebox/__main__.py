"""`python -m noisebox` is `noisebox`."""

from noisebox.cli import main

main()
