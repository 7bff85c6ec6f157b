"""`python -m workers.simulator --port P`."""

from workers.simulator.cli import command

if __name__ == "__main__":
    command()
