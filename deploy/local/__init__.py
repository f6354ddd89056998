"""The local stack: every real part of the mesh as ordinary processes of one user."""
