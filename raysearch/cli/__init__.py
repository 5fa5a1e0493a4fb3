"""The command line: commands, the run of a search, estimates and exit statuses."""
