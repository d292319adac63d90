"""What Lightning's Trainer gets: exact resumption, whole checkpoints, synchronised batch norms, loggers, callbacks."""
