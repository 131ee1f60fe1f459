"""Run all benchmarks: `python -m benchmarks`, or the named ones: `python -m benchmarks step_time memory`."""

import importlib
import sys

# And by themselves, for hours: recurrent, asynchrony, two_clocks.
NAMES = ("step_time", "memory", "compile_time", "every_layer_cut", "window_time", "network_size")

for name in sys.argv[1:] or NAMES:
    importlib.import_module(f"benchmarks.{name}").main()
