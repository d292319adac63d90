"""One DataModule per data set."""
