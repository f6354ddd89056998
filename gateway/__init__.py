"""The entry points of the mesh, configured in Python: the API gateway and the CDN edge (Envoy)."""
