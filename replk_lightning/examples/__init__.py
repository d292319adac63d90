"""Short programs to copy from; each file's first line is the command that runs it."""
