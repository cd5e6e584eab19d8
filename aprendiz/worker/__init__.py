"""The worker: a process of its own that trains, and what a host needs to start, follow and steer it."""
