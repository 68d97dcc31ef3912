"""`python -m buzzer`: the command line."""

from buzzer.suite.cli import main

if __name__ == "__main__":
    main()
