"""Sweeps over spaces of models, with Optuna."""
