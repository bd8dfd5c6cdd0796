"""`oneforcing export` of a clone that is not installed."""

from oneforcing_jax.commands.export import main

if __name__ == "__main__":
    main(prog="export_torch")
