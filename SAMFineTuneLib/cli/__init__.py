"""The command `samfinetune`. Every module here but `main` is one sub-command."""
