"""The processes of the table, by part."""
