"""One file for each question; its docstring is the question, its rows lie in `results/`."""
