"""Shows the main job on real input: people, photos, a follow graph, one feed."""
