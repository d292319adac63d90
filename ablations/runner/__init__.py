"""From rows to records: runs, what they need, and how they are trained."""
