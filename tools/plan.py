"""`oneforcing plan` of a clone that is not installed."""

from oneforcing_jax.commands.plan import main

if __name__ == "__main__":
    main(prog="plan")
