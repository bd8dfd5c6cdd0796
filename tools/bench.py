"""`oneforcing bench` of a clone that is not installed."""

from oneforcing_jax.commands.bench import main

if __name__ == "__main__":
    main(prog="bench")
