"""The storage of bytes: files, caches, copies, addresses. Knows nothing of photos."""
