"""The device side: asks what to run, fetches and verifies it, runs it, measures it.

It knows the wire (docs/wire.md) and nothing of the server's code. The shape is the one that a Java twin takes.
"""
