"""The chassis: what two or more services share, and nothing that knows one of them."""
