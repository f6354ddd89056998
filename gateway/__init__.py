"""The doors of the mesh: the API gateway and the CDN edge, two Envoys configured in Python."""
