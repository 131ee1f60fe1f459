"""What is credit over a window's end worth to a recurrent network?

Delayed recall, Copy, Repeat Copy, characters of the King James Bible (or of the Penn Treebank, for who may use it) and
MNIST row by row, each with the same data and the same number of updates for every arm: truncated backprop, DNI, DNI
with its estimates shuffled over the batch (the control: what noise of the same size does), DNI with the auxiliary task
or BP(lambda), truncated backprop with longer windows. Adam, one update per window, nothing tuned per arm: DNI is what
`dg.Recurrent(core, horizon=T, ...)` does by itself. Recall: LSTM 64, batch 32; Copy and Repeat Copy: LSTM 128 with
forget gates that begin open (bias 1), batch 64, a set-up chosen on seed 0 and run on others. Jobs take turns.

    python -m benchmarks.recurrent recall                     until it is done
    python -m benchmarks.recurrent copy --minutes 60          so long, and the next time further
    python -m benchmarks.recurrent characters --text penn-treebank
"""

from .command import main

__all__ = ["main"]
