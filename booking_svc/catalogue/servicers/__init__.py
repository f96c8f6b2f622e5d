"""One file per gRPC service: proto -> plain values -> one domain call -> proto."""
