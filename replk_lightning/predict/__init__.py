"""Looking at pictures with a trained net: `python -m replk_lightning predict`."""
