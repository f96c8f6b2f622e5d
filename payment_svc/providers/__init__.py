"""Payment providers: the interface in base.py and one package for each implementation."""
