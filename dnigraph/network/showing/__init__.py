"""A network and its runs, to look at."""
