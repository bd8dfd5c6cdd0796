"""`oneforcing export-lora` of a clone that is not installed."""

from oneforcing_jax.commands.export_lora import main

if __name__ == "__main__":
    main(prog="export_lora")
