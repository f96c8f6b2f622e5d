"""One file per gRPC service: message -> plain values -> one domain call -> message."""
