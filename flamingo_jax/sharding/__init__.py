"""Where arrays live: the device mesh, and compilation onto it."""
