"""The door: REST, event stream, page and command line. Importing this package imports nothing else."""
