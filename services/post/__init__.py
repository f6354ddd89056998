"""Posts: media with a caption, told to the author's followers."""
