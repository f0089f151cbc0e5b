"""Bytes that lie somewhere: files, caches, copies, addresses. Knows nothing of photos."""
