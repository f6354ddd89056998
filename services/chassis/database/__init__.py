"""PostgreSQL: connections, ids, and the tables of the chassis in each schema."""
