"""Domain code that several services share: timelines, cached posts, media URLs, account names."""
