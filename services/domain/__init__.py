"""What several services share of the domain: timelines, cached posts, media URLs, names."""
