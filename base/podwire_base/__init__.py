"""Code that every other package of podwire uses. It imports none of them."""
