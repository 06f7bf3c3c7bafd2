"""`python -m ddpm_core` is the command `ddpm-core`, for launchers of modules."""

from ddpm_core.cli import main

if __name__ == "__main__":
    main()
