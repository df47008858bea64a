"""Fuzz a target: `python -m fuzz voc`; `--help` names the others, and says how long and where findings go."""

from fuzz.harness import main

if __name__ == "__main__":
    main()
