"""What goes on the GPU under a budget: the ledger, the solver, and the gpuidx files that keep its answers."""
