"""What a person runs: command line, recipes, runs over many videos, tables, pictures."""
