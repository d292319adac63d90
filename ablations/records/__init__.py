"""What was measured: one JSON file a run, what is trusted in it, and what made it."""
