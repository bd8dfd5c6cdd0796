"""`oneforcing import-lora` of a clone that is not installed."""

from oneforcing_jax.commands.import_lora import main

if __name__ == "__main__":
    main(prog="import_lora")
