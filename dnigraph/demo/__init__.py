"""The demo, and the data that it and the benchmarks need."""
