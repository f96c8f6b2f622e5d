"""Redis: one link with a circuit breaker, a cache and a lock. Losing Redis changes no answer."""
