"""`oneforcing convert` of a clone that is not installed."""

from oneforcing_jax.commands.convert import main

if __name__ == "__main__":
    main(prog="convert_wan")
