"""gRPC servers and clients: authentication, policies, validation, errors, deadlines."""
