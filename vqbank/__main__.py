"""`python -m vqbank` is the command `vqbank`."""

from vqbank.pipelines.commands.cli import main

if __name__ == "__main__":
    main()
