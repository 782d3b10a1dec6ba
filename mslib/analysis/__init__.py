"""What turns networks and tables into tables: one module a notebook, no paths."""
