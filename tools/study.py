"""`oneforcing evaluate study` of a clone that is not installed."""

from oneforcing_jax.commands.study import main

if __name__ == "__main__":
    main(prog="study")
