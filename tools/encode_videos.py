"""`oneforcing encode` of a clone that is not installed."""

from oneforcing_jax.commands.encode import main

if __name__ == "__main__":
    main(prog="encode_videos")
