"""`oneforcing evaluate curvature` of a clone that is not installed."""

from oneforcing_jax.commands.curvature import main

if __name__ == "__main__":
    main(prog="curvature")
