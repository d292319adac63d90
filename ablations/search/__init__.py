"""Sweeps over spaces of models, with Optuna.

```sh
python -m ablations.sweep --space kernels --objectives accuracy latency --trials 34
python -m ablations.sweep --space mobilenet --objectives accuracy --trials 40 --timeout 7200
python -m ablations.sweep --space kernels --objectives miou macs --max-parameters 400K
```

One odd kernel from 3 to 31 a stage is searched, the paper's five choices first; several objectives by NSGA-II with the
Pareto front as CSV and picture, one by TPE with pruning. `--space FILE.py` is a space of your own (see
`ablations.search.space`); models above a budget are rejected before they train. Start the same command once a device,
on one machine or on many that share `--storage postgresql+psycopg://…`: all work on one study, and what a killed worker
was at is tried again by another. `optuna-dashboard sqlite:///runs/sweeps.db` shows the study.
"""
