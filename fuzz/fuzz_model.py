"""Fuzz the loader of trained models; `--help` says how long and where findings go."""

from fuzz.harness import main

if __name__ == "__main__":
    main("model")
