"""`python -m benchmarks.recurrent`."""

from .command import main

main()
