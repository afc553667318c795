"""The project that ships with the package: the admin, a small protected API, the relay, and the demo."""
