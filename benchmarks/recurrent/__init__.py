"""What is credit over a window's end worth to a recurrent network?

Delayed recall, Copy, Repeat Copy, characters of the King James Bible (or of the Penn Treebank, for who may use it) and
MNIST row by row, each with the same batches, and as many of them, for every arm: truncated backprop, DNI, DNI with its
estimates shuffled over the batch (the control: what noise of the same size does), DNI with the auxiliary task or
BP(lambda), BP(lambda) without a head (the control: what a share of the true gradient does alone), truncated backprop
with longer windows (one step more is the control: it costs less time than a head). Adam, nothing tuned per arm: DNI is
what `dg.Recurrent(core, horizon=T, ...)` does by itself.

Batches are equal, updates and time are not. In a sequence of n windows whose loss stands in one of them DNI steps the
core's optimiser n times, truncated backprop once, since only one window has a gradient, and BP(lambda) and full BPTT
once, at the end: 5 updates against 1 in recall over 12 blanks, 7 against 1 in MNIST by rows. In the characters' stream
each window is an update, for all. A row's seconds are processor time; they compare within one run on one machine only.

 Recall: LSTM 64, batch 32; Copy and Repeat Copy: LSTM 128 with
forget gates that begin open (bias 1), batch 64, a set-up chosen on seed 0 and run on others. Jobs take turns.

    python -m benchmarks.recurrent recall                     until it is done
    python -m benchmarks.recurrent copy --minutes 60          so long, and the next time further
    python -m benchmarks.recurrent characters --text penn-treebank
"""

from .command import main

__all__ = ["main"]
