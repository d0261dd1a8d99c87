"""Identity of devices as docs/wire.md has it: challenge, enrolment, tokens. Knows nothing of what a device runs."""
