"""The project that ships: the admin, and a small protected API."""
