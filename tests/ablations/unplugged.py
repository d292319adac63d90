"""A training run that somebody pulls the plug of."""

from tqdm import tqdm


class UnpluggedError(RuntimeError):
    pass


class UnpluggedBar(tqdm):
    """Fails when the second epoch is over but before its checkpoint is written."""

    def update(self, n=1):
        if self.n == 1 and n == 1:
            raise UnpluggedError
        return super().update(n)
