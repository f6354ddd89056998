"""Posts: media with a caption, delivered to the author's followers."""
