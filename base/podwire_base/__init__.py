"""Code that every other package of podwire uses. This package imports no other package of podwire."""
