"""Entry point of `python -m tapescope_trainers.study`, the same as the console script `tapescope-study`."""

from tapescope_trainers.study.command import main

if __name__ == "__main__":
    main()
