"""A model of the user beside itself: backprop, boundaries and the controls, on the same batches."""
