"""The tests of amesh-django."""
