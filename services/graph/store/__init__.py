"""All SQL of the graph service, one module for each group of tables."""
