"""Speed and memory, each fast path beside what it replaces, in one process on the same weights."""
