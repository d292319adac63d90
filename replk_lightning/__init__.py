"""RepLKNet: the models, recipes, tasks and measurements of "Scaling Up Your Kernels to 31x31"."""
