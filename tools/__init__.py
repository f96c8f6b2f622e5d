"""Command-line tools that use the REST API and import no service."""
