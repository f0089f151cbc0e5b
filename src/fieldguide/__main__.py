"""`python -m fieldguide`."""

from fieldguide.cli import main

main()
