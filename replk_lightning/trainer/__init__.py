"""What Lightning's Trainer is given: exact resumption, whole checkpoints, synchronised batch norms, loggers, callbacks."""
