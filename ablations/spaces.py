"""`ablations.search.space` under its former name, for spaces of your own: kept until the next version."""

from ablations.search.space import Choices, Point, Space, get_space, spaces

__all__ = ["Choices", "Point", "Space", "get_space", "spaces"]
