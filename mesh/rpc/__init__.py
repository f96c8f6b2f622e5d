"""gRPC servers and clients: identity, policy, validation, errors and deadlines of calls."""
