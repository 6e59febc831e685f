"""Files that nobody should have made; a package, so that its conftest hides no other."""
