"""The command `latebind`: what people, CI and devices type.

One file per noun; each calls `latebind.Client` or the SDK and shows the answer. Answers go to stdout (with `--json` nothing but one JSON
document), progress and messages to stderr. docs/cli.md lists commands and exit codes.
"""
