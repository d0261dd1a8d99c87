"""Resumable uploads: create, send parts with offset and digest, ask where it stands, complete. The bytes are never looked into."""
