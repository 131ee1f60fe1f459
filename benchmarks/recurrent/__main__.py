"""Run a suite, or go on with it: `python -m benchmarks.recurrent recall`."""

from .training import main

main()
