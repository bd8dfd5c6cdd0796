"""`oneforcing check` of a clone that is not installed."""

from oneforcing_jax.commands.check import main

if __name__ == "__main__":
    main(prog="check")
