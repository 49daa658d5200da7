"""`python -m tapescope_trainers.study`, as the console script `tapescope-study`."""

from tapescope_trainers.study.command import main

if __name__ == "__main__":
    main()
