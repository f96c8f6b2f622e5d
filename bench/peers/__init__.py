"""What Boxoffice is compared with: a bare gRPC call behind Envoy, and a monolith."""
